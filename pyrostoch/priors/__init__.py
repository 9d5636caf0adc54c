"""Priors of weights, with a fixed, fitted or random scale or improper, and the rules that assign them to parameters.

| prior | what it is |
| --- | --- |
| `Normal`, `Laplace`, `StudentT`, `ScaleMixture` | a distribution with fixed parameters |
| `EmpiricalBayes` | N(0, s^2), s fitted by maximum likelihood, for the whole weight or each group of it |
| `Hierarchical` | N(0, s^2), s a random variable |
| `GroupScale` | N(0, s^2), s a random variable for each output neuron, input, or weight |
| `Horseshoe` | N(0, s^2), s a global times a local half-Cauchy variable of each output neuron, input, or weight |
| `LogUniform`, `ARD` | improper: the ELBO is defined up to a constant per weight |
| `Grid` | uniform over the levels of a weight on a grid, at any scale of the grid |
| `SymmetricBinomial` | Binomial(n, 1/2) over the levels of a weight, at any scale |
| `UniformMultinomial` | uniform over the cells on which the trials of a kernel fall, at any scale |
| `RankOne` | factors N(1, s^2) of a fixed weight, for the guide of this name |
| `from_guide`, or a guide | the present posterior of each weight of a guide: what was learned, before more data |
| `around` | normal, around a network's own present weights (MOPED) |
| `None` | no prior: the parameter is fitted by maximum likelihood |

Any Pyro distribution of a single weight can be used as well.
"""

from __future__ import annotations

from pyrostoch.priors.base import FromDistribution, Prior, PriorSpec, as_prior
from pyrostoch.priors.by_name import PriorsByName
from pyrostoch.priors.fixed import (
    ARD,
    Grid,
    Laplace,
    LogUniform,
    Normal,
    RankOne,
    ScaleMixture,
    StudentT,
    SymmetricBinomial,
    UniformMultinomial,
)
from pyrostoch.priors.frozen import freeze_random
from pyrostoch.priors.horseshoe import Horseshoe
from pyrostoch.priors.network_values import around
from pyrostoch.priors.posterior import from_guide
from pyrostoch.priors.rules import assign, clean_name, fixed_parameters, is_bias, owners
from pyrostoch.priors.scales import EmpiricalBayes, GroupScale, Hierarchical

__all__ = [
    "ARD",
    "EmpiricalBayes",
    "FromDistribution",
    "Grid",
    "GroupScale",
    "Hierarchical",
    "Horseshoe",
    "Laplace",
    "LogUniform",
    "Normal",
    "Prior",
    "PriorSpec",
    "RankOne",
    "PriorsByName",
    "ScaleMixture",
    "StudentT",
    "SymmetricBinomial",
    "UniformMultinomial",
    "around",
    "as_prior",
    "assign",
    "clean_name",
    "fixed_parameters",
    "freeze_random",
    "from_guide",
    "is_bias",
    "owners",
]

"""Priors of weights: fixed, learned or random scale, improper, and the rules that hand them out.

| prior | what it is |
| --- | --- |
| `Normal`, `Laplace`, `StudentT`, `ScaleMixture` | fixed numbers |
| `EmpiricalBayes` | N(0, s^2) with s fitted |
| `Hierarchical` | N(0, s^2) with s random |
| `LogUniform`, `ARD` | improper: the ELBO is defined up to a constant per weight |
| `Grid` | for weights on a grid: no level is favored |
| `None` | no prior: the parameter is fitted by maximum likelihood |

Any Pyro distribution over single weights serves too.
"""

from __future__ import annotations

from pyrostoch.priors.base import FromDistribution, Prior, PriorSpec, as_prior
from pyrostoch.priors.fixed import ARD, Grid, Laplace, LogUniform, Normal, ScaleMixture, StudentT
from pyrostoch.priors.rules import assign, clean_name, is_bias, owners
from pyrostoch.priors.scales import EmpiricalBayes, Hierarchical

__all__ = [
    "ARD",
    "EmpiricalBayes",
    "FromDistribution",
    "Grid",
    "Hierarchical",
    "Laplace",
    "LogUniform",
    "Normal",
    "Prior",
    "PriorSpec",
    "ScaleMixture",
    "StudentT",
    "as_prior",
    "assign",
    "clean_name",
    "is_bias",
    "owners",
]

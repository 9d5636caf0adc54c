"""Distributions of activations, for stochastic layers.

| distribution | kernels | gradients of draws |
| --- | --- | --- |
| `Gaussian`, `Laplace`, `StudentT`, `LogNormal` | location and scale | reparameterized |
| `Bernoulli`, `Binomial` | logits | straight-through, relaxed, score |
| `Categorical`, `Multinomial` | logits of the channels | straight-through, relaxed, score |
| `Poisson` | logarithm of the rate | straight-through, score |
| `FromPyro` | one for each parameter | reparameterized where Pyro's is, else straight-through, score |

Priors of activations: a standard one by name, any Pyro distribution, `Learned`, `Mixture`, or another
`ActivationPrior`.
"""

from __future__ import annotations

from pyrostoch.layers.activations.base import ActivationDistribution, Gradient
from pyrostoch.layers.activations.continuous import Gaussian, Laplace, LogNormal, StudentT
from pyrostoch.layers.activations.discrete import Bernoulli, Binomial, Categorical, Multinomial, Poisson
from pyrostoch.layers.activations.from_pyro import FromPyro
from pyrostoch.layers.activations.priors import ActivationPrior, Learned, Mixture, PriorOfActivations

__all__ = [
    "ActivationDistribution",
    "ActivationPrior",
    "Bernoulli",
    "Binomial",
    "Categorical",
    "FromPyro",
    "Gaussian",
    "Gradient",
    "Laplace",
    "Learned",
    "LogNormal",
    "Mixture",
    "Multinomial",
    "Poisson",
    "PriorOfActivations",
    "StudentT",
]

"""Distributions of activations, for stochastic layers.

| distribution | kernels | gradients of draws |
| --- | --- | --- |
| `Gaussian`, `Laplace`, `StudentT`, `LogNormal` | location and scale | reparameterized |
| `Bernoulli`, `Binomial` | logits | straight-through, relaxed |
| `Categorical`, `Multinomial` | logits of the channels | straight-through, relaxed |
| `Poisson` | logarithm of the rate | straight-through |
| `FromPyro` | one for each parameter | reparameterized where Pyro's is, else straight-through |
"""

from __future__ import annotations

from pyrostoch.layers.activations.base import ActivationDistribution, Gradient
from pyrostoch.layers.activations.continuous import Gaussian, Laplace, LogNormal, StudentT
from pyrostoch.layers.activations.discrete import Bernoulli, Binomial, Categorical, Multinomial, Poisson
from pyrostoch.layers.activations.from_pyro import FromPyro

__all__ = [
    "ActivationDistribution",
    "Bernoulli",
    "Binomial",
    "Categorical",
    "FromPyro",
    "Gaussian",
    "Gradient",
    "Laplace",
    "LogNormal",
    "Multinomial",
    "Poisson",
    "StudentT",
]

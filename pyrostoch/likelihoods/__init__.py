"""Likelihoods: the distribution of the observations given the network's output.

| likelihood | output of the network | targets |
| --- | --- | --- |
| `Categorical` | logits `(batch, C)` | integer labels `(batch,)` |
| `Bernoulli` | logits `(batch,)` or `(batch, d)` | 0.0 or 1.0, in the shape of the output |
| `Poisson` | log rates `(batch,)` or `(batch, d)` | counts, in the shape of the output |
| `Gaussian`, `StudentT` | means; the scale is fixed, fitted or random | reals, in the shape of the output |
| `HeteroscedasticGaussian` | means and raw scales `(batch, 2 d)` | reals `(batch, d)` |
| a function | anything | whatever the distribution that it returns accepts |
"""

from __future__ import annotations

from pyrostoch.likelihoods.base import FromOutput, Likelihood, LikelihoodSpec, Noise, as_likelihood, per_example
from pyrostoch.likelihoods.continuous import Gaussian, HeteroscedasticGaussian, StudentT
from pyrostoch.likelihoods.discrete import Bernoulli, Categorical, Poisson

__all__ = [
    "Bernoulli",
    "Categorical",
    "FromOutput",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "LikelihoodSpec",
    "Noise",
    "Poisson",
    "StudentT",
    "as_likelihood",
    "per_example",
]

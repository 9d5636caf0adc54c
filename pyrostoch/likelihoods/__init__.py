"""Likelihoods: the distribution of an observation given the network's output.

| likelihood | output of the network | targets |
| --- | --- | --- |
| `Categorical` | logits `(batch, C)` | integer labels `(batch,)` |
| `Bernoulli` | logits | 0.0 or 1.0, in the shape of the output |
| `Poisson` | log rates | counts |
| `Gaussian`, `StudentT` | means; noise fixed, learned or random | reals |
| `HeteroscedasticGaussian` | means and raw scales `(batch, 2 d)` | reals `(batch, d)` |
| a function | anything | whatever its distribution accepts |
"""

from __future__ import annotations

from pyrostoch.likelihoods.base import FromOutput, Likelihood, as_likelihood
from pyrostoch.likelihoods.continuous import Gaussian, HeteroscedasticGaussian, StudentT
from pyrostoch.likelihoods.discrete import Bernoulli, Categorical, Poisson

__all__ = [
    "Bernoulli",
    "Categorical",
    "FromOutput",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "Poisson",
    "StudentT",
    "as_likelihood",
]

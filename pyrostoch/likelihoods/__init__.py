"""Likelihoods: the distribution of the observations given the network's output.

| likelihood | output of the network | targets |
| --- | --- | --- |
| `Categorical` | logits `(batch, C)` | integer labels `(batch,)` |
| `Bernoulli` | logits `(batch,)` or `(batch, d)` | 0.0 or 1.0, in the shape of the output |
| `BayesianSVM` | decision values `(batch,)`, `(batch, 1)` or `(batch, C)` | integer labels `(batch,)` |
| `Poisson` | log rates `(batch,)` or `(batch, d)` | counts, in the shape of the output |
| `Gaussian`, `StudentT` | means; the scale is fixed, fitted or random | reals, in the shape of the output |
| `HeteroscedasticGaussian` | means and raw scales `(batch, 2 d)` | reals `(batch, d)` |
| a function | anything | whatever the distribution that it returns accepts |

`BayesianSVM` is a pseudo-likelihood: it is trained with the hinge loss, and predicts with normalized probabilities. Its
distribution is a `PseudoCategorical`.
"""

from __future__ import annotations

from pyrostoch.likelihoods.base import FromOutput, Likelihood, LikelihoodSpec, Noise, as_likelihood, per_example
from pyrostoch.likelihoods.continuous import Gaussian, HeteroscedasticGaussian, StudentT
from pyrostoch.likelihoods.discrete import Bernoulli, Categorical, Poisson
from pyrostoch.likelihoods.pseudo import PseudoCategorical
from pyrostoch.likelihoods.svm import BayesianSVM

__all__ = [
    "BayesianSVM",
    "Bernoulli",
    "Categorical",
    "FromOutput",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "LikelihoodSpec",
    "Noise",
    "Poisson",
    "PseudoCategorical",
    "StudentT",
    "as_likelihood",
    "per_example",
]

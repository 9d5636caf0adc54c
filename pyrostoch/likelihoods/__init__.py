"""Likelihoods: the distribution of the observations given the network's output.

| likelihood | output of the network | targets |
| --- | --- | --- |
| `Categorical` | logits `(batch, ..., C)`, or `(batch, C, ...)` with `axis=1` | integer labels `(batch, ...)` |
| `Bernoulli` | logits `(batch,)` or `(batch, d)` | 0.0 or 1.0, in the shape of the output |
| `BayesianSVM` | decision values `(batch,)`, `(batch, 1)` or `(batch, C)` | integer labels `(batch,)` |
| `Poisson`, `NegativeBinomial` | log means `(batch,)` or `(batch, d)` | counts, in the shape of the output |
| `ZeroInflatedPoisson` | log rates and logits `(batch, 2 d)` | counts `(batch, d)` |
| `Gaussian`, `StudentT` | means; the scale is fixed, fitted or random | reals, in the shape of the output |
| `HeteroscedasticGaussian` | means and raw scales `(batch, 2 d)` | reals `(batch, d)` |
| `Ordinal` | one score `(batch,)` or `(batch, 1)` | integer labels of ordered classes `(batch,)` |
| `GaussianMixture` | logits, means and raw scales `(batch, K (1 + 2 d))` | reals `(batch, d)` |
| `WeibullTime`, `LogNormalTime` | log of a time's scale `(batch, 1)` | times that may be censored `(batch, 2)` |
| `Joint` | a part for each head, by name | a dictionary with a tensor for each head |
| `Weighted` | that of the likelihood inside | a dictionary with targets and weights |
| `Loss` | anything | whatever the loss accepts |
| a function | anything | whatever the distribution that it returns accepts |

`BayesianSVM` is a pseudo-likelihood: it is trained with the hinge loss, and predicts with normalized probabilities. Its
distribution is a `PseudoCategorical`. `Weighted`, class weights and `Loss` make pseudo-likelihoods, too.
"""

from __future__ import annotations

from pyrostoch.likelihoods.base import FromOutput, Likelihood, LikelihoodSpec, as_likelihood, per_example
from pyrostoch.likelihoods.continuous import Gaussian, HeteroscedasticGaussian, StudentT
from pyrostoch.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedPoisson
from pyrostoch.likelihoods.discrete import Bernoulli, Categorical
from pyrostoch.likelihoods.joint import Joint
from pyrostoch.likelihoods.loss import Loss
from pyrostoch.likelihoods.missing import mark_padding
from pyrostoch.likelihoods.mixture_density import GaussianMixture
from pyrostoch.likelihoods.ordinal import Ordinal
from pyrostoch.likelihoods.pseudo import PseudoCategorical
from pyrostoch.likelihoods.quantities import Noise
from pyrostoch.likelihoods.survival import LogNormalTime, WeibullTime
from pyrostoch.likelihoods.svm import BayesianSVM
from pyrostoch.likelihoods.weighted import Weighted

__all__ = [
    "BayesianSVM",
    "Bernoulli",
    "Categorical",
    "FromOutput",
    "Gaussian",
    "GaussianMixture",
    "HeteroscedasticGaussian",
    "Joint",
    "Likelihood",
    "LikelihoodSpec",
    "LogNormalTime",
    "Loss",
    "NegativeBinomial",
    "Noise",
    "Ordinal",
    "Poisson",
    "PseudoCategorical",
    "StudentT",
    "WeibullTime",
    "Weighted",
    "ZeroInflatedPoisson",
    "as_likelihood",
    "mark_padding",
    "per_example",
]

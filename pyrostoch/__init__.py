"""pyrostoch: stochastic and Bayesian neural networks as Pyro models.

`BayesianModel` makes any `torch.nn.Module` a Pyro model, a guide from `guides` stands for its posterior, `fit` trains
it (or `pyro.infer.SVI` with `ELBO`), and `decompose`, `predict`, `compare` and `to_arviz` read it.
"""

from __future__ import annotations

from pyrostoch import (
    data,
    distributions,
    effects,
    estimators,
    guides,
    layers,
    likelihoods,
    metrics,
    models,
    moments,
    priors,
    quantize,
)
from pyrostoch._version import __version__
from pyrostoch.diagnose import from_mcmc, to_arviz
from pyrostoch.infer import ELBO, compile_step
from pyrostoch.model import BayesianModel
from pyrostoch.prediction import (
    Comparison,
    Decomposition,
    Homeostasis,
    MomentsError,
    Prediction,
    accuracy_by_samples,
    compare,
    decompose,
    moments_error,
    noise_scaled,
    predict,
)
from pyrostoch.training import Fit, fit, load, save

__all__ = [
    "ELBO",
    "BayesianModel",
    "Comparison",
    "Decomposition",
    "Fit",
    "Homeostasis",
    "MomentsError",
    "Prediction",
    "__version__",
    "accuracy_by_samples",
    "compare",
    "compile_step",
    "data",
    "decompose",
    "distributions",
    "effects",
    "estimators",
    "fit",
    "from_mcmc",
    "guides",
    "layers",
    "likelihoods",
    "load",
    "metrics",
    "models",
    "moments",
    "moments_error",
    "noise_scaled",
    "predict",
    "priors",
    "quantize",
    "save",
    "to_arviz",
]

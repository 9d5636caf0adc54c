"""pyrostoch: stochastic and Bayesian neural networks as Pyro models.

`BayesianModel` turns any `torch.nn.Module` into a Pyro model, and a guide from `guides` approximates its posterior.
`fit` trains both (or `pyro.infer.SVI` with `ELBO`). `predict` and `compare` evaluate the predictions, `decompose`
splits the ELBO into its terms, and `to_arviz` exports draws to ArviZ.
"""

from __future__ import annotations

import importlib
from types import ModuleType

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
    obfuscate,
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
    Draws,
    Homeostasis,
    MomentsError,
    NoiseSummary,
    Prediction,
    Predictor,
    PriorPredictive,
    SavedPrediction,
    accuracy_by_samples,
    activation_noise,
    compare,
    decompose,
    draws,
    moments_error,
    noise_scaled,
    outputs,
    predict,
    prior_predictive,
)
from pyrostoch.report import write_report
from pyrostoch.training import (
    SGHMC,
    Fit,
    LaplaceFit,
    fit,
    fit_laplace,
    fit_last_layer,
    fit_statistics,
    fit_two_steps,
    leave_out_fixed,
    load,
    save,
)

__all__ = [
    "ELBO",
    "SGHMC",
    "BayesianModel",
    "Comparison",
    "Decomposition",
    "Draws",
    "Fit",
    "Homeostasis",
    "LaplaceFit",
    "MomentsError",
    "NoiseSummary",
    "Prediction",
    "Predictor",
    "SavedPrediction",
    "PriorPredictive",
    "__version__",
    "accuracy_by_samples",
    "activation_noise",
    "compare",
    "compile_step",
    "data",
    "decompose",
    "distributions",
    "draws",
    "effects",
    "estimators",
    "fit",
    "fit_laplace",
    "fit_last_layer",
    "fit_statistics",
    "fit_two_steps",
    "from_mcmc",
    "guides",
    "layers",
    "leave_out_fixed",
    "likelihoods",
    "load",
    "metrics",
    "models",
    "moments",
    "moments_error",
    "noise_scaled",
    "obfuscate",
    "outputs",
    "predict",
    "prior_predictive",
    "priors",
    "quantize",
    "save",
    "to_arviz",
    "write_report",
]

# Modules that need an extra, and are imported when they are asked for.
_WITH_EXTRAS = ("lightning", "sklearn")


def __getattr__(name: str) -> ModuleType:
    if name in _WITH_EXTRAS:
        return importlib.import_module(f"pyrostoch.{name}")
    raise AttributeError(f"module 'pyrostoch' has no attribute {name!r}")

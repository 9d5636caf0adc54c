"""Training and reading a Bayesian network: ELBO, fit, predict, decompose, compare, checkpoints."""

from __future__ import annotations

from pyrostoch.infer.certificate import LayerError, MomentsError, moments_error
from pyrostoch.infer.checkpoint import load, save
from pyrostoch.infer.compare import Comparison, ComparisonRow, accuracy_by_samples, compare
from pyrostoch.infer.compile import CompiledStep, compile_step
from pyrostoch.infer.decompose import Decomposition, SiteRow, decompose
from pyrostoch.infer.elbo import ELBO
from pyrostoch.infer.fit import fit
from pyrostoch.infer.history import Fit
from pyrostoch.infer.homeostasis import Homeostasis, NeuronStatistics, noise_scaled
from pyrostoch.infer.predict import Prediction, predict
from pyrostoch.infer.safefile import CheckpointError
from pyrostoch.infer.trainer import NonFiniteLossError

__all__ = [
    "ELBO",
    "CheckpointError",
    "Comparison",
    "ComparisonRow",
    "CompiledStep",
    "Decomposition",
    "Fit",
    "Homeostasis",
    "LayerError",
    "MomentsError",
    "NeuronStatistics",
    "NonFiniteLossError",
    "Prediction",
    "SiteRow",
    "accuracy_by_samples",
    "compare",
    "compile_step",
    "decompose",
    "fit",
    "load",
    "moments_error",
    "noise_scaled",
    "predict",
    "save",
]

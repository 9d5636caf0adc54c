"""Training a Bayesian network: `fit`, exact last layers, the checks before it, and checkpoints."""

from __future__ import annotations

from pyrostoch.safefile import CheckpointError
from pyrostoch.training.checkpoint import load, save
from pyrostoch.training.fit import fit
from pyrostoch.training.history import Fit
from pyrostoch.training.laplace import fit_laplace
from pyrostoch.training.laplace_fit import LaplaceFit
from pyrostoch.training.last_layer import fit_last_layer
from pyrostoch.training.left_out import leave_out_fixed
from pyrostoch.training.sgmcmc import SGHMC
from pyrostoch.training.statistics import fit_statistics
from pyrostoch.training.trainer import NonFiniteLossError
from pyrostoch.training.two_steps import TwoStepFit, fit_two_steps

__all__ = [
    "SGHMC",
    "CheckpointError",
    "Fit",
    "LaplaceFit",
    "NonFiniteLossError",
    "TwoStepFit",
    "fit",
    "fit_laplace",
    "fit_last_layer",
    "fit_statistics",
    "fit_two_steps",
    "leave_out_fixed",
    "load",
    "save",
]

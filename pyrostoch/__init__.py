"""pyrostoch: stochastic and Bayesian neural networks as Pyro models."""

from __future__ import annotations

from pyrostoch import distributions, effects, guides, likelihoods, priors
from pyrostoch._version import __version__
from pyrostoch.infer import ELBO
from pyrostoch.model import BayesianModel

__all__ = ["ELBO", "BayesianModel", "__version__", "distributions", "effects", "guides", "likelihoods", "priors"]

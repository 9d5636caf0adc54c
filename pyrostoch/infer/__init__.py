"""Training and reading a Bayesian network: ELBO, fit, predict, decompose, compare, checkpoints."""

from __future__ import annotations

from pyrostoch.infer.elbo import ELBO

__all__ = ["ELBO"]

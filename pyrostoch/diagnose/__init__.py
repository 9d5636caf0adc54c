"""Draws from the posterior in ArviZ's format, from a guide or from MCMC."""

from __future__ import annotations

from pyrostoch.diagnose.arviz import from_mcmc, to_arviz

__all__ = ["from_mcmc", "to_arviz"]

"""Looking at a posterior with other people's tools: draws for ArviZ, from a guide or from MCMC."""

from __future__ import annotations

from pyrostoch.diagnose.arviz import from_mcmc, to_arviz

__all__ = ["from_mcmc", "to_arviz"]

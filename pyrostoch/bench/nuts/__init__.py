"""Long runs of Hamiltonian Monte Carlo by NumPyro, in an environment of its own, as references for posteriors."""

from __future__ import annotations

from pyrostoch.bench.nuts.reference import Reference, read_reference, sample_reference, write_reference

__all__ = ["Reference", "read_reference", "sample_reference", "write_reference"]

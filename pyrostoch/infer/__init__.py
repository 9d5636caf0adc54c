"""The training objective and its inputs: the ELBO and its terms, compiled SVI steps, batches, several processes."""

from __future__ import annotations

from pyrostoch.infer.compile import CompiledStep, compile_step
from pyrostoch.infer.elbo import ELBO

__all__ = ["ELBO", "CompiledStep", "compile_step"]

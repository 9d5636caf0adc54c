"""A training step written down once and replayed: traced, held against the eager step, compiled.

Nothing here knows of Pyro models: a step is any function of tensors that gives a loss.
"""

from __future__ import annotations

from pyrostoch.staging.compiler import missing
from pyrostoch.staging.graph import StagingError, trace, undisturbed, unique
from pyrostoch.staging.python_state import put_back
from pyrostoch.staging.step import StagedStep
from pyrostoch.staging.update import Update

__all__ = ["StagedStep", "StagingError", "Update", "missing", "put_back", "trace", "undisturbed", "unique"]

"""Compiled training steps: a step is traced once, compared with the eager step, compiled, and replayed.

Nothing here depends on Pyro models: a step is any function of tensors that returns a loss.

| file | contents |
| --- | --- |
| `step` | `StagedStep`: when to trace, compare and compile, and when to run eagerly |
| `graph` | tracing a function into a graph |
| `any_count` | a graph for any number of examples |
| `settled` | a graph whose part that depends on parameters only is kept |
| `compiler` | compiling a graph |
| `update` | the optimizer's update as tensor operations |
| `compare` | comparison of a traced or compiled step with the eager one |
| `python_state` | Python state of modules, which a graph does not follow |
"""

from __future__ import annotations

from pyrostoch.staging.any_count import trace_any_count
from pyrostoch.staging.compiler import missing
from pyrostoch.staging.graph import Graph, StagingError, put_back, restore_tensors, trace, unique
from pyrostoch.staging.python_state import ModuleSnapshot, restore_modules
from pyrostoch.staging.settled import SettledGraph
from pyrostoch.staging.step import StagedStep
from pyrostoch.staging.update import Update

__all__ = [
    "Graph",
    "ModuleSnapshot",
    "SettledGraph",
    "StagedStep",
    "StagingError",
    "Update",
    "missing",
    "put_back",
    "restore_modules",
    "trace",
    "trace_any_count",
    "restore_tensors",
    "unique",
]

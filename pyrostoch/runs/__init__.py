"""Whole runs: from settings to a folder with a record, checkpoints and posterior draws, and back.

A run trains one guide or several from the same initial network, scores each once on test data, and writes

| file | what |
| --- | --- |
| `results.json` | settings, scores, the ELBO's terms, history |
| `<guide>.safetensors` | a checkpoint a guide, from which an interrupted run goes on |
| `posterior.nc` | draws of the guide with the highest ELBO, for ArviZ |
"""

from __future__ import annotations

from pyrostoch.runs.config import Config
from pyrostoch.runs.defaults import choose_device, fill_defaults
from pyrostoch.runs.execute import Watch, execute
from pyrostoch.runs.folder import RunError
from pyrostoch.runs.reopen import Run

__all__ = ["Config", "Run", "RunError", "Watch", "choose_device", "execute", "fill_defaults"]

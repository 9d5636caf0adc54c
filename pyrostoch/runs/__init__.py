"""Complete runs: train and score guides as the settings say, save the results in a folder, and load them again.

A run trains one or more guides from the same initial network, scores each once on the test data, and writes

| file | content |
| --- | --- |
| `results.json` | the record of the run: settings, scores, the terms of the ELBO, training history |
| `<guide>.safetensors` | a checkpoint of each guide, from which an interrupted run is resumed |
| `audit.<guide>.<layer>.json` | what an audit of a layer has found, for the report |
| `posterior.nc` | posterior draws of the guide with the highest ELBO, for ArviZ |
"""

from __future__ import annotations

from pyrostoch.runs.config import Config
from pyrostoch.runs.defaults import choose_device, fill_defaults
from pyrostoch.runs.execute import RunCallback, execute
from pyrostoch.runs.folder import RunError
from pyrostoch.runs.saved_run import SavedRun

__all__ = ["Config", "RunCallback", "RunError", "SavedRun", "choose_device", "execute", "fill_defaults"]

"""Runs benchmarks and keeps records of what was run, and how.

| word | what it means | where |
| --- | --- | --- |
| bench | one table of results: its cases, columns, published values, notes and figure | `case.Bench` |
| case | a row of the table: data set, network, priors of its random weights, guide, recipes | `case.Case` |
| custom trial | a function that replaces the usual training and scoring of a case | `case.CustomTrial` |
| recipe | how the network of a case is trained; one for each preset | `recipe.Recipe` |
| preset | `quick` checks that everything works, `cpu` takes minutes a network, `full` is the published recipe | |
| setting | preset, device, precision and output folder of one command | `case.Setting` |
| trial | one case run with one seed, from a fresh network to its scores | `trial.run_trial` |
| trial record | what a trial leaves behind: settings, metrics, times, machine and versions; a `trial.json` | `trial` |
| run | all trials of one command: finished trials are kept, interrupted ones are resumed | `run.run` |
| result record | one metric of one case over its seeds; an entry of `benchmarks/results/<bench>.json` | `results` |
| curve recorder | writes scores after the epochs of a trial, for figures of training curves | `curve.CurveRecorder` |

`tables` makes the results page from the result records, and `draw` the figures from the trial records. `files` writes
files in one piece. `speed` is the bench that times training steps. The benches of published tables are in
`bench.published`, which imports this package; nothing here imports them.
"""

from __future__ import annotations

from pyrostoch.bench.case import Bench, Case, Setting
from pyrostoch.bench.recipe import Recipe
from pyrostoch.bench.results import read_results
from pyrostoch.bench.run import run
from pyrostoch.bench.tables import markdown

__all__ = ["Bench", "Case", "Recipe", "Setting", "markdown", "read_results", "run"]

"""The machine that runs benchmarks, with records that say what was run and what was not.

| word | what it means | where |
| --- | --- | --- |
| bench | one published table: its cases, what was published, notes, a figure | `case.Bench` |
| case | a row of the table: a data set, a network, what is random in it, a guide | `case.Case` |
| recipe | how the network of a case is trained; one for each preset | `recipe.Recipe` |
| preset | `quick` checks that all of it works, `cpu` takes minutes a network, `full` is the published recipe | |
| setting | preset, device, precision and folder of one command | `case.Setting` |
| trial | one case carried out with one seed, from a fresh network to its scores | `trial` |
| run | all the trials of one command; what is finished is kept, and what was cut short goes on | `run` |
| record | the scores of one case over its seeds, in `benchmarks/results/` | `results` |
| follower | writes down scores after each epoch of a trial, for the figures of training curves | `follow` |

`tables` makes the results page of the records, `draw` the figures. The benches themselves are `bench.published`, which
imports this package; nothing here imports them.
"""

from __future__ import annotations

from pyrostoch.bench.case import Bench, Case, Setting
from pyrostoch.bench.recipe import Recipe
from pyrostoch.bench.results import read_results
from pyrostoch.bench.run import run
from pyrostoch.bench.tables import markdown

__all__ = ["Bench", "Case", "Recipe", "Setting", "markdown", "read_results", "run"]

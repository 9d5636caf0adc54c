"""Benchmarks: published tables run again by one command, with records that say what was run and what was not.

| name | what |
| --- | --- |
| `variance` | variance layers beside dropout: accuracy by mean, one sample and many |
| `elbo` | the ELBO of the alpha guides and the additive one, cold and warm-started, term by term |
| `pruning` | weights removed by their alpha, beside pruning by magnitude |
| `moments` | one pass by moments beside Monte Carlo; binary neurons; random networks, units, a sampling network |
| `homeostasis` | transfer functions and accuracy of binary neurons when the noise changes |
| `trident` | ternary neurons, gradients and weights; estimators beside the exact gradient |
| `speed` | one step of several libraries, eager and compiled, side by side; averages, memory, import |

`run` carries out the trials of a benchmark (a case and a seed each), `results` are tidy records in JSON, and `markdown`
makes the table of all of them.
"""

from __future__ import annotations

from pyrostoch.bench.case import Bench, Case, Setting
from pyrostoch.bench.plan import BENCHES
from pyrostoch.bench.recipe import Recipe
from pyrostoch.bench.results import read_results
from pyrostoch.bench.run import run
from pyrostoch.bench.tables import markdown

__all__ = ["BENCHES", "Bench", "Case", "Recipe", "Setting", "markdown", "read_results", "run"]

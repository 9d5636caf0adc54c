"""The benches: one published table a file, and beside it what serves that table only.

| name | what |
| --- | --- |
| `variance` | variance layers beside dropout: accuracy by mean, one sample and many |
| `elbo` | the ELBO of the alpha guides and the additive one, cold and warm-started, term by term |
| `pruning` | weights removed by their alpha, beside pruning by magnitude |
| `speed` | one step of several libraries, eager and compiled, side by side; averages, memory, import |
| `moments` | one pass by moments beside Monte Carlo; binary neurons; random networks, units, a sampling network |
| `homeostasis` | transfer functions and accuracy of binary neurons when the noise changes |
| `trident` | ternary neurons, gradients and weights; estimators beside the exact gradient |
"""

from __future__ import annotations

from pyrostoch.bench.case import Bench
from pyrostoch.bench.published.elbo import ELBO_TABLE
from pyrostoch.bench.published.homeostasis import HOMEOSTASIS
from pyrostoch.bench.published.moments import MOMENTS
from pyrostoch.bench.published.pruning import PRUNING
from pyrostoch.bench.published.trident import TRIDENT
from pyrostoch.bench.published.variance import VARIANCE
from pyrostoch.bench.speed import SPEED

__all__ = ["BENCHES"]

#: The benches by name, in the order of the results page.
BENCHES: dict[str, Bench] = {
    bench.name: bench for bench in (VARIANCE, ELBO_TABLE, PRUNING, SPEED, MOMENTS, HOMEOSTASIS, TRIDENT)
}

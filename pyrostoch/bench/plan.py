"""The benchmarks by name."""

from __future__ import annotations

from pyrostoch.bench.case import Bench
from pyrostoch.bench.elbo import ELBO_TABLE
from pyrostoch.bench.homeostasis import HOMEOSTASIS
from pyrostoch.bench.moments import MOMENTS
from pyrostoch.bench.pruning import PRUNING
from pyrostoch.bench.speed import SPEED
from pyrostoch.bench.trident import TRIDENT
from pyrostoch.bench.variance import VARIANCE

__all__ = ["BENCHES"]

#: All benchmarks.
BENCHES: dict[str, Bench] = {
    bench.name: bench for bench in (VARIANCE, ELBO_TABLE, PRUNING, SPEED, MOMENTS, HOMEOSTASIS, TRIDENT)
}

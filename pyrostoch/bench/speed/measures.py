"""The four kinds of measurement: steps, averages, memory, and the import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pyrostoch.bench.case import Own
from pyrostoch.bench.recipe import Recipe
from pyrostoch.bench.speed.driver import Worker, interpreter_of_peers, measure, python_environment
from pyrostoch.bench.speed.routes import AVERAGING, MEMORY, NETWORKS, RATIOS, ROUTES
from pyrostoch.bench.speed.summary import milliseconds, ratios, spread
from pyrostoch.bench.speed.workers.task import Task
from pyrostoch.staging import missing

__all__ = ["Timing", "averages", "imports", "memory", "steps"]

_PACKAGE = Path(__file__).absolute().parents[3]

# Prints the seconds that its imports take.
_IMPORTS = {
    "pyro": "import time; begin = time.perf_counter(); import pyro; print(time.perf_counter() - begin)",
    "both": "import time; begin = time.perf_counter(); import pyro, pyrostoch; print(time.perf_counter() - begin)",
}


@dataclass(frozen=True)
class Timing(Recipe):
    """How long is measured: `epochs` rounds of some blocks of steps, of `batch_size` examples each.

    Args:
        blocks: Blocks of a round.
        steps: Steps of a block, between two looks at the clock.
        peers: Whether all routes are measured, or pyrostoch's own alone.
    """

    blocks: int = 1
    steps: int = 1
    peers: bool = True


def steps(own: Own) -> dict[str, float]:
    """Milliseconds a step of each route through a network, and ratios.

    Args:
        own: The trial; the last part of its case's name is that of the network.

    Returns:
        `ms/<route>`, and `ratio/<a>/<b>` with its spread over rounds; a route that cannot be run has no entry.
    """
    network, timing, device = NETWORKS[own.case.name.rpartition("/")[2]], _timing(own), own.setting.device
    peers, compiler = interpreter_of_peers(), missing(torch.device(device)) is None
    tasks = {
        way.name: (
            Task(way.name, network.widths, network.random, timing.batch_size, device=device, seed=own.seed),
            peers if way.peer else None,
        )
        for way in ROUTES
        if (timing.peers or way.name.startswith("pyrostoch"))
        and (peers is not None or not way.peer)
        and (compiler or not way.compiles)
        and (way.on_gpu or device == "cpu")
    }
    found = measure(tasks, rounds=timing.epochs, blocks=timing.blocks, steps=timing.steps, seed=own.seed, tell=own.tell)
    return milliseconds(found.seconds) | ratios(found.seconds, RATIOS)


def averages(own: Own) -> dict[str, float]:
    """Milliseconds of the average of 20 draws, by `predict` and by as many calls of the network, and their ratio.

    Args:
        own: The trial; the last part of its case's name is `dense` or `all`, the layers that are random.
    """
    timing, which = _timing(own), own.case.name.rpartition("/")[2]
    tasks = {
        name: (
            Task(
                name,
                random="dense" if which == "dense" else "weights",
                examples=timing.batch_size,
                warmup=1,
                device=own.setting.device,
                seed=own.seed,
            ),
            None,
        )
        for name in AVERAGING
    }
    found = measure(tasks, rounds=timing.epochs, blocks=1, steps=timing.steps, seed=own.seed, tell=own.tell)
    return milliseconds(found.seconds) | ratios(found.seconds, [AVERAGING])


def memory(own: Own) -> dict[str, float]:
    """Peak memory of averages over many and few draws, each in a fresh process, and their ratio.

    Args:
        own: The trial.

    Returns:
        `mib/<mode>`, and the ratio with its spread over rounds.
    """
    timing = _timing(own)
    peaks: dict[str, list[float]] = {mode: [] for mode in MEMORY}
    for number in range(timing.epochs):
        # In turn forwards and backwards.
        for mode in MEMORY if number % 2 else reversed(MEMORY):
            draws = int(mode.partition(":")[2])
            task = Task("averaged", examples=timing.batch_size, draws=draws, warmup=0, seed=own.seed)
            with Worker(task) as worker:
                peaks[mode].append(worker.run(1, 1)["peak"] / 2**20)
        own.tell({"epoch": number + 1, "note": f"round {number + 1}"})
    of_rounds = [many / few for many, few in zip(*peaks.values(), strict=True)]
    return {f"mib/{mode}": median(values) for mode, values in peaks.items()} | spread(
        f"ratio/{'/'.join(MEMORY)}", of_rounds
    )


def imports(own: Own) -> dict[str, float]:
    """Seconds that `import pyrostoch` adds to `import pyro`, from pairs of fresh processes.

    Args:
        own: The trial.

    Returns:
        `seconds/pyro`, `seconds/both`, and `seconds/added`, the median of the pairs' differences with its spread.
    """
    took: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    environment = python_environment(_PACKAGE)
    for number in range(own.recipe.epochs):
        for name in _IMPORTS if number % 2 else reversed(_IMPORTS):
            done = subprocess.run(
                [sys.executable, "-P", "-c", _IMPORTS[name]], capture_output=True, text=True, env=environment
            )
            if done.returncode:
                raise RuntimeError(f"import of {name} failed:\n{done.stderr}")
            took[name].append(float(done.stdout))
        own.tell({"epoch": number + 1, "note": f"round {number + 1}"})
    added = [both - alone for both, alone in zip(took["both"], took["pyro"], strict=True)]
    return {f"seconds/{name}": median(values) for name, values in took.items()} | spread("seconds/added", added)


def _timing(own: Own) -> Timing:
    timing: Any = own.recipe
    if not isinstance(timing, Timing):
        raise TypeError(f"bench speed: {own.case.name}: expected a Timing as its recipe, got {type(timing).__name__}")
    return timing

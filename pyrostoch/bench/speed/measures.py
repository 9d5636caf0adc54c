"""The custom trials of the bench: times of training steps and of averaged predictions, memory, and import time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.recipe import Timing
from pyrostoch.bench.speed.driver import Worker, measure, peer_python, python_environment
from pyrostoch.bench.speed.implementations import ADAPTERS, AVERAGING, IMPLEMENTATIONS, MEMORY, NETWORKS, RATIOS
from pyrostoch.bench.speed.summary import milliseconds, ratios, spread
from pyrostoch.bench.speed.workers.task import Task
from pyrostoch.staging import missing

__all__ = ["adapters", "averages", "imports", "memory", "steps"]

_PACKAGE = Path(__file__).absolute().parents[3]

# Programs that print the seconds that their imports take.
_IMPORTS = {
    "pyro": "import time; begin = time.perf_counter(); import pyro; print(time.perf_counter() - begin)",
    "both": "import time; begin = time.perf_counter(); import pyro, pyrostoch; print(time.perf_counter() - begin)",
}


def steps(context: TrialContext) -> dict[str, float]:
    """Milliseconds of a training step with each implementation, and ratios of them.

    Args:
        context: The trial; the last part of its case's name is that of the network.

    Returns:
        `ms/<implementation>`, and `ratio/<a>/<b>` with its spread over rounds; an implementation that cannot be run has
        no entry.
    """
    network, timing, device = NETWORKS[context.case.name.rpartition("/")[2]], _timing(context), context.setting.device
    peers, has_compiler = peer_python(), missing(torch.device(device)) is None
    tasks = {
        one.name: (
            Task(one.name, network.widths, network.random, timing.batch_size, device=device, seed=context.seed),
            peers if one.peer else None,
        )
        for one in IMPLEMENTATIONS
        if (timing.peers or one.name.startswith("pyrostoch"))
        and (peers is not None or not one.peer)
        and (has_compiler or not one.compiles)
        and (one.on_gpu or device == "cpu")
    }
    times = measure(
        tasks,
        rounds=timing.epochs,
        blocks=timing.blocks,
        steps=timing.steps,
        seed=context.seed,
        progress=context.progress,
    )
    return milliseconds(times.seconds) | ratios(times.seconds, RATIOS)


def adapters(context: TrialContext) -> dict[str, float]:
    """Milliseconds of a step with random adapters and with ordinary ones, their ratio, and the peak memory of both.

    Args:
        context: The trial.
    """
    timing, device = _timing(context), context.setting.device
    times = measure(
        {name: (Task(name, examples=timing.batch_size, device=device, seed=context.seed), None) for name in ADAPTERS},
        rounds=timing.epochs,
        blocks=timing.blocks,
        steps=timing.steps,
        seed=context.seed,
        progress=context.progress,
    )
    peaks = {f"mib/{name}": peak / 2**20 for name, peak in times.peaks.items()}
    return milliseconds(times.seconds) | ratios(times.seconds, [ADAPTERS]) | peaks


def averages(context: TrialContext) -> dict[str, float]:
    """Milliseconds to average 20 draws, with `predict` and with one call of the network for each draw, and their ratio.

    Args:
        context: The trial; the last part of its case's name says which layers are random, `dense` or `all`.
    """
    timing, layers = _timing(context), context.case.name.rpartition("/")[2]
    tasks = {
        name: (
            Task(
                name,
                random="dense" if layers == "dense" else "weights",
                examples=timing.batch_size,
                warmup=1,
                device=context.setting.device,
                seed=context.seed,
            ),
            None,
        )
        for name in AVERAGING
    }
    times = measure(
        tasks, rounds=timing.epochs, blocks=1, steps=timing.steps, seed=context.seed, progress=context.progress
    )
    return milliseconds(times.seconds) | ratios(times.seconds, [AVERAGING])


def memory(context: TrialContext) -> dict[str, float]:
    """Peak memory of predictions averaged over many and over few draws, each in a new process, and their ratio.

    Args:
        context: The trial.

    Returns:
        `mib/<mode>`, and the ratio with its spread over rounds.
    """
    timing = _timing(context)
    peaks: dict[str, list[float]] = {mode: [] for mode in MEMORY}
    for number in range(timing.epochs):
        # The order alternates from round to round.
        for mode in MEMORY if number % 2 else reversed(MEMORY):
            draws = int(mode.partition(":")[2])
            task = Task("averaged", examples=timing.batch_size, draws=draws, warmup=0, seed=context.seed)
            with Worker(task) as worker:
                peaks[mode].append(worker.run(1, 1)["peak"] / 2**20)
        context.progress({"epoch": number + 1, "note": f"round {number + 1}"})
    round_ratios = [many / few for many, few in zip(*peaks.values(), strict=True)]
    return {f"mib/{mode}": median(values) for mode, values in peaks.items()} | spread(
        f"ratio/{'/'.join(MEMORY)}", round_ratios
    )


def imports(context: TrialContext) -> dict[str, float]:
    """Seconds that `import pyrostoch` adds to `import pyro`, from pairs of new processes.

    Args:
        context: The trial.

    Returns:
        `seconds/pyro`, `seconds/both`, and `seconds/added`, the median of the pairs' differences with its spread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    environment = python_environment(_PACKAGE)
    for number in range(context.recipe.epochs):
        for name in _IMPORTS if number % 2 else reversed(_IMPORTS):
            done = subprocess.run(
                [sys.executable, "-P", "-c", _IMPORTS[name]], capture_output=True, text=True, env=environment
            )
            if done.returncode:
                raise RuntimeError(f"import of {name} failed:\n{done.stderr}")
            seconds[name].append(float(done.stdout))
        context.progress({"epoch": number + 1, "note": f"round {number + 1}"})
    added = [both - pyro for both, pyro in zip(seconds["both"], seconds["pyro"], strict=True)]
    return {f"seconds/{name}": median(values) for name, values in seconds.items()} | spread("seconds/added", added)


def _timing(context: TrialContext) -> Timing:
    recipe = context.recipe
    if not isinstance(recipe, Timing):
        raise TypeError(
            f"bench speed: {context.case.name}: expected a Timing as its recipe, got {type(recipe).__name__}"
        )
    return recipe

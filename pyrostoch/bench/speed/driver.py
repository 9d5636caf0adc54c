"""Driving the workers: one process a route, one working at a time, rounds in which the order changes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pyrostoch.bench.speed.workers.task import Task

__all__ = ["PEERS", "Times", "Worker", "interpreter_of_peers", "measure", "python_environment"]

#: Variable that names the environment of the other libraries.
PEERS = "PYROSTOCH_PEERS"

_HERE = Path(__file__).absolute().parent
# Where this very pyrostoch lies.
_ROOT = _HERE.parents[2]
_TAIL = 2000


def interpreter_of_peers() -> Path | None:
    """The Python of the environment of `make peers`: in the folder that `PYROSTOCH_PEERS` names, else `.venv-peers`.

    Returns:
        Its path; `None` where there is none.
    """
    folder = Path(os.environ.get(PEERS) or ".venv-peers")
    found = (folder / "bin" / "python", folder / "Scripts" / "python.exe")
    return next((path.absolute() for path in found if path.is_file()), None)


def python_environment(*paths: Path) -> dict[str, str]:
    """The variables of a process with as many threads as this one has, and some folders first on its path."""
    threads = str(torch.get_num_threads())
    # NPROC is what XLA asks for.
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), threads)
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, **counts, "PYTHONPATH": os.pathsep.join([*map(str, paths), *([before] if before else [])])}


class Worker:
    """A process that makes the steps of one task; a context manager, which ends the process.

    Args:
        task: The task.
        python: The interpreter; this one's own, with this pyrostoch, where none is given.

    Attributes:
        missing: What the route lacks, so that it cannot be run; `None` where it is ready.

    Raises:
        RuntimeError: The route failed.
    """

    def __init__(self, task: Task, python: Path | None = None) -> None:
        self._name = task.route
        paths = [_HERE] if python is not None else [_HERE, _ROOT]
        # To a file, since nobody would empty a pipe.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-P", "-m", "workers", task.write()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=python_environment(*paths),
        )
        try:
            self.missing: str | None = self._answer().get("missing")
        except BaseException:
            self.close()
            raise

    def run(self, blocks: int, steps: int) -> dict[str, Any]:
        """Make blocks of steps.

        Args:
            blocks: Number of blocks.
            steps: Steps of each.

        Returns:
            `seconds` a step of each block, and `peak`, bytes of memory.

        Raises:
            RuntimeError: The process failed.
        """
        if self._process.stdin is not None and self._process.poll() is None:
            self._process.stdin.write(json.dumps({"blocks": blocks, "steps": steps}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if line:
            return dict(json.loads(line))
        code = self._process.wait()
        self._errors.seek(0)
        raise RuntimeError(f"route {self._name!r} failed with exit status {code}:\n{self._errors.read()[-_TAIL:]}")


@dataclass
class Times:
    """What the workers measured.

    Args:
        seconds: For each route and round, the seconds a step of each block.
        missing: For each route that was not run, what it lacks.
    """

    seconds: dict[str, list[list[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def measure(
    tasks: Mapping[str, tuple[Task, Path | None]],
    *,
    rounds: int,
    blocks: int,
    steps: int,
    seed: int = 0,
    tell: Callable[[dict[str, Any]], Any] | None = None,
) -> Times:
    """Measure routes side by side: each is set up in a process of its own, then they take turns.

    A round asks every route for some blocks of steps, one route after the other, in an order that changes from round to
    round; while one works the others wait.

    Args:
        tasks: For each route its task and interpreter, as `Worker` takes them.
        rounds: Number of rounds.
        blocks: Blocks of steps of each route in a round.
        steps: Steps of a block.
        seed: Seed of the orders.
        tell: Told about each round: `epoch`, its number, and a `note`.

    Returns:
        The times.

    Raises:
        RuntimeError: A route failed.
    """
    tell = tell or (lambda row: None)
    found, workers, order = Times(), dict[str, Worker](), random.Random(seed)
    try:
        for name, (task, python) in tasks.items():
            tell({"epoch": 0, "note": f"setting up {name}"})
            workers[name] = Worker(task, python)
            missing = workers[name].missing
            if missing is not None:
                found.missing[name] = missing
                workers.pop(name).close()
            else:
                found.seconds[name] = []
        for number in range(1, rounds + 1):
            for name in order.sample(list(workers), len(workers)):
                found.seconds[name].append(workers[name].run(blocks, steps)["seconds"])
            tell({"epoch": number, "note": f"round {number}"})
    finally:
        for worker in workers.values():
            worker.close()
    return found

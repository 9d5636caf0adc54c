"""Drives the workers: one process for each implementation, one working at a time, in an order that changes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pyrostoch.bench.case import Progress
from pyrostoch.bench.speed.workers.task import Task

__all__ = ["PEERS", "Times", "Worker", "measure", "peer_python", "python_environment"]

#: Environment variable with the folder of the other libraries' virtual environment.
PEERS = "PYROSTOCH_PEERS"

_HERE = Path(__file__).absolute().parent
# The folder that this pyrostoch is imported from.
_ROOT = _HERE.parents[2]
# Characters of a failed worker's error output that are shown, the last ones.
_TAIL = 2000


def peer_python() -> Path | None:
    """The Python interpreter that `make peers` installs, in the folder `PYROSTOCH_PEERS` or else `.venv-peers`.

    Returns:
        Its path; `None` if there is none.
    """
    folder = Path(os.environ.get(PEERS) or ".venv-peers")
    candidates = (folder / "bin" / "python", folder / "Scripts" / "python.exe")
    return next((path.absolute() for path in candidates if path.is_file()), None)


def python_environment(*paths: Path) -> dict[str, str]:
    """The environment variables of a new process, which gets as many threads as torch has in this one.

    Args:
        paths: Folders that come first on its `PYTHONPATH`.
    """
    threads = str(torch.get_num_threads())
    # XLA reads NPROC.
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), threads)
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, **counts, "PYTHONPATH": os.pathsep.join([*map(str, paths), *([before] if before else [])])}


class Worker:
    """A process that makes the steps of one task; a context manager that ends the process.

    Args:
        task: The task.
        python: The interpreter; by default the one of this process, with this pyrostoch.

    Attributes:
        missing: Why the implementation cannot be run here, such as a missing module; `None` if it is ready.

    Raises:
        RuntimeError: The process failed.
    """

    def __init__(self, task: Task, python: Path | None = None) -> None:
        self._name = task.implementation
        paths = [_HERE] if python is not None else [_HERE, _ROOT]
        # To a file, since a pipe that nobody reads would fill up and block the process.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-P", "-m", "workers", task.to_json()],
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
        """Make and time blocks of steps.

        Args:
            blocks: Number of blocks.
            steps: Steps of each block.

        Returns:
            `seconds`, the seconds per step of each block, and `peak`, the process's peak memory in bytes.

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
        raise RuntimeError(
            f"implementation {self._name!r} failed with exit status {code}:\n{self._errors.read()[-_TAIL:]}"
        )


@dataclass
class Times:
    """What the workers measured.

    Args:
        seconds: For each implementation and round, the seconds per step of each block.
        peaks: For each implementation, the peak memory of its process in bytes.
        missing: For each implementation that was not run, why.
    """

    seconds: dict[str, list[list[float]]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def measure(
    tasks: Mapping[str, tuple[Task, Path | None]],
    *,
    rounds: int,
    blocks: int,
    steps: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Times:
    """Time implementations side by side: each is set up in its own process, then they take turns.

    In a round every implementation makes some blocks of steps while the others wait; their order changes from round to
    round.

    Args:
        tasks: For each implementation its task and interpreter, as `Worker` takes them.
        rounds: Number of rounds.
        blocks: Blocks of steps of each implementation in a round.
        steps: Steps of a block.
        seed: Seed of the orders.
        progress: Called after each round with `epoch`, its number, and a `note`.

    Returns:
        The times.

    Raises:
        RuntimeError: A worker's process failed.
    """
    progress = progress or (lambda row: None)
    times, workers, generator = Times(), dict[str, Worker](), random.Random(seed)
    try:
        for name, (task, python) in tasks.items():
            progress({"epoch": 0, "note": f"setting up {name}"})
            workers[name] = Worker(task, python)
            missing = workers[name].missing
            if missing is not None:
                times.missing[name] = missing
                workers.pop(name).close()
            else:
                times.seconds[name] = []
        for number in range(1, rounds + 1):
            for name in generator.sample(list(workers), len(workers)):
                answer = workers[name].run(blocks, steps)
                times.seconds[name].append(answer["seconds"])
                times.peaks[name] = answer["peak"]
            progress({"epoch": number, "note": f"round {number}"})
    finally:
        for worker in workers.values():
            worker.close()
    return times

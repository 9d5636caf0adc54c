"""The worker's process: sets up a route, then makes and times as many steps as it is told to.

It is given a task as its argument, reads a line `{"blocks": n, "steps": m}` for each round from its standard input, and
answers each with a line of its own: the seconds a step of each block of m steps, and the peak of its memory so far. Its
first line says that it is ready, or what is missing.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from .task import Route, Task

__all__ = ["main", "peak_memory", "serve"]

#: File of each route; the part of a name behind its first dash says which one of the file's.
_FILES = {
    **{"torch": "plain", "hand": "plain", "pyro": "stock", "bayesian": "layers", "torchbnn": "layers"},
    **{"numpyro": "jitted", "tyxe": "handled", "pyrostoch": "own", "averaged": "own", "calls": "own"},
}


def peak_memory() -> int:
    """The most bytes that this process has held in memory at a time."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Of this program alone: what getrusage tells begins with the memory of the process that started it.
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(task: Task, orders: TextIO, answers: TextIO) -> None:
    """Set up a route and do what is ordered until there are no more orders.

    Args:
        task: The task.
        orders: Lines to read.
        answers: Where the answers go.
    """

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        file = importlib.import_module(f".{_FILES[task.route.partition('-')[0]]}", __package__)
        route: Route = file.build(task)
    except ModuleNotFoundError as error:
        answer(missing=f"no module {error.name}")
        return
    for number in range(task.warmup):
        route.wait(route.step(number))
    fault = route.fault()
    if fault is not None:
        answer(missing=fault)
        return
    answer(ready=True)
    number = task.warmup
    for line in orders:
        order, seconds = json.loads(line), []
        for _ in range(order["blocks"]):
            begin, last = time.perf_counter(), None
            for _ in range(order["steps"]):
                last = route.step(number)
                number += 1
            route.wait(last)
            seconds.append((time.perf_counter() - begin) / order["steps"])
        answer(seconds=seconds, peak=peak_memory())


def main() -> None:
    """Serve the task of the command line."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(Task.read(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()

"""The worker's process: sets up an implementation, then makes and times as many steps as it is asked for.

Its argument is a task. Its first line of output says that it is ready, or what is missing. Then it reads a line
`{"blocks": n, "steps": m}` for each round from its standard input, and answers with a line that has the seconds per
step of each block of m steps and the process's peak memory so far.
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

from .task import Task, TimedStep

__all__ = ["main", "peak_memory", "serve"]

#: File of each implementation, by the part of its name before the first dash.
_FILES = {
    **dict.fromkeys(("torch", "hand"), "torch_worker"),
    **dict.fromkeys(("bayesian", "torchbnn"), "layers_worker"),
    **{"pyro": "pyro_worker", "numpyro": "numpyro_worker", "tyxe": "tyxe_worker"},
    **dict.fromkeys(("pyrostoch", "averaged", "calls"), "pyrostoch_worker"),
    "adapters": "adapters_worker",
}


def peak_memory() -> int:
    """The peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Of this program alone; getrusage's value starts at the memory of the process that started this one.
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(task: Task, requests: TextIO, answers: TextIO) -> None:
    """Set up an implementation and answer requests until there are no more.

    Args:
        task: The task.
        requests: Lines to read.
        answers: The stream that answers are written to.
    """

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        file = importlib.import_module(f".{_FILES[task.implementation.partition('-')[0]]}", __package__)
        timed: TimedStep = file.build(task)
    except ModuleNotFoundError as error:
        answer(missing=f"no module {error.name}")
        return
    for number in range(task.warmup):
        timed.wait(timed.step(number))
    problem = timed.problem()
    if problem is not None:
        answer(missing=problem)
        return
    answer(ready=True)
    number = task.warmup
    for line in requests:
        request, seconds = json.loads(line), []
        for _ in range(request["blocks"]):
            begin, last = time.perf_counter(), None
            for _ in range(request["steps"]):
                last = timed.step(number)
                number += 1
            timed.wait(last)
            seconds.append((time.perf_counter() - begin) / request["steps"])
        answer(seconds=seconds, peak=peak_memory())


def main() -> None:
    """Run the task of the command line."""
    # Answers get a copy of standard output; what libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(Task.from_json(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()

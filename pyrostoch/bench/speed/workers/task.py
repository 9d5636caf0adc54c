"""What a worker is asked to do, as plain data that is passed to its process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["LR", "NUM_DATA", "SCALE", "Task", "TimedStep"]

#: Size of the data set that the loss is scaled to.
NUM_DATA = 60_000

#: Adam's learning rate.
LR = 1e-3

#: Initial standard deviations of the posterior.
SCALE = 1e-2


@dataclass(frozen=True)
class Task:
    """One implementation, with one network.

    Args:
        implementation: Its name.
        widths: Widths of a multilayer perceptron, from inputs to classes; empty for LeNet5.
        random: Which tensors are random: the weights, the weights of dense layers, or all but those of batch
            normalization.
        examples: Examples in a step.
        draws: Draws of a step that averages predictions.
        warmup: Steps that are made before timing starts.
        device: Torch device.
        seed: Seed of data, network and noise.

    Example:
        >>> task = Task("hand", widths=(4, 3, 2))
        >>> Task.from_json(task.to_json()) == task
        True
    """

    implementation: str
    widths: tuple[int, ...] = ()
    random: Literal["weights", "dense", "all"] = "weights"
    examples: int = 100
    draws: int = 20
    warmup: int = 3
    device: str = "cpu"
    seed: int = 0

    def to_json(self) -> str:
        """The task as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The task from a line of JSON."""
        fields = json.loads(text)
        return cls(**{**fields, "widths": tuple(fields["widths"])})


def _no_problem() -> None:
    """No problem."""


@dataclass(frozen=True)
class TimedStep:
    """A training step that can be repeated and timed.

    Args:
        step: Makes the step with a given number, which selects the batch; returns a result to wait for.
        wait: Waits until that result is computed.
        problem: Says, after the warm-up steps, why these are not steps of the named implementation, such as a failed
            compilation; `None` if they are.
    """

    step: Callable[[int], Any]
    wait: Callable[[Any], None]
    problem: Callable[[], str | None] = _no_problem

"""What a worker is asked to do, as plain data that crosses from process to process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["LR", "NUM_DATA", "SCALE", "Route", "Task"]

#: Examples that the loss is scaled to.
NUM_DATA = 60_000

#: Adam's rate.
LR = 1e-3

#: Standard deviations at the start.
SCALE = 1e-2


@dataclass(frozen=True)
class Task:
    """One route through one network.

    Args:
        route: The route's name.
        widths: Widths of a multilayer perceptron, from inputs to classes; empty for LeNet5.
        random: Which tensors are random: the weights, the dense layers' weights, or all but those of batch
            normalization.
        examples: Examples a step.
        draws: Draws, where a step averages predictions.
        warmup: Steps made before any is timed.
        device: Torch device.
        seed: Seed of data, network and noise.

    Example:
        >>> task = Task("hand", widths=(4, 3, 2))
        >>> Task.read(task.write()) == task
        True
    """

    route: str
    widths: tuple[int, ...] = ()
    random: Literal["weights", "dense", "all"] = "weights"
    examples: int = 100
    draws: int = 20
    warmup: int = 3
    device: str = "cpu"
    seed: int = 0

    def write(self) -> str:
        """The task as a line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Task:
        """The task that a line of text holds."""
        fields = json.loads(text)
        return cls(**{**fields, "widths": tuple(fields["widths"])})


def _no_fault() -> None:
    """Nothing is wrong."""


@dataclass(frozen=True)
class Route:
    """A step that can be made again and again.

    Args:
        step: Makes the step of a number, which chooses the batch, and returns what has to be waited for.
        wait: Waits until that is computed.
        fault: Says, after the first steps, why this is not the route it is called; `None` where it is.
    """

    step: Callable[[int], Any]
    wait: Callable[[Any], None]
    fault: Callable[[], str | None] = _no_fault

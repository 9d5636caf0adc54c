"""Schedules of the learning rate and of the weight of the KL, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pyrostoch._checks import check_choice

__all__ = ["SCHEDULES", "Schedule", "ScheduleName", "kl_weight", "rate_factor"]

ScheduleName = Literal["linear", "cosine", "constant"]
#: A name, or a function of the user's: the factor of the learning rate by the fraction of steps already made.
Schedule = ScheduleName | Callable[[float], float]

#: The factor of the learning rate, as a function of the fraction of steps already made.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}


def rate_factor(schedule: Schedule | str, step: int, steps: int) -> float:
    r"""The factor of the learning rate at one step: 1 at the first step, falling to 0 at the end of the run.

    With $t$ of $T$ steps made: $1 - t/T$ (`"linear"`), $(1 + \cos \pi t/T)/2$ (`"cosine"`), or 1 (`"constant"`).

    Args:
        schedule: Name of the schedule, or a function of the fraction $t/T$.
        step: Number of steps already made.
        steps: Number of steps of the whole run.

    Returns:
        A number from 0 to 1; of a function what it returns.

    Raises:
        ValueError: The name is unknown, or the function returned no finite number from 0 up.

    Example:
        >>> [rate_factor("linear", step, 4) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> rate_factor("cosine", 2, 4)
        0.5

    References:
        For the cosine: Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.
    """
    if not callable(schedule):
        return SCHEDULES[check_choice("schedule", schedule, SCHEDULES)](step / steps)
    factor = float(schedule(step / steps))
    if not math.isfinite(factor) or factor < 0:
        raise ValueError(f"schedule: expected a factor from 0 up at the fraction {step / steps:g}, got {factor}")
    return factor


def kl_weight(step: int, steps_per_epoch: int, warmup: float | tuple[float, float]) -> float:
    """The weight of the KL at one step: 0 at the first step, rising linearly to 1 after `warmup` epochs.

    Args:
        step: Number of steps already made.
        steps_per_epoch: Number of steps in an epoch.
        warmup: Length of the warm-up in epochs, not necessarily whole; 0 for none. Or a pair: the numbers of epochs
            after which the weight begins to rise, and after which it is 1.

    Returns:
        A number from 0 to 1.

    Example:
        >>> [kl_weight(step, 2, warmup=2.0) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
        >>> [kl_weight(step, 1, warmup=(2.0, 4.0)) for step in range(5)]
        [0.0, 0.0, 0.0, 0.5, 1.0]

    References:
        Sønderby, Raiko, Maaløe, Sønderby, Winther, "Ladder variational autoencoders", 2016.
    """
    begin, end = warmup if isinstance(warmup, tuple) else (0.0, warmup)
    done = step / steps_per_epoch
    return 1.0 if done >= end else max(0.0, done - begin) / (end - begin)

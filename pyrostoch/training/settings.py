"""The settings that determine the result of a training run; they are checked, and compared when it is resumed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyrostoch._checks import check_choice, check_count, check_positive, name_list
from pyrostoch.infer.elbo import ESTIMATORS
from pyrostoch.safefile import CheckpointError
from pyrostoch.training.schedule import SCHEDULES

__all__ = ["OWN", "Settings", "check_same_run"]

#: With this the text of a schedule of the user's begins.
OWN = "own: "


@dataclass(frozen=True)
class Settings:
    """The settings of `fit` that determine its result, by the same names; functions of the user's as texts.

    Raises:
        ValueError: A setting is out of range; it is named.

    Example:
        >>> Settings(epochs=0)
        Traceback (most recent call last):
        ...
        ValueError: epochs: expected a whole number from 1 up, got 0
    """

    epochs: int
    patience: int | None = None
    estimator: str = "local"
    num_particles: int = 1
    lr: float = 1e-3
    lr_alpha: float | None = None
    schedule: str = "linear"
    kl_warmup: float | tuple[float, float] = 0.0
    rate_weight: float = 1.0
    noise_weight: float = 0.0
    clip: float | None = None
    precision: str = "float32"
    seed: int | None = None
    labels: str | None = None
    optimizer: str = "Adam"
    temperature: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("num_particles", 1), ("accumulate", 1), ("patience", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None or name not in ("patience", "seed"):
                # As Python's own integer, which a checkpoint can hold.
                object.__setattr__(self, name, check_count(name, value, least))
        check_positive("lr", self.lr)
        check_positive("temperature", self.temperature)
        for name in ("lr_alpha", "clip"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        _check_warmup(self.kl_warmup)
        for name in ("rate_weight", "noise_weight"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}: expected a number from 0 up, got {value!r}")
        check_choice("estimator", self.estimator, ESTIMATORS)
        if not self.schedule.startswith(OWN):
            check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, ("float32", "bf16"))

    def to_plain(self, **data: object) -> dict[str, Any]:
        """The settings as plain data for a checkpoint, equal to what JSON reads back: tuples become lists.

        Args:
            data: Facts about the data, which are added.
        """
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()} | data


def check_same_run(path: Path, training: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise an error if a run is resumed with settings that would have given another result.

    With `schedule="constant"` the number of epochs may be raised, since that does not change the steps already made.

    Args:
        path: The checkpoint, for the message.
        training: The entry `"training"` of the checkpoint, as `read_training` has found it to be right in itself.
        now: The present settings, from `Settings.to_plain`.

    Raises:
        CheckpointError: A setting differs; it is named.
    """
    before = training["settings"]
    if other := sorted(now.keys() ^ before.keys()):
        raise CheckpointError(
            f"checkpoint {path}: expected the settings {name_list(sorted(now), 99)}, but {name_list(other)} are in one "
            "of file and call only; start a new run at another path"
        )
    for name in sorted(now):
        if now.get(name) == before.get(name):
            continue
        why = "that would change the result of the epochs already made"
        if name == "epochs" and now[name] > before[name] and before.get("schedule") == "constant":
            if before.get("patience") is None or training["stopped"] is None:
                continue
            why = "early stopping has restored the best parameters, from which the run would not continue as before"
        raise CheckpointError(
            f"checkpoint {path}: the run was started with {name}={before.get(name)!r} and cannot be resumed with "
            f"{name}={now.get(name)!r}: {why}. Resume it with its own settings, or start a new run at another path"
        )


def _check_warmup(warmup: Any) -> None:
    ends = warmup if isinstance(warmup, tuple) else (warmup, warmup)
    numbers = len(ends) == 2 and all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends)
    if not (numbers and 0 <= ends[0] <= ends[1]) or (isinstance(warmup, tuple) and ends[0] == ends[1]):
        raise ValueError(
            f"kl_warmup: expected a number of epochs from 0 up, or a pair of them in rising order, got {warmup!r}"
        )

"""How the networks of a benchmark are trained: the settings of a recipe, and how a command line changes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyrostoch._checks import check_choice, name_list
from pyrostoch.infer.elbo import ESTIMATORS, Estimator
from pyrostoch.training.schedule import SCHEDULES, Schedule

__all__ = ["Recipe"]

_WHOLE = ("epochs", "batch_size", "examples")
_WORDS: dict[str, Mapping[str, Any]] = {"schedule": SCHEDULES, "estimator": ESTIMATORS}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and how its guide starts.

    Args:
        epochs: Passes through the training data; rounds, where a trial is of a kind of its own.
        batch_size: Examples a step.
        lr: Learning rate at the start.
        lr_alpha: Learning rate of log alpha at the start; `lr` where it is not given.
        init_log_alpha: Where log alpha starts, for guides that have one.
        init_scale: Where the standard deviations of an additive guide start.
        schedule: How the rates fall.
        kl_warmup: Epochs until the KL has its full weight; a pair of epochs between which it rises.
        estimator: How random weights are treated in training.
        examples: Training examples used, the first ones, and at most so many test examples; all of them where it is
            not given.
    """

    epochs: int
    batch_size: int = 200
    lr: float = 1e-3
    lr_alpha: float | None = None
    init_log_alpha: float = -5.0
    init_scale: float = 1e-2
    schedule: Schedule = "linear"
    kl_warmup: float | tuple[float, float] = 0.0
    estimator: Estimator = "local"
    examples: int | None = None

    def changed(self, settings: Mapping[str, str]) -> Recipe:
        """The recipe with some settings changed, as they are written on a command line.

        Args:
            settings: Values by name.

        Returns:
            Another recipe.

        Raises:
            ValueError: A name is unknown, or a value is of another kind.

        Example:
            >>> Recipe(epochs=5).changed({"lr": "0.01", "epochs": "7"}).lr
            0.01
        """
        known = vars(self)
        changes: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in known:
                raise ValueError(f"recipe: no setting {name!r}; it has {name_list(known, len(known))}")
            if name in _WORDS:
                changes[name] = check_choice(f"recipe: {name}", text, _WORDS[name])
                continue
            try:
                changes[name] = int(text) if name in _WHOLE else float(text)
            except ValueError:
                kind = "whole number" if name in _WHOLE else "number"
                raise ValueError(f"recipe: {name}: expected a {kind}, got {text!r}") from None
        return replace(self, **changes)

"""Recipes: how the networks of a benchmark are trained, and how a command line changes that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyrostoch._checks import check_choice, name_list
from pyrostoch.infer.elbo import ESTIMATORS, Estimator
from pyrostoch.training.schedule import SCHEDULES, Schedule

__all__ = ["AuditRecipe", "PosteriorRecipe", "ProgressiveRecipe", "Recipe", "SceneAuditRecipe", "SceneRecipe", "Timing"]

_INTEGERS = (
    "epochs",
    "batch_size",
    "examples",
    "second_epochs",
    "scenes",
    "clips",
    "width",
    "size",
    "clean_epochs",
    "layer_epochs",
    "attackers",
    "attack_epochs",
    "most_epochs",
    "inverted",
    "hidden",
    "warmup",
    "draws",
    "chains",
)
_CHOICES: dict[str, Mapping[str, Any]] = {"schedule": SCHEDULES, "estimator": ESTIMATORS}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and how its guide starts.

    Args:
        epochs: Passes through the training data; for a custom trial without training, the number of rounds measured.
        batch_size: Examples in a step.
        lr: Initial learning rate.
        lr_alpha: Initial learning rate of log alpha; `lr` by default.
        init_log_alpha: Initial log alpha, for guides that have one.
        init_scale: Initial standard deviations of an additive guide.
        schedule: How the learning rates fall.
        kl_warmup: Epochs until the KL has its full weight, or a pair of epochs between which its weight rises.
        estimator: How random weights are treated in training.
        rate_weight: Weight of the rate of random activations; 1 by default.
        noise_weight: Weight of the size of the noise of random activations; 0 by default.
        examples: Use only the first so many training and test examples; all by default.
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
    rate_weight: float | None = None
    noise_weight: float | None = None
    examples: int | None = None

    def changed(self, settings: Mapping[str, str]) -> Recipe:
        """The recipe with some fields changed to values given as text, as on a command line.

        Args:
            settings: Values by the field's name.

        Returns:
            A new recipe.

        Raises:
            ValueError: There is no such field, or the value is not of its type.

        Example:
            >>> Recipe(epochs=5).changed({"lr": "0.01", "epochs": "7"}).lr
            0.01
        """
        fields = vars(self)
        changes: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in fields:
                raise ValueError(f"recipe: no setting {name!r}; it has {name_list(fields, len(fields))}")
            if name in _CHOICES:
                changes[name] = check_choice(f"recipe: {name}", text, _CHOICES[name])
                continue
            try:
                changes[name] = int(text) if name in _INTEGERS else float(text)
            except ValueError:
                kind = "whole number" if name in _INTEGERS else "number"
                raise ValueError(f"recipe: {name}: expected a {kind}, got {text!r}") from None
        return replace(self, **changes)


@dataclass(frozen=True)
class Timing(Recipe):
    """A recipe for the bench `speed`: `epochs` rounds of some blocks of steps, of `batch_size` examples each.

    Args:
        blocks: Blocks in a round.
        steps: Steps in a block, between two readings of the clock.
        peers: Whether all implementations are timed, or those of pyrostoch only.
    """

    blocks: int = 1
    steps: int = 1
    peers: bool = True


@dataclass(frozen=True)
class SceneRecipe(Recipe):
    """A recipe for detection: `epochs` with known classes of pixels, then `second_epochs` under a selection.

    Args:
        second_epochs: Epochs of the second step.
        scenes: Number of training scenes; there are a fifth as many for the scores.
        clips: Number of clips for the scores of tracking.
        width: Channels of the detector's first convolution.
        size: Height and width of a scene.
        digits: The fewest and the most digits of a scene.
    """

    second_epochs: int = 1
    scenes: int = 100
    clips: int = 4
    width: int = 16
    size: int = 96
    digits: tuple[int, int] = (2, 5)


@dataclass(frozen=True)
class PosteriorRecipe(Recipe):
    """A recipe for posteriors of a small network: `epochs` steps on all data, in the time of the additive guide.

    Args:
        hidden: Width of the hidden layer.
        warmup: Draws of each chain of the reference that adapt the sampler.
        draws: Further draws of each chain.
        chains: Number of chains.
    """

    hidden: int = 50
    warmup: int = 1000
    draws: int = 1000
    chains: int = 4


@dataclass(frozen=True)
class ProgressiveRecipe(Recipe):
    """A recipe for progressive training: `epochs` on clean and obfuscated examples in each stage.

    Args:
        clean_epochs: Epochs on the clean part.
        layer_epochs: Epochs of the layer of noise, and as many of its selection.
        layer_scale: Standard deviation at which the noise starts.
    """

    clean_epochs: int = 1
    layer_epochs: int = 1
    layer_scale: float = 0.3


@dataclass(frozen=True)
class AuditRecipe(Recipe):
    """A recipe for an audit: `clean_epochs` without noise, then `epochs` under noise of each strength.

    Args:
        clean_epochs: Epochs of the network without noise.
        attackers: Number of the attackers' examples.
        attack_epochs: The attackers' budget of epochs where there is no noise.
        most_epochs: The largest number of their epochs on noise.
        inverted: Number of test examples that are attacked by optimization.
    """

    clean_epochs: int = 1
    attackers: int = 1000
    attack_epochs: int = 1
    most_epochs: int = 1
    inverted: int = 0


@dataclass(frozen=True)
class SceneAuditRecipe(SceneRecipe):
    """A recipe for an attack on scenes: `epochs` of the clean detector, then both steps under noise.

    Args:
        layer_epochs: Epochs of the first step under noise; `second_epochs` are those of the second one.
        attackers: Number of the attackers' scenes.
        attack_epochs: Their budget of epochs where there is no noise.
        most_epochs: The largest number of their epochs on noise.
    """

    layer_epochs: int = 1
    attackers: int = 100
    attack_epochs: int = 1
    most_epochs: int = 1

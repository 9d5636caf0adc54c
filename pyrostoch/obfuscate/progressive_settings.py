"""What progressive training is given, checked before anything is trained."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count, check_finite, name_list, suggest
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate.examples import indexed, tensors_of
from pyrostoch.obfuscate.screening import Screening
from pyrostoch.prediction.compare import compare
from pyrostoch.prediction.readouts import seeded
from pyrostoch.protocols import Data
from pyrostoch.training.fit import fit

__all__ = ["STEPS", "Score", "check_fit_settings", "counts_of", "epochs_of", "examples_of", "measured_by", "order_of"]

STEPS = ("clean", "classes", "selection", "mixed")

#: Tells how good a model is on clean examples; a larger number is better.
Score = Callable[[BayesianModel, Any], float]


def examples_of(data: Data, screening: Screening | None) -> Any:
    """The examples as a data set, of which one is tried with the screening.

    Args:
        data: As the training takes them.
        screening: What hides parts of them.

    Raises:
        ValueError: Inputs are not finite, or smaller than a patch.
    """
    pairs = indexed(data, "progressive data")
    check_finite("progressive data", tuple(tensors_of(pairs)))
    if screening is not None and len(pairs):
        with seeded(0, None):
            screening(pairs[0][0][None])
    return pairs


def measured_by(score: Score | None, validation: Data | None) -> Score:
    """The score, which must be a number; by default the accuracy by the mean.

    Args:
        score: A score of the user's own.
        validation: Clean held-out data for the default one.

    Raises:
        ValueError: There is neither.
    """
    if score is None and validation is None:
        raise ValueError(
            "progressive: give validation=(x, y) for the accuracy of every stage, or a score= of your own"
            f"{see('how-to/progressive_training')}"
        )

    held_out: Any = validation

    def own(model: BayesianModel, guide: Any) -> float:
        if score is None:
            row: Any = compare(model, guide, held_out, modes=("mean",)).rows[0]
            if not hasattr(row, "accuracy"):
                raise ValueError(
                    "progressive: the model's targets have no accuracy; give score=, a function of (model, guide), "
                    f"such as the negative error on held-out data{see('how-to/progressive_training')}"
                )
            return float(row.accuracy)
        found: Any = score(model, guide)
        value = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
        if not isinstance(value, numbers.Real) or math.isnan(value):
            raise ValueError(
                f"progressive score: expected a function of (model, guide) that returns a number, where a larger one "
                f"is better, got {found!r}{see('how-to/progressive_training')}"
            )
        return float(value)

    return own


def counts_of(shares: Sequence[float], total: int) -> list[int]:
    """The number of clean examples of each stage.

    Args:
        shares: The clean share of each stage.
        total: Number of examples.

    Raises:
        ValueError: The shares do not rise from above 0 to at most 1, or the first one has fewer than two examples.
    """
    values = [float(share) for share in shares] if isinstance(shares, Sequence) and not isinstance(shares, str) else []
    rising = all(a < b for a, b in zip(values, values[1:], strict=False))
    if not values or not rising or not 0 < values[0] or not values[-1] <= 1:
        raise ValueError(
            f"progressive shares: expected rising numbers above 0 and up to 1, such as (0.05, 0.1), got {shares!r}"
            f"{see('how-to/progressive_training')}"
        )
    counts = [round(share * total) for share in values]
    if counts[0] < 2:
        raise ValueError(
            f"progressive shares: {values[0]:g} of {total} examples are {counts[0]}; expected at least two clean ones, "
            f"beside which the noise can be measured{see('how-to/progressive_training')}"
        )
    return counts


def order_of(order: Tensor | None, total: int, least: int, seed: int) -> Tensor:
    """All examples, in the order in which they become clean.

    Args:
        order: The order that is wanted, or its first part; random by default.
        total: Number of examples.
        least: How many become clean.
        seed: Seed of a random order.

    Raises:
        ValueError: It is no order of the examples, or too short.
    """
    if order is None:
        return torch.randperm(total, generator=torch.Generator().manual_seed(mixed_seed(seed, 0)))
    order = torch.as_tensor(order)
    known = order.dim() == 1 and not order.is_floating_point() and order.dtype != torch.bool
    repeated = len(order) - len(order.unique()) if known else 0
    outside = int(((order < 0) | (order >= total)).sum()) if known else 0
    if not known or repeated or outside:
        got = f"{repeated} repeated and {outside} outside" if known else f"{order.dtype} of shape {tuple(order.shape)}"
        raise ValueError(
            f"progressive order: expected the numbers of examples, from 0 to {total - 1}, each at most once, got {got}"
            f"{see('how-to/progressive_training')}"
        )
    if len(order) < least:
        raise ValueError(
            f"progressive order: expected at least {least} examples for the largest share, got {len(order)}"
        )
    others = torch.ones(total, dtype=torch.bool)
    others[order] = False
    return torch.cat([order.cpu().long(), others.nonzero().flatten()])


def epochs_of(epochs: Mapping[str, int], selection: nn.Module | None) -> dict[str, int]:
    """The number of epochs of each step.

    Args:
        epochs: Numbers by step.
        selection: The selection, without which there is no such step.

    Raises:
        ValueError: A step is missing or unknown, or a number is not positive.
    """
    needed = [step for step in STEPS if step != "selection" or selection is not None]
    if not isinstance(epochs, Mapping) or set(epochs) != set(needed):
        got = name_list(epochs) if isinstance(epochs, Mapping) else repr(epochs)
        unknown = [step for step in epochs if step not in needed] if isinstance(epochs, Mapping) else []
        raise ValueError(
            f"progressive epochs: expected a number for each step, {name_list(needed)}, got {got}"
            f"{suggest(unknown[0], needed) if unknown else ''}{see('how-to/progressive_training')}"
        )
    return {step: check_count(f"progressive epochs[{step!r}]", count) for step, count in epochs.items()}


def check_fit_settings(
    what: str, settings: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]] | None
) -> Mapping[str, Mapping[str, Any]]:
    """Settings of `fit` for single steps; those for all steps are checked, too.

    Args:
        what: Begins the messages.
        settings: Settings for all steps.
        steps: Settings by step.

    Raises:
        ValueError: A step or a setting is unknown, or belongs to a step that has noise.
    """
    known = [name for name, part in inspect.signature(fit).parameters.items() if part.kind is part.KEYWORD_ONLY]
    for step, own in {"": settings, **(steps or {})}.items():
        if step:
            check_choice(f"{what} steps", step, STEPS)
        for name in own:
            if name not in known:
                raise ValueError(
                    f"{what} settings: {name!r} is no setting of fit{suggest(name, known)}"
                    f"{see('how-to/progressive_training')}"
                )
    if "noise_weight" in settings:
        raise ValueError(
            f"{what} noise_weight: there is noise in the step 'classes' alone; give "
            f"steps={{'classes': {{'noise_weight': {settings['noise_weight']}}}}}{see('how-to/progressive_training')}"
        )
    return steps or {}

"""Whose running statistics a network holds, where several guides of one model are trained one after another."""

from __future__ import annotations

import uuid
import warnings
from typing import Any

from torch import nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.guides.amortised import weights_of
from pyrostoch.guides.ensemble import Ensemble
from pyrostoch.guides.samples import Samples
from pyrostoch.guides.sets import GuideSet
from pyrostoch.guides.statistics import layers_with_statistics, statistics_of

__all__ = ["note_owner", "owners", "set_owners", "share_owner", "warn_of_other_owner"]

# An attribute of the modules themselves, so that copies keep it. Guide and model have the same text after a run.
_ATTRIBUTE = "_statistics_of_run"


def note_owner(model: nn.Module, guide: nn.Module) -> None:
    """Note that the network's running statistics become those of a guide, unless it has its own.

    Args:
        model: The model.
        guide: The guide that a run trains, or that is loaded with the model.
    """
    weights: Any = weights_of(guide)
    found = statistics_of(weights)
    # A chain runs on the network's, whatever its draws have; so does SWAG, unless it started from a member.
    apart = isinstance(weights, Ensemble) or (found is not None and found.names and not isinstance(weights, Samples))
    if not apart and layers_with_statistics(getattr(model, "net", None)):
        set_owners(model, guide, (uuid.uuid4().hex,) * 2)


def owners(model: nn.Module, guide: nn.Module) -> tuple[str | None, str | None]:
    """The present notes of model and guide, for `set_owners`.

    Args:
        model: The model.
        guide: The guide.
    """
    weights: Any = weights_of(guide)
    return vars(model).get(_ATTRIBUTE), vars(weights).get(_ATTRIBUTE)


def set_owners(model: nn.Module, guide: nn.Module, notes: tuple[str | None, str | None]) -> None:
    """Put back the notes of model and guide.

    Args:
        model: The model.
        guide: The guide.
        notes: From `owners`.
    """
    weights: Any = weights_of(guide)
    for part, note in zip((model, weights), notes, strict=True):
        vars(part).pop(_ATTRIBUTE, None)
        if note is not None:
            vars(part)[_ATTRIBUTE] = note


def share_owner(guide: nn.Module, source: object) -> None:
    """Note that a guide has the statistics of another, at whose weights it stands.

    Args:
        guide: The new guide.
        source: What it starts from; anything that no run has trained is left alone.
    """
    note = vars(source).get(_ATTRIBUTE) if isinstance(source, nn.Module) else None
    if note is not None:
        vars(guide)[_ATTRIBUTE] = note


def warn_of_other_owner(model: object, guide: object) -> None:
    """Warn where a guide is read with running statistics that a later run of another guide has left in the network.

    Args:
        model: The model.
        guide: The guide.

    Warns:
        UserWarning: It is so; the layers are named.
    """
    if not isinstance(model, nn.Module) or not isinstance(guide, nn.Module):
        return
    held, own = owners(model, guide)
    weights: Any = weights_of(guide)
    if held is None or own is None or held == own or not _shares(weights):
        return
    layers = layers_with_statistics(getattr(model, "net", None))
    warnings.warn(
        f"guide {type(weights).__name__}: expected the running statistics of its own training, but the layer(s) "
        f"{name_list(layers)} have those of another guide, trained or loaded later; compute them by "
        f"fit_statistics(model, guide, train), or build a model for each guide{see('how-to/ensembles')}",
        UserWarning,
        stacklevel=4,
    )


def _shares(weights: nn.Module) -> bool:
    """Whether a guide is read with the network's own statistics."""
    return not isinstance(weights, GuideSet) and statistics_of(weights) is None

"""The temperature at which a guide was trained, which every table of it states where it is not 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = [
    "carry_temperatures",
    "check_temperatures",
    "mark_temperature",
    "marked_temperatures",
    "set_temperatures",
    "temperature_text",
    "temperatures_of",
]

# An attribute of the module itself, so that copies keep it and `save` finds it.
_ATTRIBUTE = "_trained_at_temperature"


def mark_temperature(guide: nn.Module, temperature: float) -> None:
    """Note the temperature at which a guide is trained; an earlier note of it or of its parts is replaced.

    Guides within it, such as the members of an ensemble, get the note, too: each may be read by itself.

    Args:
        guide: The guide.
        temperature: The temperature.
    """
    own = [name for name, part in guide.named_modules() if part is guide or hasattr(part, "site_names")]
    set_temperatures(guide, {} if temperature == 1.0 else dict.fromkeys(own, [temperature]))


def carry_temperatures(guide: nn.Module, *sources: object) -> None:
    """Note on a guide that was made from others the temperatures at which these were trained, until it is trained.

    Args:
        guide: The new guide; without a temperature other than 1 in its sources it is left as it is.
        sources: What it was made from; anything that is no guide has no temperature.
    """
    found = sorted({value for source in sources for value in temperatures_of(source)})
    if found:
        vars(guide)[_ATTRIBUTE] = found


def marked_temperatures(guide: nn.Module) -> dict[str, list[float]]:
    """The temperatures other than 1, by the name of the module that was trained at them, or made from such.

    Args:
        guide: The guide.
    """
    return {name: vars(part)[_ATTRIBUTE] for name, part in guide.named_modules() if _ATTRIBUTE in vars(part)}


def check_temperatures(guide: nn.Module, temperatures: Mapping[str, Any]) -> None:
    """Raise an error for temperatures from a file that a guide cannot have.

    Args:
        guide: The guide.
        temperatures: Temperatures by name of the module.

    Raises:
        ValueError: A name is unknown, or a temperature is no positive number.
    """
    parts = dict(guide.named_modules())
    for name, value in temperatures.items():
        if name not in parts:
            raise ValueError(f"the guide has no part {name!r}")
        numbers = value if isinstance(value, list) else []
        if not numbers or not all(isinstance(one, (int, float)) and 0 < one < math.inf for one in numbers):
            raise ValueError(f"expected positive numbers, got {value!r}")


def set_temperatures(guide: nn.Module, temperatures: Mapping[str, list[float]]) -> None:
    """Put back what `marked_temperatures` gave; earlier notes are removed.

    Args:
        guide: A guide built in the same way.
        temperatures: Temperatures by name of the module.
    """
    for name, part in guide.named_modules():
        vars(part).pop(_ATTRIBUTE, None)
        if name in temperatures:
            vars(part)[_ATTRIBUTE] = [float(one) for one in temperatures[name]]


def temperatures_of(guide: Any) -> tuple[float, ...]:
    """The temperatures at which a guide or parts of it were trained, in rising order; empty where all of them are 1.

    Args:
        guide: Any guide.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = ps.guides.Additive(model)
        >>> mark_temperature(guide, 0.5)
        >>> temperatures_of(guide), temperature_text(temperatures_of(guide))
        ((0.5,), 'trained at temperature 0.5')
    """
    marks = marked_temperatures(guide).values() if isinstance(guide, nn.Module) else ()
    return tuple(sorted({one for mark in marks for one in mark}))


def temperature_text(temperatures: tuple[float, ...]) -> str:
    """A phrase for tables; empty where there is nothing to say.

    Args:
        temperatures: From `temperatures_of`.
    """
    if not temperatures:
        return ""
    values = ", ".join(f"{value:g}" for value in temperatures)
    return f"trained at temperature {values}" if len(temperatures) == 1 else f"parts trained at temperatures {values}"

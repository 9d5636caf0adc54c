"""The temperature at which a guide was trained, which every table of it states where it is not 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = [
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

    Args:
        guide: The guide.
        temperature: The temperature.
    """
    set_temperatures(guide, {} if temperature == 1.0 else {"": temperature})


def marked_temperatures(guide: nn.Module) -> dict[str, float]:
    """The temperatures other than 1, by the name of the module that was trained at them.

    Args:
        guide: The guide.
    """
    return {name: vars(part)[_ATTRIBUTE] for name, part in guide.named_modules() if _ATTRIBUTE in vars(part)}


def check_temperatures(guide: nn.Module, temperatures: Mapping[str, Any]) -> None:
    """Raise an error for temperatures from a file that a guide cannot have.

    Args:
        guide: The guide.
        temperatures: Temperature by name of the module.

    Raises:
        ValueError: A name is unknown, or a temperature is no positive number.
    """
    parts = dict(guide.named_modules())
    for name, value in temperatures.items():
        if name not in parts:
            raise ValueError(f"the guide has no part {name!r}")
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"expected a positive number, got {value!r}")


def set_temperatures(guide: nn.Module, temperatures: Mapping[str, float]) -> None:
    """Put back what `marked_temperatures` gave; earlier notes are removed.

    Args:
        guide: A guide built in the same way.
        temperatures: Temperature by name of the module.
    """
    for name, part in guide.named_modules():
        vars(part).pop(_ATTRIBUTE, None)
        if name in temperatures:
            vars(part)[_ATTRIBUTE] = float(temperatures[name])


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
    return tuple(sorted(set(marked_temperatures(guide).values()))) if isinstance(guide, nn.Module) else ()


def temperature_text(temperatures: tuple[float, ...]) -> str:
    """A phrase for tables; empty where there is nothing to say.

    Args:
        temperatures: From `temperatures_of`.
    """
    if not temperatures:
        return ""
    values = ", ".join(f"{value:g}" for value in temperatures)
    return f"trained at temperature {values}" if len(temperatures) == 1 else f"parts trained at temperatures {values}"

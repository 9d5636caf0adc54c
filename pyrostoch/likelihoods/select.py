"""Which part of what a network returns a likelihood reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see
from pyrostoch._structure import Structure, flat_inputs
from pyrostoch.moments import Moments

__all__ = ["select_output"]


def select_output(output: Any, which: str | int | None, title: str) -> Tensor | Moments:
    """The tensor, or moments, that a likelihood reads of a network's output.

    Args:
        output: A tensor, or tensors in tuples, dictionaries and dataclasses.
        which: A key, the name of a field, or a position; by default the only tensor there is.
        title: Name of the likelihood, for messages.

    Raises:
        TypeError: There are several tensors, or none; or there is no such part.

    Example:
        >>> import torch
        >>> select_output({"logits": torch.zeros(2, 3), "loss": None}, None, "Categorical").shape
        torch.Size([2, 3])
    """
    if which is not None:
        return _named(output, which, title)
    if isinstance(output, (Tensor, Moments)):
        return output
    candidates = _candidates(output)
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    found = f"several tensors, {name_list(candidates, 12)}" if candidates else "no tensor"
    advice = "say which it reads: output=" + repr(_plain(next(iter(candidates)))) if candidates else "return one"
    raise TypeError(
        f"likelihood {title}: expected a network output with one tensor, got a {type(output).__name__} with {found}; "
        f"{advice}, or give a function as the likelihood, such as lambda out: dist.Categorical(logits=out.logits)"
        f"{see('how-to/write_a_likelihood')}"
    )


def _candidates(output: Any) -> dict[str, Tensor | Moments]:
    if isinstance(output, Moments) or not isinstance(output, (tuple, list, Mapping)) and not _is_fields(output):
        return {}
    # A mapping that is a dataclass, too, as HuggingFace's outputs are, has fields.
    flat = flat_inputs(output)
    if isinstance(flat, tuple) and flat and isinstance(flat[-1], Structure):
        parts, names = flat[:-1], flat[-1].names
    else:
        parts, names = tuple(flat), tuple(f"[{index}]" for index in range(len(flat)))
    return {name: part for name, part in zip(names, parts, strict=True) if isinstance(part, (Tensor, Moments))}


def _is_fields(output: object) -> bool:
    return dataclasses.is_dataclass(output) and not isinstance(output, type)


def _plain(name: str) -> str | int:
    """The key, field or position that a name such as `['logits']` or `[0]` stands for."""
    inner = name.lstrip(".").split("].")[0].strip("[]")
    return int(inner) if inner.isdecimal() else inner.strip("'\"")


def _named(output: Any, which: str | int, title: str) -> Tensor | Moments:
    missing = object()
    found: Any = missing
    if isinstance(which, int):
        if isinstance(output, (tuple, list)) and -len(output) <= which < len(output):
            found = output[which]
    elif isinstance(output, Mapping) and which in output:
        found = output[which]
    elif not isinstance(output, (Tensor, Moments)):
        found = getattr(output, which, missing)
    if isinstance(found, (Tensor, Moments)):
        return found
    if found is not missing:
        raise TypeError(f"likelihood {title}: expected a tensor as output={which!r}, got {type(found).__name__}")
    if isinstance(which, str) and isinstance(output, (tuple, list)) and which.lstrip("-").isdecimal():
        raise TypeError(f"likelihood {title}: the parts of a {type(output).__name__} have positions: output={which}")
    names = [str(_plain(name)) for name in _candidates(output)]
    has = f"with {name_list(names)}" if names else "as such"
    raise TypeError(
        f"likelihood {title}: the network's output has no part {which!r}; it is a {type(output).__name__} {has}"
        f"{suggest(str(which), names)}"
    )

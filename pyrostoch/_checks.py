"""Checks of users' arguments. Each error message names the argument, what was expected and what was given."""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "as_mask",
    "check_choice",
    "check_count",
    "check_finite",
    "check_positive",
    "is_rising",
    "name_list",
    "suggest",
]


def name_list(names: Iterable[str], limit: int = 8) -> str:
    """Names in quotes, separated by commas; beyond `limit` names, only the number of the others."""
    quoted = [repr(name) for name in names]
    more = f", ... ({len(quoted) - limit} more)" if len(quoted) > limit else ""
    return ", ".join(quoted[:limit]) + more


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` with the most similar known word, or an empty string where none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(what: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of the known names, else raise a `ValueError` that lists them."""
    names = list(known)
    if value not in names:
        raise ValueError(f"{what}: expected one of {name_list(names)}, got {value!r}{suggest(str(value), names)}")
    return value


def as_mask(mask: Tensor, what: str) -> Tensor:
    """A mask as booleans: it is boolean, or has 0 and one positive value only, else a `ValueError` says so."""
    if mask.dtype == torch.bool:
        return mask
    there = mask != 0
    values = mask[there]
    if values.numel() and not bool((values == values.flatten()[0]).all() & (values > 0).all()):
        raise ValueError(
            f"{what}: expected masks that are boolean, or have 0 and one positive value, such as 0 and 255, got values "
            f"from {mask.min().item():g} to {mask.max().item():g}; compare soft masks with a threshold"
        )
    return there


def check_positive(what: str, value: float) -> float:
    """Return `value` if it is a positive finite number, else raise a `ValueError`."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise ValueError(f"{what}: expected a positive finite number, got {value!r}")
    return value


def check_count(what: str, value: Any, least: int = 1) -> int:
    """Return `value` as an `int` if it is a whole number (of NumPy, too) of at least `least`, else raise an error."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what}: expected a whole number from {least} up, got {value!r}")
    return int(value)


def is_rising(values: Sequence[float]) -> bool:
    """Whether each number is larger than the one before it."""
    return all(low < high for low, high in itertools.pairwise(values))


def check_finite(what: str, x: object) -> None:
    """Raise a `ValueError` where inputs have NaN or infinite entries; it counts them and names the first row.

    Args:
        what: Name of the inputs in the message.
        x: A tensor, or a tuple or list of tensors. Integer tensors, and what is no tensor, are not checked.
    """
    for index, part in enumerate(x if isinstance(x, (tuple, list)) else (x,)):
        if not isinstance(part, Tensor) or not (part.is_floating_point() or part.is_complex()):
            continue
        if part.layout != torch.strided:
            part = part.coalesce().values() if part.layout == torch.sparse_coo else part.values()
        # An entry that is not finite makes the sum so, which takes a tenth of the time.
        if bool(torch.isfinite(part.sum())):
            continue
        bad = ~torch.isfinite(part)
        if bad.any():
            row = int(bad.flatten(1).any(1).nonzero()[0]) if part.dim() > 1 else int(bad.nonzero()[0])
            names = getattr(x[-1], "names", None) if isinstance(x, tuple) else None  # of inputs with a structure
            which = f"{what}{names[index] if names else f'[{index}]'}" if isinstance(x, (tuple, list)) else what
            raise ValueError(
                f"{which}: expected finite values, got {int(bad.sum())} NaN or infinite entries in a tensor of shape "
                f"{tuple(part.shape)}, the first in row {row}; drop or impute these rows"
            )

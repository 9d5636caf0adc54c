"""States of the global random generators of Python and NumPy as tensors, since data sets may draw from them."""

from __future__ import annotations

import random
import struct

import numpy as np
import torch
from torch import Tensor

__all__ = ["numpy_state", "python_state", "set_numpy_state", "set_python_state"]


def python_state(generator: random.Random | None = None) -> Tensor:
    """The state of a generator of Python: 625 words, whether a second normal number is kept, and its bits.

    Args:
        generator: The generator; the global one by default.

    Example:
        >>> state = python_state()
        >>> first = random.random()
        >>> set_python_state(state)
        >>> random.random() == first
        True
    """
    _, words, kept = (random if generator is None else generator).getstate()
    return torch.tensor([*words, kept is not None, _bits(kept or 0.0)], dtype=torch.int64)


def set_python_state(state: Tensor, generator: random.Random | None = None) -> None:
    """Put a generator of Python into a state from `python_state`.

    Args:
        state: The state.
        generator: The generator; the global one by default.

    Raises:
        ValueError: It is no such state; nothing was changed.
    """
    *words, has, bits = state.tolist()
    try:
        (random if generator is None else generator).setstate((3, tuple(words), _number(bits) if has else None))
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def numpy_state(generator: np.random.RandomState | None = None) -> Tensor:
    """The state of NumPy's global generator: 624 words, the position, whether a normal number is kept, its bits.

    Args:
        generator: The generator; the global one by default.

    Example:
        >>> state = numpy_state()
        >>> first = np.random.rand()
        >>> set_numpy_state(state)
        >>> np.random.rand() == first
        True
    """
    state = (np.random.mtrand._rand if generator is None else generator).get_state(legacy=False)
    inner = state["state"]
    return torch.tensor(
        [*inner["key"].tolist(), inner["pos"], state["has_gauss"], _bits(state["gauss"])], dtype=torch.int64
    )


def set_numpy_state(state: Tensor, generator: np.random.RandomState | None = None) -> None:
    """Put NumPy's global generator into a state from `numpy_state`.

    Args:
        state: The state.
        generator: The generator; the global one by default.

    Raises:
        ValueError: It is no such state; nothing was changed.
    """
    *words, position, has, bits = state.tolist()
    if not all(0 <= word < 2**32 for word in words) or not 0 <= position <= 624 or has not in (0, 1):
        raise ValueError("words, position or flag are out of range")
    used = np.random.mtrand._rand if generator is None else generator
    used.set_state(("MT19937", np.array(words, dtype=np.uint32), position, has, _number(bits)))


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _number(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])

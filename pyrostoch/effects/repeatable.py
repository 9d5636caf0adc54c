"""Passes of a network that can be repeated and compared: the same random numbers, no batch statistics, tolerances."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from math import comb

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrostoch._seeds import forked, generator_states
from pyrostoch.effects.held_state import HeldState

__all__ = [
    "attributes_restored",
    "batch_norm_in_evaluation",
    "close",
    "same",
    "same_randomness",
    "separating_sets",
    "size_of",
]


def size_of(value: Tensor) -> Tensor:
    """Root mean square of the entries, or 1 where it is 0 or not finite."""
    size = value.detach().square().mean().sqrt()
    return torch.where(torch.isfinite(size) & (size > 0), size, torch.ones_like(size))


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two gradients are equal up to the order of sums."""
    scale = expected.abs().max().item()
    tolerance = max(1e-3, 16 * torch.finfo(found.dtype).eps) * scale
    return bool(((found - expected).abs() <= tolerance).all())


def same(output: list[Tensor], moved: list[Tensor], rows: Tensor | None, batch: int) -> bool:
    """Whether outputs are the same for some examples, up to rounding; all of an output without an axis of examples."""
    if len(output) != len(moved):
        return False
    for before, after in zip(output, moved, strict=True):
        if before.shape != after.shape:
            return False
        after = after.detach()
        if rows is not None and before.dim() and len(before) == batch:
            at = rows.to(before.device)
            before, after = before[at], after[at]
        # Entry by entry, since a large one (the logit of a masked class) says nothing of the others. Zeros that are
        # sums may differ by the rounding of their terms. Half precision is so coarse that only equality says anything.
        tolerance = 0.0 if before.dtype.itemsize < 4 else 100 * torch.finfo(before.dtype).eps
        finite = torch.where(torch.isfinite(before), before.abs(), torch.zeros_like(before))
        typical = finite.median().item() if finite.numel() else 0.0
        if not torch.allclose(before, after, rtol=tolerance, atol=tolerance * typical, equal_nan=True):
            return False
    return True


def separating_sets(count: int) -> list[Tensor]:
    """Sets of examples as masks, such that for any two examples one set holds the first and not the second.

    Each example is in half of the sets, and no two are in the same ones (Sperner's theorem: as few sets as can be).

    Args:
        count: Number of examples.
    """
    if count < 2:
        return []
    number = next(n for n in itertools.count(2) if comb(n, n // 2) >= count)
    members = torch.zeros(number, count, dtype=torch.bool)
    for example, chosen in zip(range(count), itertools.combinations(range(number), number // 2), strict=False):
        members[list(chosen), example] = True
    return list(members.unbind())


@contextlib.contextmanager
def same_randomness(device: torch.device, seed: int) -> Iterator[Callable[[], bool]]:
    """Seed torch, NumPy and Python within, and restore their states; gives a test whether numbers have been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with forked(device, seed):
            start = _states(device)
            yield lambda: _states(device) != start
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _states(device: torch.device) -> tuple[object, ...]:
    numpy = np.random.get_state(legacy=False)
    torchs = tuple(state.numpy().tobytes() for state in generator_states(device))
    return (random.getstate(), numpy["state"]["pos"], numpy["state"]["key"].tobytes(), *torchs)


@contextlib.contextmanager
def attributes_restored(net: nn.Module) -> Iterator[None]:
    """Restore what a pass writes into attributes of modules: a counter, the latest activations, a cache, a history.

    Nested containers, plain objects and random generators that a module holds are restored, too.
    """
    state = HeldState(net.modules())
    try:
        yield
    finally:
        state.restore()


@contextlib.contextmanager
def batch_norm_in_evaluation(net: nn.Module) -> Iterator[None]:
    """Put the batch normalization of a network into evaluation mode, and back."""
    training = [part for part in net.modules() if isinstance(part, _BatchNorm) and part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True

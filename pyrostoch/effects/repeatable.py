"""Passes of a network that can be repeated and compared: the same random numbers, no batch statistics, tolerances."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrostoch._seeds import forked, generator_states

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

    Nested containers and random generators that a module holds are restored, too.
    """
    before = [(part, part.__dict__.copy()) for part in net.modules()]
    own = vars(nn.Module()).keys()
    held: dict[int, Any] = {}
    for _, attributes in before:
        for name, value in attributes.items():
            if name not in own:
                _collect(value, held)
    contents = [(value, copy.copy(value)) for value in held.values() if type(value) in _CONTAINERS]
    numbers = [(value, value.detach().clone()) for value in held.values() if isinstance(value, Tensor)]
    states = [(value, _state(value)) for value in held.values() if isinstance(value, _GENERATORS)]
    try:
        yield
    finally:
        for part, attributes in before:
            part.__dict__.clear()
            part.__dict__.update(attributes)
        for value, content in contents:
            value.clear()
            (value.extend if isinstance(value, (list, deque)) else value.update)(content)
        for tensor, number in numbers:
            # Only what has changed, since writing into a tensor makes autograd forget what was computed from it.
            if not torch.equal(tensor.detach(), number):
                tensor.detach().copy_(number)
        for generator, state in states:
            _set_state(generator, state)


_CONTAINERS = (dict, list, set, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# Longer containers are histories, whose entries are not containers of a network's state.
_MAX_ENTRIES = 1000


def _collect(value: Any, held: dict[int, Any]) -> None:
    """Collect the containers, tensors and generators in a value by their identity."""
    if id(value) in held:
        return
    if isinstance(value, (Tensor, *_GENERATORS)):
        held[id(value)] = value
    elif type(value) in _CONTAINERS or type(value) is tuple:
        held[id(value)] = value
        if len(value) <= _MAX_ENTRIES:
            for item in value.values() if isinstance(value, dict) else value:
                _collect(item, held)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


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

"""What a step may change besides tensors: numbers in modules, replaced buffers, Python's and NumPy's dice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrostoch.staging.graph import StagingError

__all__ = ["Pins", "put_back"]

_NUMBERS = (bool, int, float, str)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Pins:
    """What a graph has taken from the Python side of modules: numbers, plain tensors, parameters, buffers, hooks.

    Args:
        parts: The modules, without those inside them.
        parameters: Parameters, whose hooks are looked for.

    Example:
        >>> dropout = nn.Dropout(0.5)
        >>> pins = Pins([dropout], [])
        >>> dropout.p = 0.4
        >>> pins.is_unchanged()
        False
    """

    def __init__(self, parts: Sequence[nn.Module], parameters: Sequence[Tensor]) -> None:
        # Looked up at each step, so in lists that are quick to go through.
        self._numbers = [
            (vars(part), name, value)
            for part in parts
            for name, value in vars(part).items()
            if isinstance(value, _NUMBERS) and name != "training"
        ]
        self._objects = [
            (holder, name, value)
            for part in parts
            for holder in (vars(part), part._parameters, part._buffers)
            for name, value in holder.items()
            if isinstance(value, Tensor)
        ]
        hooks = [vars(part).get(name) for part in parts for name in _HOOKS]
        self._hooks = [(found, len(found)) for found in hooks if found is not None]
        self._parameters = list(parameters)

    def is_unchanged(self) -> bool:
        """Whether nothing has changed since."""
        return (
            all(holder.get(name) == value for holder, name, value in self._numbers)
            and all(holder.get(name) is value for holder, name, value in self._objects)
            and all(len(found) == count for found, count in self._hooks)
            and not any(p._post_accumulate_grad_hooks for p in self._parameters)
        )


@contextmanager
def put_back(parts: Sequence[nn.Module], *, caches: bool = True) -> Iterator[None]:
    """Leave the Python side of modules, and the dice of Python and NumPy, as they are found.

    Args:
        parts: The modules, without those inside them.
        caches: Whether modules may keep tensors as attributes, which are put back too.

    Raises:
        StagingError: Something has moved that a graph would not move.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> net.steps = 0
        >>> try:
        ...     with put_back([net]):
        ...         net.steps += 1
        ... except StagingError as error:
        ...     print(error, net.steps)
        it changes the Python value 'steps' of a Linear, which a staged step would leave alone 0
    """
    before = [(part, dict(vars(part))) for part in parts]
    held = [(part, dict(part._parameters), dict(part._buffers)) for part in parts]
    plain = [(v, v.detach().clone()) for _, values in before for v in values.values() if type(v) is Tensor]
    own = [(v, v.get_state()) for _, values in before for v in values.values() if isinstance(v, torch.Generator)]
    dice, numpy_dice = random.getstate(), np.random.get_state()
    fault: StagingError | None = None
    try:
        yield
    except StagingError as error:
        fault = error
        raise
    finally:
        moved = _moved(before, held, caches)
        if moved is None and (random.getstate() != dice or not _same(np.random.get_state(), numpy_dice)):
            moved = "it draws from the random generator of Python or NumPy, which a staged step would not; use torch's"
        for part, values in before:
            vars(part).clear()
            vars(part).update(values)
        for part, parameters, buffers in held:
            for now, then in ((part._parameters, parameters), (part._buffers, buffers)):
                now.clear()
                now.update(then)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor, value in plain:
                tensor.copy_(value)
        for generator, state in own:
            generator.set_state(state)
        random.setstate(dice)
        np.random.set_state(numpy_dice)
        if moved is not None:
            # The cause, where something else has come of it.
            raise StagingError(moved) from fault


def _moved(before: list[Any], held: list[Any], caches: bool) -> str | None:
    for part, values in before:
        for name, value in vars(part).items():
            if isinstance(value, _NUMBERS) and values.get(name) != value:
                return (
                    f"it changes the Python value {name!r} of a {type(part).__name__}, which a staged step would leave "
                    "alone"
                )
            if isinstance(value, Tensor) and not caches and values.get(name) is not value:
                return f"it keeps a tensor as {name!r} of a {type(part).__name__}"
    for part, parameters, buffers in held:
        for now, then in ((part._parameters, parameters), (part._buffers, buffers)):
            for name, tensor in then.items():
                if now.get(name) is not tensor:
                    return f"it puts a new tensor in the place of {name!r} of a {type(part).__name__}; write into it"
    return None


def _same(one: Any, other: Any) -> bool:
    return all(np.array_equal(here, there) for here, there in zip(one, other, strict=True))

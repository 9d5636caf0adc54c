"""State that a step may change besides tensors: attributes of modules, and Python's and NumPy's random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrostoch.effects.held_state import HeldState
from pyrostoch.staging.graph import StagingError

__all__ = ["ModuleSnapshot", "restore_modules"]

# Attributes of these types become constants of a graph.
_PYTHON_VALUES = (bool, int, float, str)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ModuleSnapshot:
    """The Python state of modules that a graph took over: numbers, tensor attributes, parameters, buffers, hooks.

    Args:
        modules: The modules, submodules listed too; each is looked at without its submodules.
        parameters: Parameters that must have no hooks on their accumulated gradient.

    Example:
        >>> dropout = nn.Dropout(0.5)
        >>> snapshot = ModuleSnapshot([dropout], [])
        >>> dropout.p = 0.4
        >>> snapshot.is_unchanged()
        False
    """

    def __init__(self, modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> None:
        # Flat lists, since they are compared at every step.
        values = [
            (vars(module), name, value)
            for module in modules
            for name, value in vars(module).items()
            if isinstance(value, _PYTHON_VALUES) and name != "training"
        ]
        self._value_places, self._values = [entry[:2] for entry in values], [value for *_, value in values]
        objects = [
            (holder, name, value)
            for module in modules
            for holder in (vars(module), module._parameters, module._buffers, module._modules)
            for name, value in holder.items()
            if isinstance(value, (Tensor, nn.Module))
        ]
        self._object_places, self._objects = [entry[:2] for entry in objects], [value for *_, value in objects]
        hooks = [vars(module).get(name) for module in modules for name in _HOOKS]
        self._hooks = [(registered, len(registered)) for registered in hooks if registered is not None]
        self._parameters = list(parameters)
        self._held = HeldState(modules)

    def is_unchanged(self) -> bool:
        """Whether the state is still the same."""
        return (
            [holder.get(name) for holder, name in self._value_places] == self._values
            and all(map(is_, [holder.get(name) for holder, name in self._object_places], self._objects))
            and all(len(registered) == count for registered, count in self._hooks)
            and not any(p._post_accumulate_grad_hooks for p in self._parameters)
            and self._held.change() is None
        )


@contextmanager
def restore_modules(modules: Sequence[nn.Module], *, caches: bool = True) -> Iterator[None]:
    """Restore the Python state of modules, and the random generators of Python and NumPy, on exit.

    Args:
        modules: The modules, submodules listed too; each is looked at without its submodules.
        caches: Whether modules may assign tensors to attributes, which are then restored.

    Raises:
        StagingError: Something changed that a graph would not change.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> net.steps = 0
        >>> try:
        ...     with restore_modules([net]):
        ...         net.steps += 1
        ... except StagingError as error:
        ...     print(error, net.steps)
        it changes the Python value 'steps' of a Linear, which a staged step would not do 0
    """
    attributes = [(module, dict(vars(module))) for module in modules]
    registered = [(module, dict(module._parameters), dict(module._buffers)) for module in modules]
    attribute_values = [v for _, values in attributes for v in values.values()]
    plain = [(v, v.detach().clone()) for v in attribute_values if type(v) is Tensor]
    generators = [(v, v.get_state()) for v in attribute_values if isinstance(v, torch.Generator)]
    held = HeldState(modules)
    random_state, numpy_state = random.getstate(), np.random.get_state()
    raised: StagingError | None = None
    try:
        yield
    except StagingError as error:
        raised = error
        raise
    finally:
        change = _change(attributes, registered, caches) or held.change()
        if change is None and held.iterators:
            change = f"it holds a {held.iterators[0]}, of which a staged step would not take the next item"
        if change is None and (random.getstate() != random_state or not _same(np.random.get_state(), numpy_state)):
            change = "it draws from the random generator of Python or NumPy, which a staged step would not; use torch's"
        for module, values in attributes:
            vars(module).clear()
            vars(module).update(values)
        for module, parameters, buffers in registered:
            for now, before in ((module._parameters, parameters), (module._buffers, buffers)):
                now.clear()
                now.update(before)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor, value in plain:
                tensor.copy_(value)
        for generator, state in generators:
            generator.set_state(state)
        held.restore()
        random.setstate(random_state)
        np.random.set_state(numpy_state)
        if change is not None:
            # The change explains an error that it led to, and is the better message.
            raise StagingError(change) from raised


def _change(attributes: list[Any], registered: list[Any], caches: bool) -> str | None:
    """The first change of the modules that a graph would not make, in words, or `None`."""
    for module, values in attributes:
        for name, value in vars(module).items():
            if isinstance(value, _PYTHON_VALUES) and values.get(name) != value:
                return (
                    f"it changes the Python value {name!r} of a {type(module).__name__}, which a staged step would not "
                    "do"
                )
            if isinstance(value, Tensor) and not caches and values.get(name) is not value:
                return f"it assigns a tensor to the attribute {name!r} of a {type(module).__name__}"
    for module, parameters, buffers in registered:
        for now, before in ((module._parameters, parameters), (module._buffers, buffers)):
            for name, tensor in before.items():
                if now.get(name) is not tensor:
                    return (
                        f"it replaces the parameter or buffer {name!r} of a {type(module).__name__} by a new tensor; "
                        "write into it instead"
                    )
    return None


def _same(one: Any, other: Any) -> bool:
    return all(np.array_equal(here, there) for here, there in zip(one, other, strict=True))

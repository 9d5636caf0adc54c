"""Python state that modules hold: attributes, nested containers, plain objects, tensors in them, random generators."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

__all__ = ["HeldState"]

_CONTAINERS = (dict, list, set, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_VALUES = (bool, int, float, complex, str, bytes, type(None))
# Distributions are values: a transform keeps a reference to its inverse, which comes and goes by itself.
_OPAQUE = (type, FunctionType, MethodType, ModuleType, nn.Module, Distribution, Transform, ReferenceType, *_VALUES)
# Longer containers are histories, whose entries are not containers of a network's state.
_MAX_ENTRIES = 1000
# The attributes of every module, and what our own analysis has found.
_NOT_STATE = {*vars(nn.Module()), "_usage_cache", "_meeting_cache"}


class HeldState:
    """What modules hold besides parameters, buffers and submodules, as it is now.

    Args:
        modules: The modules, submodules listed too.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> net.log = {"steps": 0}
        >>> state = HeldState([net])
        >>> net.log["steps"] += 1
        >>> state.change()
        "it changes 'steps' in a dict"
        >>> state.restore()
        >>> net.log, state.change()
        ({'steps': 0}, None)
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [(module, vars(module).copy()) for module in modules]
        self._registered: list[tuple[Any, Any]] = [
            (held, dict(held)) for module, _ in self._modules for held in (module._parameters, module._buffers)
        ]
        held: dict[int, Any] = {}
        for _, attributes in self._modules:
            for name, value in attributes.items():
                if name not in _NOT_STATE:
                    _collect(value, held)
        self._contents = [(value, _content(value)) for value in held.values() if _is_holder(value)]
        self._numbers = [(value, value.detach().clone()) for value in held.values() if isinstance(value, Tensor)]
        self._states = [(value, _state(value)) for value in held.values() if isinstance(value, _GENERATORS)]
        #: Kinds of iterators among the state: what they have given out cannot be taken back.
        self.iterators = sorted({type(value).__name__ for value in held.values() if isinstance(value, Iterator)})

    @property
    def has_own_randomness(self) -> bool:
        """Whether random generators or iterators are among it."""
        return bool(self._states or self.iterators)

    def restore(self) -> None:
        """Restore all of it; tensors are written to only if they have changed."""
        for module, attributes in self._modules:
            vars(module).clear()
            vars(module).update(attributes)
        for held, before in self._registered:
            if held.keys() != before.keys():
                held.clear()
                held.update(before)
        for value, content in self._contents:
            _set_content(value, content)
        for tensor, number in self._numbers:
            # Writing into a tensor makes autograd forget what was computed from it.
            if not torch.equal(tensor.detach(), number):
                tensor.detach().copy_(number)
        for generator, state in self._states:
            _set_state(generator, state)

    def change(self) -> str | None:
        """The first change within containers, plain objects and generators, in words; `None` if there is none.

        Attributes of the modules themselves, and torch's generators, are not looked at.
        """
        for value, before in self._contents:
            now = _content(value)
            if len(now) != len(before):
                return f"it changes the length of a {type(value).__name__}"
            items = dict(_items(now))
            for name, old in _items(before):
                new = items.get(name)
                if new is not old and not (isinstance(old, _VALUES) and type(new) is type(old) and new == old):
                    return f"it changes {name!r} in a {type(value).__name__}"
        for generator, state in self._states:
            if not isinstance(generator, torch.Generator) and not _equal(_state(generator), state):
                return f"it draws from a {type(generator).__name__} of its own"
        return None


def _is_holder(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        return True
    if isinstance(value, (*_OPAQUE, Tensor, *_GENERATORS, tuple, Iterator)):
        return False
    # Objects of this library, such as an ELBO with its weight of the KL, are known to those who hold them.
    own = type(value).__module__.startswith("pyrostoch.")
    return not own and isinstance(getattr(value, "__dict__", None), dict)


def _collect(value: Any, held: dict[int, Any]) -> None:
    """Collect the containers, objects, tensors and generators in a value by their identity."""
    if id(value) in held or isinstance(value, _OPAQUE):
        return
    held[id(value)] = value
    if isinstance(value, (Tensor, *_GENERATORS, Iterator)):
        return
    if isinstance(value, (*_CONTAINERS, tuple)):
        if len(value) <= _MAX_ENTRIES:
            for item in list(value.values()) if isinstance(value, dict) else list(value):
                _collect(item, held)
    elif _is_holder(value):
        for item in list(vars(value).values()):
            _collect(item, held)


def _content(value: Any) -> Any:
    """A shallow copy of what a container or an object holds."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, set):  # by entry, since refilling a set may change its order
        return {item: item for item in value}
    return list(value) if isinstance(value, (list, deque)) else dict(vars(value))


def _set_content(value: Any, content: Any) -> None:
    if isinstance(value, set):
        value.difference_update(value - content.keys())
        value.update(content)
    elif isinstance(value, dict):
        value.clear()
        value.update(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, deque):
        value.clear()
        value.extend(content)
    else:
        vars(value).clear()
        vars(value).update(content)


def _items(content: Any) -> Iterable[tuple[Any, Any]]:
    return content.items() if isinstance(content, dict) else enumerate(content)


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


def _equal(one: Any, other: Any) -> bool:
    """Whether two states of a generator are equal: nested dictionaries and tuples of numbers and arrays."""
    if isinstance(one, dict):
        return all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, tuple):
        return all(map(_equal, one, other))
    return bool(np.array_equal(one, other))

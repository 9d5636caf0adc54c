"""Tensors in nested tuples, lists, dictionaries and dataclasses: what networks take and return."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

__all__ = ["leaves_of", "map_tensors", "tensors_in"]


def leaves_of(tree: object) -> Iterator[object]:
    """Yield what nested tuples, lists, dictionaries and dataclasses hold.

    Args:
        tree: The nested object.

    Example:
        >>> list(leaves_of((1, {"a": ["b"]})))
        [1, 'b']
    """
    if isinstance(tree, Tensor):  # the most frequent case first
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves_of(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from leaves_of(item)
    elif isinstance(tree, SimpleNamespace):
        yield from leaves_of(vars(tree))
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from leaves_of(getattr(tree, field.name))
    else:
        yield tree


def tensors_in(tree: object) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dictionaries and dataclasses.

    Args:
        tree: The nested object.

    Example:
        >>> import torch
        >>> [tensor.item() for tensor in tensors_in((torch.tensor(1), {"a": [torch.tensor(2)]}))]
        [1, 2]
    """
    return (leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor))


def map_tensors(function: Callable[[Tensor], Tensor], tree: object) -> Any:
    """The same nested tuples, lists, dictionaries and dataclasses with each tensor replaced; other objects are kept.

    Args:
        function: Maps a tensor.
        tree: The nested object.

    Example:
        >>> import torch
        >>> map_tensors(lambda tensor: tensor + 1, (torch.tensor(1), "a"))
        (tensor(2), 'a')
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, item) for item in tree))
    if type(tree) in (tuple, list):
        return type(tree)(map_tensors(function, item) for item in tree)  # type: ignore[call-arg, attr-defined]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):  # such as the outputs of HuggingFace
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree) if field.init}
        return dataclasses.replace(tree, **{name: map_tensors(function, item) for name, item in fields.items()})
    if isinstance(tree, (dict, list, SimpleNamespace)):  # and what is derived from them, as a copy of the same type
        copied = copy.copy(tree)
        if isinstance(copied, list):
            copied[:] = [map_tensors(function, item) for item in copied]
        else:
            items = copied if isinstance(copied, dict) else vars(copied)
            items.update({key: map_tensors(function, item) for key, item in items.items()})
        return copied
    return tree

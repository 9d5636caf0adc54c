"""Inputs in dictionaries, lists and dataclasses as flat tuples, and in their own form again for the network's call.

Everything that cuts, moves or perturbs inputs sees a tuple of parts. The last one, a `Structure`, says what they were;
the call of the network reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from pyrostoch._checks import name_list, suggest
from pyrostoch.protocols import FlatInputs, TargetKeys

__all__ = ["KnownClasses", "Structure", "flat_inputs", "positional_and_keyword", "with_labels"]


@dataclasses.dataclass(frozen=True)
class _Part:
    """The place of a part in a template."""

    index: int


@dataclasses.dataclass(frozen=True)
class _Node:
    """What holds parts in a template: its type, and its entries with their keys."""

    kind: type
    keys: tuple[Any, ...]
    entries: tuple[Any, ...]

    def children(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.keys, self.entries, strict=True)


class Structure:
    """The form of inputs whose parts are in a flat tuple; it is the last entry of that tuple.

    Two are equal where parts have the same places, so that it counts as an option of the network's call.

    Args:
        template: The inputs with each part replaced by its place.
        names: What the parts are called in messages, such as `"['mask']"`.
        labels: Whether one more part, the last, holds the known class of each example.
    """

    def __init__(self, template: Any, names: tuple[str, ...], labels: bool = False) -> None:
        self.template, self.names, self.labels = template, names, labels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.template, self.names, self.labels))

    def rebuilt(self, parts: tuple[Any, ...]) -> Any:
        """The inputs in their own form.

        Args:
            parts: The parts, without this structure.
        """
        return _put(self.template, parts)

    def axes(self, in_dims: Any) -> tuple[Any, ...]:
        """The axis of examples of each part, from a declaration in the form of the inputs.

        Args:
            in_dims: One axis for all, or a dictionary or tuple of axes, which may be nested like the inputs; keys that
                are left out have axis 0.

        Raises:
            ValueError: It names inputs that are not there.
        """
        found = dict(_axes(self.template, in_dims, ""))
        if self.labels:
            found[len(found)] = 0
        return tuple(found[index] for index in range(len(self.names)))


# So that compiled steps take it for an option.
pytree.register_pytree_node(Structure, lambda structure: ([], structure), lambda leaves, structure: structure)


def flat_inputs(x: Any, target: TargetKeys = None) -> FlatInputs:
    """Inputs as a tensor or a flat tuple: those that are nested, or in a dictionary, end with their `Structure`.

    Args:
        x: A tensor, or tensors and options in nested tuples, lists, dictionaries and dataclasses. On top a dictionary
            holds keywords of the network, a tuple or list its positional inputs.
        target: The key, or keys, of the targets, which are no input, in a dictionary.

    Example:
        >>> import torch
        >>> *parts, structure = flat_inputs({"ids": torch.zeros(2, 3), "mask": None})
        >>> len(parts), structure.names
        (2, ("['ids']", "['mask']"))
        >>> flat_inputs([1, 2])
        (1, 2)
    """
    if isinstance(x, Tensor) or (isinstance(x, tuple) and x and isinstance(x[-1], Structure)):
        return x
    keys = (target,) if isinstance(target, str) else target or ()
    if isinstance(x, Mapping) and any(key in x for key in keys):
        x = {key: value for key, value in x.items() if key not in keys}
    if isinstance(x, (tuple, list)) and not _is_named(x) and not any(_is_nested(part) for part in x):
        return tuple(x)
    parts: list[Any] = []
    names: list[str] = []
    template = _template(x, "", parts, names)
    return (*parts, Structure(template, tuple(names)))


class KnownClasses:
    """The known class of each example, as a network's last positional input, which `layers.accept_labels` takes.

    Args:
        labels: The classes.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels


def with_labels(x: Any, labels: Tensor) -> tuple[Any, ...]:
    """Inputs with the known class of each example as one more part.

    Args:
        x: Inputs, flat or not.
        labels: The classes, one for each example, or a selection of pixels.

    Example:
        >>> import torch
        >>> x, labels, structure = with_labels(torch.zeros(2, 3), torch.tensor([0, 1]))
        >>> args, kwargs = positional_and_keyword((x, labels, structure), {})
        >>> args[1].labels.tolist()
        [0, 1]
    """
    flat = flat_inputs(x)
    if isinstance(flat, tuple) and flat and isinstance(flat[-1], Structure):
        *parts, structure = flat
        template, names = structure.template, structure.names
    else:
        parts = []
        found: list[str] = []
        template = _template(flat, "", parts, found)
        names = tuple(found)
    return (*parts, labels, Structure(template, (*names, " (labels)"), labels=True))


def positional_and_keyword(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a network is called with: its positional and keyword inputs in their own form.

    Args:
        args: Positional inputs, flat or not.
        kwargs: Keyword inputs.

    Example:
        >>> positional_and_keyword(flat_inputs({"a": 1, "b": [2, 3]}), {})
        ((), {'a': 1, 'b': [2, 3]})
    """
    if not args or not isinstance(args[-1], Structure):
        return args, dict(kwargs)
    x = args[-1].rebuilt(args[:-1])
    if args[-1].labels:
        positional, keywords = _split(x, kwargs)
        return (*positional, KnownClasses(args[-2])), keywords
    return _split(x, kwargs)


def _split(x: Any, kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, dict) and not dataclasses.is_dataclass(x):
        return (), {**x, **kwargs}
    if isinstance(x, (tuple, list)) and not _is_named(x):
        return tuple(x), dict(kwargs)
    return (x,), dict(kwargs)


def _is_named(x: object) -> bool:
    return hasattr(x, "_fields")


def _is_nested(x: object) -> bool:
    if isinstance(x, (Tensor, PackedSequence)):
        return False
    return isinstance(x, (tuple, list, Mapping)) or (dataclasses.is_dataclass(x) and not isinstance(x, type))


def _template(x: Any, name: str, parts: list[Any], names: list[str]) -> Any:
    """The inputs with each part replaced by its place; the parts and their names are appended."""
    if not _is_nested(x):
        parts.append(x)
        names.append(name)
        return _Part(len(parts) - 1)
    if dataclasses.is_dataclass(x):
        keys = tuple(field.name for field in dataclasses.fields(x))
        return _Node(type(x), keys, tuple(_template(getattr(x, key), f"{name}.{key}", parts, names) for key in keys))
    # Mappings of classes of their own, such as HuggingFace's BatchEncoding, become plain dictionaries.
    kind = dict if isinstance(x, Mapping) else type(x)
    items = x.items() if isinstance(x, Mapping) else enumerate(x)
    entries = [(key, _template(value, f"{name}[{key!r}]", parts, names)) for key, value in items]
    return _Node(kind, tuple(key for key, _ in entries), tuple(entry for _, entry in entries))


def _put(template: Any, parts: tuple[Any, ...]) -> Any:
    if isinstance(template, _Part):
        return parts[template.index]
    found = {key: _put(entry, parts) for key, entry in template.children()}
    if dataclasses.is_dataclass(template.kind):
        kind: Any = template.kind
        if issubclass(kind, Mapping):  # such as the outputs of HuggingFace
            return kind(**found)
        made = object.__new__(kind)  # as it was, without the work of its __init__
        for key, value in found.items():
            object.__setattr__(made, key, value)
        return made
    if template.kind is dict:
        return found
    return template.kind(*found.values()) if hasattr(template.kind, "_fields") else template.kind(found.values())


def _axes(template: Any, in_dims: Any, name: str) -> Iterator[tuple[int, Any]]:
    if isinstance(template, _Part):
        if isinstance(in_dims, (tuple, list, dict)):
            raise ValueError(f"in_dims: expected an axis or None for the input x{name}, got {in_dims!r}")
        yield template.index, in_dims
        return
    if isinstance(in_dims, dict):
        if unknown := [str(key) for key in in_dims if key not in template.keys]:
            known = [str(key) for key in template.keys]
            raise ValueError(
                f"in_dims: x{name} has no {name_list(unknown)}, but {name_list(known)}{suggest(unknown[0], known)}"
            )
        of = [in_dims.get(key, 0) for key in template.keys]
    elif isinstance(in_dims, (tuple, list)):
        if len(in_dims) != len(template.keys):
            raise ValueError(f"in_dims: expected {len(template.keys)} entries for x{name}, got {len(in_dims)}")
        of = list(in_dims)
    else:
        of = [in_dims] * len(template.keys)
    for (key, child), own in zip(template.children(), of, strict=True):
        yield from _axes(child, own, f"{name}[{key!r}]")

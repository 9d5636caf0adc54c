"""Targets of several kinds for the same examples: a label and an angle, or a target and its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyrostoch._checks import name_list
from pyrostoch._manual import see

__all__ = ["Target", "Targets", "example_shapes", "read_targets"]


class Targets:
    """Tensors of targets by name, with the same examples on their first axes. Its length is their number.

    It is cut, moved and passed on as a single tensor of targets is.

    Args:
        parts: The tensors by name.

    Raises:
        TypeError: One of them is no tensor with an axis of examples.
        ValueError: They have different numbers of examples.

    Example:
        >>> targets = Targets({"digit": torch.tensor([3, 1]), "angle": torch.zeros(2, 1)})
        >>> len(targets), targets[torch.tensor([1])]["digit"].tolist()
        (2, [1])
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        for name, part in parts.items():
            if not isinstance(part, Tensor) or part.dim() == 0:
                got = "a tensor without axes" if isinstance(part, Tensor) else type(part).__name__
                raise TypeError(f"targets {name!r}: expected a tensor with an axis of examples, got {got}")
        counts = {name: len(part) for name, part in parts.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"targets: expected as many of each, got {counts}")
        self.parts = dict(parts)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Targets:
        return _unflatten(map(function, self.parts.values()), list(self.parts))

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, key: Any) -> Any:
        """A tensor by its name, or the targets of some of the examples."""
        return self.parts[key] if isinstance(key, str) else self._map(lambda part: part[key])

    def __repr__(self) -> str:
        return f"Targets({', '.join(f'{name} {tuple(part.shape)}' for name, part in self.parts.items())})"

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return next(iter(self.parts.values())).device

    def to(self, *args: Any, **kwargs: Any) -> Targets:
        """The same targets elsewhere, as `Tensor.to`.

        Args:
            args: The device.
            kwargs: Settings of `Tensor.to`.
        """
        return self._map(lambda part: part.to(*args, **kwargs))

    def detach(self) -> Targets:
        """The same targets without their graph."""
        return self._map(Tensor.detach)

    def numel(self) -> int:
        """Number of targets in all."""
        return sum(part.numel() for part in self.parts.values())


#: Targets of a batch: a tensor, or several by name.
Target = Tensor | Targets


def _unflatten(parts: Iterable[Any], names: Any) -> Targets:
    """Targets without checks: while a program is traced, parts may be anything."""
    new = Targets.__new__(Targets)
    new.parts = dict(zip(names, parts, strict=True))
    return new


# So that compiled steps see the tensors.
pytree.register_pytree_node(Targets, lambda targets: (list(targets.parts.values()), tuple(targets.parts)), _unflatten)


def example_shapes(y: Target) -> dict[str, tuple[int, ...]]:
    """The shape of an example's targets, by name; the only name of a single tensor is empty.

    Args:
        y: Targets.

    Example:
        >>> example_shapes(torch.zeros(5, 2))
        {'': (2,)}
    """
    parts = y.parts if isinstance(y, Targets) else {"": y}
    return {name: tuple(part.shape[1:]) for name, part in parts.items()}


def read_targets(given: object, names: tuple[str, ...] | None, what: str, title: str = "") -> Target:
    """The targets that a user gave: a tensor, or a dictionary of tensors where there are several.

    Args:
        given: The targets.
        names: The names of several targets; `None` where there is one tensor.
        what: Name of the targets in error messages.
        title: Name of the likelihood in error messages.

    Raises:
        TypeError: They are something else.
        ValueError: The dictionary has other names.

    Example:
        >>> read_targets({"a": torch.zeros(2), "b": torch.ones(2)}, ("a", "b"), "targets", "Joint")["b"].tolist()
        [1.0, 1.0]
    """
    has_names = isinstance(given, Mapping)
    got = f"a dictionary with {name_list(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
    if names is None:
        if isinstance(given, Tensor):
            return given
        advice = f"; likelihoods.Joint takes several{see('how-to/several_heads')}" if has_names else ""
        raise TypeError(f"{what}: expected a tensor, got {got}{advice}")
    if isinstance(given, Targets):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{what}: likelihood {title} expected a dictionary with {name_list(names)}, got {got}"
            f"{see('how-to/several_heads')}"
        )
    if set(names) != set(given):
        raise ValueError(
            f"{what}: likelihood {title} expected exactly {name_list(names)}, got {got}{see('how-to/several_heads')}"
        )
    return Targets({key: given[key] for key in names})

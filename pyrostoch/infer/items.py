"""Items and batches of users' data sets as inputs and targets: pairs, longer tuples, and dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs, with_labels
from pyrostoch.protocols import FlatInputs

__all__ = ["Reader", "check_known_classes", "reader_of"]


class Reader:
    """Splits items into inputs and targets, for one model.

    Args:
        target: The key of the targets in items that are dictionaries.
        labels: Whether the targets are known classes, too, which go to the network with the inputs.

    Example:
        >>> import torch
        >>> (ids, structure), y = Reader("labels").split({"ids": torch.zeros(2, 3), "labels": torch.tensor([0, 1])})
        >>> ids.shape, structure.names, y.tolist()
        (torch.Size([2, 3]), ("['ids']",), [0, 1])
    """

    def __init__(self, target: str | None = None, labels: bool = False) -> None:
        self.target, self.labels = target, labels

    def split(self, item: Any, what: str = "data") -> tuple[FlatInputs, Tensor]:
        """Inputs, as a tensor or a flat tuple, and targets.

        Args:
            item: `(x, y)`; `(x1, x2, ..., y)` for several inputs; or a dictionary that holds the targets, too.
            what: Name of the data in error messages.

        Raises:
            TypeError: The item has another form.
            ValueError: The dictionary has no such key.
        """
        x, y = self._keyed(item, what) if isinstance(item, Mapping) else self._positional(item, what)
        if self.labels:
            check_known_classes(y, "labels='known', targets")
            return with_labels(x, y), y
        return flat_inputs(x), y

    def _keyed(self, item: Mapping[str, Any], what: str) -> tuple[Any, Tensor]:
        keys = [str(key) for key in item]
        if self.target is None:
            raise TypeError(
                f"{what}: its items are dictionaries with {name_list(keys)}; say which holds the targets: "
                f"BayesianModel(..., target='labels'){see('how-to/your_own_data')}"
            )
        if self.target not in item:
            raise ValueError(
                f"{what}: expected the targets under {self.target!r}, as the model was built for, got items with "
                f"{name_list(keys)}{suggest(self.target, keys)}{see('how-to/your_own_data')}"
            )
        y = item[self.target]
        if not isinstance(y, Tensor):
            raise TypeError(f"{what}: expected targets as a tensor under {self.target!r}, got {type(y).__name__}")
        return {key: value for key, value in item.items() if key != self.target}, y

    def _positional(self, item: Any, what: str) -> tuple[Any, Tensor]:
        if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(item[-1], Tensor):
            raise TypeError(
                f"{what}: expected items (x, y), or (x1, x2, ..., y) for several inputs, or dictionaries, with tensors "
                f"as targets; got {type(item).__name__}"
                + (f" of {[type(part).__name__ for part in item]}" if isinstance(item, (tuple, list)) else "")
            )
        *inputs, y = item
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), y

    def inputs(self, item: Any, what: str = "data") -> FlatInputs:
        """The inputs of an item that may lack targets: a dictionary, a tensor, a list of one, or an item of `split`.

        Args:
            item: The item.
            what: Name of the data in error messages.
        """
        if isinstance(item, Mapping):
            return flat_inputs(item, self.target)
        if isinstance(item, (tuple, list)):
            return flat_inputs(item[0]) if len(item) == 1 else self.split(item, what)[0]
        return flat_inputs(item)


def reader_of(model: object) -> Reader:
    """The reader for a model's data.

    Args:
        model: A `BayesianModel`, or any other model, whose items are pairs.
    """
    return Reader(getattr(model, "target", None), getattr(model, "labels_are_inputs", False))


def check_known_classes(labels: Tensor, what: str) -> None:
    """Raise an error for labels that are no classes.

    Args:
        labels: The labels.
        what: Where they are from, for the message.

    Raises:
        TypeError: They are no tensor.
        ValueError: They are not whole numbers, one for each example.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"{what}: expected a tensor of class indices, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.dim() != 1:
        raise ValueError(
            f"{what}: expected class indices, whole numbers of shape (batch,), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; give other selections as an input, fit(model, guide, ((x, selection), y))"
            f"{see('how-to/conditional_layers')}"
        )

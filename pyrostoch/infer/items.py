"""Items and batches of users' data sets as inputs and targets: pairs, longer tuples, and dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs, with_labels
from pyrostoch._targets import Target, Targets, read_targets
from pyrostoch.likelihoods import Likelihood
from pyrostoch.protocols import FlatInputs, TargetKeys

__all__ = ["Reader", "check_known_classes", "reader_of"]


class Reader:
    """Splits items into inputs and targets, for one model.

    Args:
        target: The key of the targets in items that are dictionaries, or the keys of several.
        labels: Makes known classes of the targets, which go to the network with the inputs; `None` for none.
        read: Checks targets, and joins several: `Likelihood.read_target`.

    Example:
        >>> import torch
        >>> (ids, structure), y = Reader("labels").split({"ids": torch.zeros(2, 3), "labels": torch.tensor([0, 1])})
        >>> ids.shape, structure.names, y.tolist()
        (torch.Size([2, 3]), ("['ids']",), [0, 1])
    """

    def __init__(
        self,
        target: TargetKeys = None,
        labels: Callable[[Any], Tensor] | None = None,
        read: Callable[[object, str], Target] = lambda given, what: read_targets(given, None, what),
    ) -> None:
        self.target, self.labels, self.read = target, labels, read
        self._tried = False

    def split(self, item: Any, what: str = "data") -> tuple[FlatInputs, Target]:
        """Inputs, as a tensor or a flat tuple, and targets.

        Args:
            item: `(x, y)`; `(x1, x2, ..., y)` for several inputs; or a dictionary that holds the targets, too. Several
                targets `y` are a dictionary.
            what: Name of the data in error messages.

        Raises:
            TypeError: The item has another form.
            ValueError: The dictionary has no such key.
        """
        x, y = self._keyed(item, what) if isinstance(item, Mapping) else self._positional(item, what)
        if self.labels is not None:
            return with_labels(x, self._known_classes(self.labels, y)), y
        return flat_inputs(x), y

    def _known_classes(self, function: Callable[[Any], Tensor], y: Target) -> Tensor:
        """What a function makes of targets, which it must leave as they are; the first ones are tried in parts, too."""
        parts = tuple(y.parts.values()) if isinstance(y, Targets) else (y,)
        versions = [part._version for part in parts]
        found = check_known_classes(function(_plain(y)), len(y), "labels, from the targets")
        if not self._tried and len(y) > 1:
            self._tried = True
            for rows in (slice(len(y) // 2), slice(len(y) // 2, None)):
                part = function(_plain(y[rows]))
                if not isinstance(part, Tensor) or not torch.equal(part, found[rows]):
                    raise ValueError(
                        "labels: the function gives other classes for half of the examples of a batch than with the "
                        f"whole batch; each must depend on its own targets only{see('how-to/conditional_layers')}"
                    )
        if versions != [part._version for part in parts]:
            raise ValueError("labels: the function has changed the targets in place; work on a copy, as by clone()")
        return found

    def _keyed(self, item: Mapping[str, Any], what: str) -> tuple[Any, Target]:
        keys = [str(key) for key in item]
        if self.target is None:
            raise TypeError(
                f"{what}: its items are dictionaries with {name_list(keys)}; say which holds the targets: "
                f"BayesianModel(..., target='labels'){see('how-to/your_own_data')}"
            )
        names = (self.target,) if isinstance(self.target, str) else self.target
        if missing := [name for name in names if name not in item]:
            raise ValueError(
                f"{what}: expected the targets under {missing[0]!r}, as the model was built for, got items with "
                f"{name_list(keys)}{suggest(missing[0], keys)}{see('how-to/your_own_data')}"
            )
        given = item[self.target] if isinstance(self.target, str) else {name: item[name] for name in names}
        y = self.read(given, f"{what}: targets under {name_list(names)}")
        return {key: value for key, value in item.items() if key not in names}, y

    def _positional(self, item: Any, what: str) -> tuple[Any, Target]:
        if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(item[-1], (Tensor, Mapping)):
            raise TypeError(
                f"{what}: expected items (x, y), or (x1, x2, ..., y) for several inputs, or dictionaries, with tensors "
                f"as targets; got {type(item).__name__}"
                + (f" of {[type(part).__name__ for part in item]}" if isinstance(item, (tuple, list)) else "")
            )
        *inputs, y = item
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), self.read(y, f"{what}: targets")

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


def _plain(y: Target) -> Any:
    """Targets as a user knows them; the dictionary is a new one."""
    return dict(y.parts) if isinstance(y, Targets) else y


def reader_of(model: object) -> Reader:
    """The reader for a model's data.

    Args:
        model: A `BayesianModel`, or any other model, whose items are pairs.
    """
    target, labels = getattr(model, "target", None), getattr(model, "labels_from", None)
    likelihood = getattr(model, "likelihood", None)
    if isinstance(likelihood, Likelihood):
        return Reader(target, labels, likelihood.read_target)
    return Reader(target, labels)


def check_known_classes(labels: object, count: int | None, what: str) -> Tensor:
    """Return labels, or raise an error where they are neither classes nor a selection of pixels.

    Args:
        labels: The labels.
        count: Number of examples; `None` where it is not known.
        what: Where they are from, for the message.

    Raises:
        TypeError: They are no tensor.
        ValueError: They are not whole numbers, one for each example, nor booleans by class and position.
    """
    if callable(labels) and not isinstance(labels, Tensor):
        raise TypeError(
            f"{what}: expected a tensor, got {type(labels).__name__}, which makes one of targets: call it, as in "
            f"labels=classes(targets){see('how-to/conditional_layers')}"
        )
    if not isinstance(labels, Tensor):
        several = isinstance(labels, Mapping)
        advice = "; of several targets a function makes classes, such as labels=PixelClasses(...)" if several else ""
        raise TypeError(
            f"{what}: expected a tensor of class indices, got {type(labels).__name__}{advice}"
            f"{see('how-to/conditional_layers')}"
        )
    is_selection = labels.dtype == torch.bool and labels.dim() > 2
    is_real = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    if (is_real or labels.dim() != 1) and not is_selection:
        raise ValueError(
            f"{what}: expected class indices, whole numbers of shape (batch,), or booleans of shape (batch, classes, "
            f"*shape) that select pixels, got {labels.dtype} of shape {tuple(labels.shape)}"
            f"{see('how-to/conditional_layers')}"
        )
    if count is not None and len(labels) != count:
        raise ValueError(f"{what}: expected those of {count} examples, got {len(labels)}")
    return labels

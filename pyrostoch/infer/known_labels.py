"""Targets as known classes: the labels become one more input, which `Conditional` layers find."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyrostoch._checks import check_choice, name_list
from pyrostoch._manual import see
from pyrostoch.layers.conditional import Conditional
from pyrostoch.layers.conditional.hard import accepting_labels, labels_are_given
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import Data

__all__ = ["KnownLabels", "conditional_layers", "data_with_labels", "known_labels", "marked", "warn_of_unseen_classes"]

#: Whether the targets are handed to the layers that are conditional on the class; `None` for not at all.
KnownLabels = Literal["known"] | None


def conditional_layers(net: nn.Module) -> dict[str, Conditional]:
    """The conditional layers of a network by name.

    Args:
        net: The network.
    """
    return {name or "network": part for name, part in net.named_modules() if isinstance(part, Conditional)}


@contextlib.contextmanager
def known_labels(model: object, labels: KnownLabels, *data: Data | None) -> Iterator[tuple[Any, ...]]:
    """Data sets whose labels are one more input of the model, which takes them within the block.

    Args:
        model: A `BayesianModel` whose network has conditional layers.
        labels: `"known"`, or `None`, where the data stay as they are.
        *data: The data sets; `None` stays `None`.

    Yields:
        The data sets.

    Raises:
        ValueError: The network has no conditional layer, or the targets are no classes.
        TypeError: The model is no `BayesianModel`.

    Example:
        >>> import torch, pyrostoch as ps
        >>> net = ps.layers.Conditional(lambda: nn.Linear(2, 3), 3)
        >>> model = BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> with known_labels(model, "known", (torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))) as (data,):
        ...     (x, labels), y = data
        >>> labels is y
        True
    """
    if labels is None:
        yield data
        return
    if not isinstance(labels, str):
        raise TypeError(
            f"labels: expected 'known', for which the targets of the data are taken, got {type(labels).__name__}; "
            f"predict(..., labels=) takes a tensor{see('how-to/conditional_layers')}"
        )
    check_choice("labels", labels, ["known"])
    if not isinstance(model, BayesianModel):
        raise TypeError(f"labels='known': expected a BayesianModel, got {type(model).__name__}")
    if not conditional_layers(model.net):
        raise ValueError(
            f"labels='known': {type(model.net).__name__} has no Conditional layer that could use them; leave it out"
            f"{see('how-to/conditional_layers')}"
        )
    dims, given = model.in_dims, next(part for part in data if part is not None)
    count = len(dims) if isinstance(dims, tuple) else _inputs_of(given)
    with accepting_labels(model.net, count):
        try:
            if dims != 0:
                model.in_dims = (*(dims if isinstance(dims, tuple) else (dims,) * count), 0)
            yield tuple(None if part is None else data_with_labels(part) for part in data)
        finally:
            model.in_dims = dims


def marked(model: object, x: Any) -> KnownLabels:
    """`"known"` where a model's conditional layers are given classes in a call, whichever way; else `None`.

    Args:
        model: The model.
        x: Its inputs.
    """
    net = getattr(model, "net", None)
    return "known" if isinstance(net, nn.Module) and labels_are_given(net, x) else None


def _inputs_of(data: Any) -> int:
    """Number of inputs of an example."""
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, TensorDataset):
        return len(data.tensors) - 1
    if isinstance(data, Dataset):
        try:
            return len(_flat(data[0])) - 1
        except (TypeError, NotImplementedError):  # of an iterable data set, which has no items
            return 1
    x = data[0]
    return len(x) if isinstance(x, (tuple, list)) else 1


def _flat(item: Any) -> list[Any]:
    """The inputs and the target of an item, (x, y), (x1, x2, y) or ((x1, x2), y)."""
    *inputs, y = item
    if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
        inputs = list(inputs[0])
    return [*inputs, y]


def data_with_labels(data: Any) -> Any:
    """A data set whose targets are its last input, too.

    Args:
        data: `(x, y)`, a `Dataset` or a `DataLoader`.

    Raises:
        ValueError: The targets are no classes.

    Example:
        >>> import torch
        >>> (x, labels), y = data_with_labels((torch.zeros(2, 3), torch.tensor([0, 1])))
        >>> labels.tolist()
        [0, 1]
    """
    if isinstance(data, DataLoader):
        loader = copy.copy(data)  # with the sampler and the generator of the user's own
        loader.collate_fn = _CollatedWithLabels(data.collate_fn)
        loader._iterator = None  # workers that have started would keep the old function
        return loader
    if isinstance(data, Dataset):
        return _DatasetWithLabels(data)
    x, y = data
    _check_classes(y)
    return (*(x if isinstance(x, (tuple, list)) else (x,)), y), y


def _check_classes(y: Any) -> None:
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dim() > 1:
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"labels='known': expected targets that are class indices, one for each example, got {got}; give other "
            f"selections as an input, fit(model, guide, ((x, selection), y)){see('how-to/conditional_layers')}"
        )


class _CollatedWithLabels:
    """Batches of a loader, (x, y), as (x, y, y)."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: Any) -> tuple[Any, ...]:
        *inputs, y = _flat(self.collate(items))
        _check_classes(y)
        return (*inputs, y, y)


class _DatasetWithLabels(Dataset[Any]):
    """Items of a data set, (x, y), as (x, y, y)."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        *inputs, y = _flat(self.data[index])
        if isinstance(y, Tensor):
            _check_classes(y)
        return (*inputs, y, y)


def warn_of_unseen_classes(net: nn.Module) -> None:
    """Warn of classes that never occurred in training with known labels: their kernels are as they started.

    Args:
        net: The network.

    Raises:
        ValueError: No label has reached a conditional layer at all.
    """
    for name, layer in conditional_layers(net).items():
        if not bool(layer.seen.any()):
            raise ValueError(
                f"layer {name!r}: labels='known', but no label has reached it; the network must call it with the "
                f"labels of its own batch{see('how-to/conditional_layers')}"
            )
        missing = (layer.seen == 0).nonzero().flatten().tolist()
        if missing:
            warnings.warn(
                f"layer {name!r}: class(es) {name_list([str(c) for c in missing], 20)} never occurred in training; "
                "their kernels are as they started",
                UserWarning,
                stacklevel=3,
            )

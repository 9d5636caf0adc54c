"""What users give as data, tensors, data sets and loaders, as batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from pyrostoch._checks import check_count, name_list
from pyrostoch._inputs import count_examples, example_axes, take_examples, to_device
from pyrostoch._manual import see
from pyrostoch._targets import Target
from pyrostoch.infer.batches import Batches, Share, epoch_order
from pyrostoch.infer.items import Reader
from pyrostoch.infer.loaders import LoaderBatches, Stream
from pyrostoch.infer.parallel import Ranks
from pyrostoch.protocols import Data, FlatInputs, InDims

__all__ = ["as_batches", "move_to_device"]


class _IndexedBatches(Batches):
    """Batches selected by index, from tensors or from a map-style data set."""

    def __init__(self, count: int, batch_size: int, shuffle: bool, device: torch.device | None = None) -> None:
        self.num_data = count
        self.batch_size: int = batch_size
        self.shuffle = shuffle
        self._device = device

    def __len__(self) -> int:
        return -(-self.num_data // self.batch_size)

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[FlatInputs, Target]]:
        """Batches of consecutive indices of the epoch's permutation."""
        yield from (self.select(index) for index in self._indices(seed, number))

    def shares(self, seed: int, number: int, ranks: Ranks) -> Iterator[Share]:
        """The examples of each batch that belong to this process, every `world_size`-th one."""
        for index in self._indices(seed, number):
            local, weight = ranks.share(index)
            yield Share(*self.select(local), weight if ranks.is_distributed else None, len(index))

    def _indices(self, seed: int | None, number: int) -> Iterator[Tensor]:
        # One batch with all examples needs no random order, and the nodes of a graph must keep theirs.
        if seed is None or not self.shuffle or self.batch_size >= self.num_data:
            order = torch.arange(self.num_data)
        else:
            order = epoch_order(seed, number, self.num_data)
        # Moved to the data's device once per epoch, so that no step waits for a copy of its indices.
        yield from order.to(self._device).split(self.batch_size)

    @abstractmethod
    def select(self, index: Tensor) -> tuple[FlatInputs, Target]:
        """The examples with these indices."""


class _TensorBatches(_IndexedBatches):
    def __init__(self, x: FlatInputs, y: Target, batch_size: int, shuffle: bool, in_dims: InDims) -> None:
        super().__init__(len(y), batch_size, shuffle, y.device)
        self.in_memory: tuple[FlatInputs, Target] = (x, y)
        self._x, self._y, self._in_dims = x, y, in_dims
        self._can_be_cut = any(axis is not None for axis in example_axes(x, in_dims))
        if not self._can_be_cut:
            self.batch_size = len(y)

    def select(self, index: Tensor) -> tuple[FlatInputs, Target]:
        """Examples of the tensors, on their own devices."""
        if not self._can_be_cut and len(index) < self.num_data:
            raise ValueError(
                f"data: no input has an axis of examples (in_dims={self._in_dims}), so {self.num_data} of them cannot "
                "be divided among processes; train with one"
                f"{see('how-to/several_devices')}"
            )
        return take_examples(self._x, index, self._in_dims), self._y[index]

    def whole(self) -> Batches:
        """All examples as one batch."""
        return _TensorBatches(self._x, self._y, self.num_data, self.shuffle, self._in_dims)

    def moved_to(self, device: torch.device) -> Batches:
        """The same batches of tensors on another device."""
        x, y = to_device(self._x, device), self._y.to(device)
        return _TensorBatches(x, y, self.batch_size, self.shuffle, self._in_dims)


class _DatasetBatches(_IndexedBatches):
    def __init__(self, dataset: Any, batch_size: int, shuffle: bool, reader: Reader) -> None:
        super().__init__(len(dataset), batch_size, shuffle)
        self._dataset, self._reader = dataset, reader

    def select(self, index: Tensor) -> tuple[FlatInputs, Target]:
        """Items of the data set, collated as by a `DataLoader`."""
        numbers = index.tolist()
        items = [self._dataset[i] for i in numbers]
        if isinstance(items[0], Mapping):
            return self._reader.split(_collated(items, numbers))
        return self._reader.split(default_collate(items))

    def whole(self) -> Batches:
        """All items as one batch."""
        return _DatasetBatches(self._dataset, self.num_data, self.shuffle, self._reader)


def _collated(items: list[Mapping[str, Any]], numbers: list[int]) -> dict[str, Any]:
    """Items that are dictionaries as one, which must have the same keys; what is `None` in all of them stays so."""
    first = items[0]
    for item, number in zip(items, numbers, strict=True):
        if item.keys() != first.keys() or any((item[key] is None) != (first[key] is None) for key in first):
            raise ValueError(
                f"data: items must have the same keys, and the same that are None; item {numbers[0]} has "
                f"{_given(first)}, item {number} has {_given(item)}{see('how-to/your_own_data')}"
            )
        _check_no_lists(item)
    absent = dict.fromkeys((key for key in first if first[key] is None), None)
    found = default_collate([{key: value for key, value in item.items() if key not in absent} for item in items])
    return {**found, **absent}


def _given(item: Mapping[str, Any]) -> str:
    return name_list([str(key) for key, value in item.items() if value is not None])


def _check_no_lists(item: Mapping[str, Any]) -> None:
    """Raise an error for lists of numbers in an item, which torch would stack position by position."""
    if lists := [str(key) for key, value in item.items() if isinstance(value, (list, tuple))]:
        raise TypeError(
            f"data: expected items of tensors and numbers, got lists under {name_list(lists)}; convert them (for a "
            "HuggingFace data set: with_format('torch')), and pad them to one length, or give a DataLoader whose "
            f"collate_fn does{see('how-to/your_own_data')}"
        )


_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def as_batches(
    data: Data,
    batch_size: int,
    what: str = "data",
    *,
    shuffle: bool = True,
    in_dims: InDims = 0,
    reader: Reader | None = None,
    stream: Stream | None = None,
) -> Batches:
    """Split a data set into batches.

    Args:
        data: `(x, y)` tensors, where `x` may be a tuple or a dictionary of tensors; a dictionary that holds the
            targets, too; a list of such items, or a data set with `__getitem__` and `__len__`; or a `DataLoader` or an
            `IterableDataset`, which keeps its own order.
        batch_size: Number of examples in a batch.
        what: Name of the data in error messages.
        shuffle: Whether an epoch with a seed has a random order; a loader decides for itself, and a single batch with
            all examples keeps their order.
        in_dims: The axis of each input that counts the examples; `None` for one that every batch gets whole.
        reader: Splits items into inputs and targets.
        stream: The length that a stream lacks.

    Returns:
        The batches.

    Raises:
        TypeError: The data are of another type.
        ValueError: The data set is empty; there are not as many inputs as targets; `in_dims` asks of items of a data
            set what only tensors can give; or `shuffle=False` contradicts a loader.

    Example:
        >>> batches = as_batches((torch.zeros(5, 2), torch.arange(5)), 2)
        >>> [y.tolist() for _, y in batches.epoch(None, 0)]
        [[0, 1], [2, 3], [4]]
    """
    batch_size = check_count("batch_size", batch_size)
    if not isinstance(shuffle, (bool, np.bool_)):
        raise TypeError(f"shuffle: expected True or False, got {shuffle!r}")
    shuffle = bool(shuffle)  # as Python's own, which a checkpoint can hold
    reader = reader or Reader()
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size)
    batches: Batches
    if isinstance(data, DataLoader):
        samplers = (data.sampler, getattr(data.batch_sampler, "sampler", None))
        random = [type(sampler).__name__ for sampler in samplers if isinstance(sampler, _RANDOM_SAMPLERS)]
        if not shuffle and random:
            raise ValueError(
                f"{what}: shuffle=False contradicts the DataLoader, whose {random[0]} decides about the order; build "
                "the loader with shuffle=False"
            )
        batches = LoaderBatches(data, reader, what, stream)
        if batches.is_stream:
            return batches
    elif stream is not None and stream.steps_per_epoch is not None:
        raise ValueError(
            f"{what}: steps_per_epoch={stream.steps_per_epoch} is for a stream, a DataLoader or an IterableDataset; an "
            "epoch of these data is one pass through them"
        )
    elif type(data) is TensorDataset and len(data.tensors) > 1:
        batches = _from_tensors(data.tensors, batch_size, what, shuffle, in_dims, reader)
    elif isinstance(data, Mapping) or (isinstance(data, (tuple, list)) and len(data) == 2 and not _are_items(data)):
        batches = _from_tensors(data, batch_size, what, shuffle, in_dims, reader)
    elif _are_items(data) or _is_data_set(data):
        if not _is_zero(in_dims):
            raise ValueError(
                f"{what}: items of a Dataset are stacked along a first axis, which in_dims={in_dims} contradicts; give "
                "tensors, or a DataLoader whose collate_fn makes the batches"
                f"{see('how-to/whole_batches')}"
            )
        batches = _DatasetBatches(data, batch_size, shuffle, reader)
    else:
        got = f"{type(data).__name__} of {len(data)}" if isinstance(data, (tuple, list)) else type(data).__name__
        raise TypeError(
            f"{what}: expected (x, y) tensors (several inputs as a tuple or dictionary x), a data set with __getitem__ "
            f"and __len__, an IterableDataset or a DataLoader, got {got}{see('how-to/your_own_data')}"
        )
    if batches.num_data == 0:
        raise ValueError(f"{what}: expected at least one example, got an empty data set")
    return batches


def _are_items(data: object) -> bool:
    """Whether data are a list of items that are dictionaries."""
    return isinstance(data, list) and bool(data) and all(isinstance(item, Mapping) for item in data)


def _is_data_set(data: object) -> bool:
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return indexed and not isinstance(data, (tuple, list, Tensor, str))


def _is_zero(in_dims: InDims) -> bool:
    if isinstance(in_dims, Mapping):
        return all(map(_is_zero, in_dims.values()))
    return all(map(_is_zero, in_dims)) if isinstance(in_dims, tuple) else in_dims == 0


def _from_tensors(
    data: Any, batch_size: int, what: str, shuffle: bool, in_dims: InDims, reader: Reader
) -> _TensorBatches:
    y = None if isinstance(data, Mapping) else data[-1]
    if y is not None and (not isinstance(y, (Tensor, Mapping)) or (isinstance(y, Tensor) and y.dim() == 0)):
        raise TypeError(
            f"{what}: expected targets y as a tensor with an axis of examples, or a dictionary of such where the "
            f"likelihood has several, got {type(y).__name__}"
        )
    x, y = reader.split(data, what)
    count = count_examples(x, in_dims)
    if count not in (None, len(y)):
        advice = "an input that belongs to all examples (edges, a mask) is declared by None in BayesianModel(in_dims=)"
        raise ValueError(
            f"{what}: expected as many inputs as targets, got {count} and {len(y)}; {advice}"
            f"{see('how-to/whole_batches')}"
        )
    return _TensorBatches(x, y, batch_size, shuffle, in_dims)


def move_to_device(batches: Batches, device: torch.device) -> Batches:
    """Move the whole data set to the device, if it is held in memory as tensors and takes little of the free memory.

    A batch is then indexed on the device, and no step waits for a copy from the host.

    Args:
        batches: The batches.
        device: The model's device.

    Returns:
        Batches of the same examples in the same order.

    Example:
        >>> batches = as_batches((torch.zeros(5, 2), torch.arange(5)), 2)
        >>> move_to_device(batches, torch.device("cpu")) is batches
        True
    """
    if not isinstance(batches, _TensorBatches):
        return batches
    x, y = batches.in_memory
    parts = (*(x if isinstance(x, tuple) else (x,)), *pytree.tree_leaves(y))
    to_move = [part for part in parts if isinstance(part, Tensor) and part.device != device]
    if not to_move or sum(part.numel() * part.element_size() for part in to_move) > _free_memory(device):
        return batches
    return batches.moved_to(device)


def _free_memory(device: torch.device) -> int:
    """Bytes that data may take on a device: a quarter of the free memory of a GPU, 0 on any other device."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0

"""What users give as data, tensors, data sets and loaders, as batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from pyrostoch._checks import check_count
from pyrostoch._inputs import count_examples, example_axes, take_examples, to_device
from pyrostoch._manual import see
from pyrostoch.infer.batches import Batches, Share, epoch_order, inputs_and_targets
from pyrostoch.infer.parallel import Ranks
from pyrostoch.protocols import Data, InDims, Inputs

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

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Inputs, Tensor]]:
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
    def select(self, index: Tensor) -> tuple[Inputs, Tensor]:
        """The examples with these indices."""


class _TensorBatches(_IndexedBatches):
    def __init__(self, x: Inputs, y: Tensor, batch_size: int, shuffle: bool, in_dims: InDims) -> None:
        super().__init__(len(y), batch_size, shuffle, y.device)
        self.in_memory: tuple[Inputs, Tensor] = (x, y)
        self._x, self._y, self._in_dims = x, y, in_dims
        self._can_be_cut = any(axis is not None for axis in example_axes(x, in_dims))
        if not self._can_be_cut:
            self.batch_size = len(y)

    def select(self, index: Tensor) -> tuple[Inputs, Tensor]:
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
    def __init__(self, dataset: Dataset[Any], batch_size: int, shuffle: bool) -> None:
        super().__init__(len(dataset), batch_size, shuffle)  # type: ignore[arg-type]
        self._dataset = dataset

    def select(self, index: Tensor) -> tuple[Inputs, Tensor]:
        """Items of the data set, collated as by a `DataLoader`."""
        return inputs_and_targets(default_collate([self._dataset[i] for i in index.tolist()]))

    def whole(self) -> Batches:
        """All items as one batch."""
        return _DatasetBatches(self._dataset, self.num_data, self.shuffle)


class _LoaderBatches(Batches):
    from_loader = True

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self.batch_size = loader.batch_size
        self.items_are_batches = loader.batch_size is None and loader.batch_sampler is None
        try:
            self._steps = len(loader)
            # The sampler's length is the number of examples, since it may leave some out. Not so without a batch_size,
            # where it counts batches, nor with a DistributedSampler, which counts the examples of one process.
            use_dataset = loader.batch_size is None or isinstance(loader.sampler, DistributedSampler)
            counted: Any = loader.dataset if use_dataset else loader.sampler
            self.num_data = len(counted)
        except TypeError as error:
            raise TypeError(
                "data: expected a DataLoader of known length, since schedules need the number of steps: of a map-style "
                "Dataset, or of an IterableDataset with a __len__ that makes its own batches (batch_size=None)"
            ) from error

    def __len__(self) -> int:
        return self._steps

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        """The loader's batches, in the loader's own order."""
        count = 0
        for batch in self._loader:
            count += 1
            yield inputs_and_targets(batch)
        if not count:
            raise ValueError(f"data: expected {self._steps} batches from the DataLoader, got none")

    def shares(self, seed: int, number: int, ranks: Ranks) -> Iterator[Share]:
        """The loader's batches, which its sampler has already divided among the processes."""
        sampler = self._loader.sampler
        if ranks.is_distributed and not isinstance(sampler, DistributedSampler):
            raise ValueError(
                "data: expected a DataLoader with a torch.utils.data.DistributedSampler, since "
                f"{ranks.world_size} processes share the data, got one with a {type(sampler).__name__}; or give (x, y) "
                "or a Dataset, which fit divides among the processes itself"
                f"{see('how-to/several_devices')}"
            )
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(number)
        yield from super().shares(seed, number, ranks)

    def generators(self) -> list[torch.Generator]:
        """The generators of the loader and of its samplers."""
        batch_sampler = self._loader.batch_sampler
        parts = (self._loader, self._loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
        generators = [getattr(part, "generator", None) for part in parts]
        return list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())


_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def as_batches(
    data: Data, batch_size: int, what: str = "data", *, shuffle: bool = True, in_dims: InDims = 0
) -> Batches:
    """Split a data set into batches.

    Args:
        data: `(x, y)` tensors, where `x` may be a tuple of tensors; a `Dataset` of such items; or a `DataLoader`, which
            keeps its own batches and order.
        batch_size: Number of examples in a batch.
        what: Name of the data in error messages.
        shuffle: Whether an epoch with a seed has a random order; a loader decides for itself, and a single batch with
            all examples keeps their order.
        in_dims: The axis of each input that counts the examples; `None` for one that every batch gets whole.

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
    batches: Batches
    if isinstance(data, DataLoader):
        samplers = (data.sampler, getattr(data.batch_sampler, "sampler", None))
        random = [type(sampler).__name__ for sampler in samplers if isinstance(sampler, _RANDOM_SAMPLERS)]
        if not shuffle and random:
            raise ValueError(
                f"{what}: shuffle=False contradicts the DataLoader, whose {random[0]} decides about the order; build "
                "the loader with shuffle=False"
            )
        batches = _LoaderBatches(data)
    elif type(data) is TensorDataset and len(data.tensors) > 1:
        *inputs, y = data.tensors
        x = tuple(inputs) if len(inputs) > 1 else inputs[0]
        batches = _from_tensors(x, y, batch_size, what, shuffle, in_dims)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        if in_dims != 0 and set(in_dims if isinstance(in_dims, tuple) else (in_dims,)) != {0}:
            raise ValueError(
                f"{what}: items of a Dataset are stacked along a first axis, which in_dims={in_dims} contradicts; give "
                "tensors, or a DataLoader whose collate_fn makes the batches"
                f"{see('how-to/whole_batches')}"
            )
        batches = _DatasetBatches(data, batch_size, shuffle)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        batches = _from_tensors(data[0], data[1], batch_size, what, shuffle, in_dims)
    else:
        got = f"{type(data).__name__} of {len(data)}" if isinstance(data, (tuple, list)) else type(data).__name__
        raise TypeError(
            f"{what}: expected (x, y) tensors (several inputs as a tuple x), a map-style torch Dataset or a "
            f"DataLoader, got {got}"
        )
    if batches.num_data == 0:
        raise ValueError(f"{what}: expected at least one example, got an empty data set")
    return batches


def _from_tensors(x: Any, y: Any, batch_size: int, what: str, shuffle: bool, in_dims: InDims) -> Batches:
    if not isinstance(y, Tensor) or y.dim() == 0:
        raise TypeError(f"{what}: expected targets y as a tensor with an axis of examples, got {type(y).__name__}")
    x = tuple(x) if isinstance(x, list) else x
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
    parts = (*(x if isinstance(x, tuple) else (x,)), y)
    to_move = [part for part in parts if isinstance(part, Tensor) and part.device != device]
    if not to_move or sum(part.numel() * part.element_size() for part in to_move) > _free_memory(device):
        return batches
    return batches.moved_to(device)


def _free_memory(device: torch.device) -> int:
    """Bytes that data may take on a device: a quarter of the free memory of a GPU, 0 on any other device."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0

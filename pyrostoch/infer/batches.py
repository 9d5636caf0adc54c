"""A data set as batches `(x, y)`, in an order that a seed and the number of the epoch fix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from pyrostoch._checks import batch_size as count_of
from pyrostoch._seeds import mixed_seed
from pyrostoch.infer.parallel import Ranks

__all__ = ["Batches", "Inputs", "Share", "as_batches", "order_of", "pair", "move_to_device", "to_device"]

Inputs = Tensor | tuple[Tensor, ...]


def order_of(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which an epoch visits the examples, the same on every machine that runs the same torch.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        count: Number of examples.

    Returns:
        A permutation of 0 ... count - 1.

    Example:
        >>> bool((order_of(0, 1, 5) == order_of(0, 1, 5)).all()), sorted(order_of(0, 2, 4).tolist())
        (True, [0, 1, 2, 3])
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


def to_device(x: Any, device: torch.device) -> Any:
    """A tensor, or a tuple of tensors, on a device."""
    if isinstance(x, tuple):
        return tuple(part.to(device, non_blocking=True) for part in x)
    return x.to(device, non_blocking=True)


@dataclass(frozen=True)
class Share:
    """One process's part of a batch.

    Args:
        x: Inputs.
        y: Targets.
        weight: Weight of its data term, where there are several processes whose parts may differ in size.
        count: Examples of the whole batch.
    """

    x: Inputs
    y: Tensor
    weight: float | None
    count: int


class Batches(ABC):
    """A data set cut into batches.

    Attributes:
        num_data: Number of examples.
        batch_size: Number of examples of a batch, the last of which may be shorter; `None` where a loader decides.
        whole: The data set as one `(x, y)` where it lies in memory as tensors, else `None`.
    """

    num_data: int
    batch_size: int | None
    whole: tuple[Inputs, Tensor] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches of an epoch."""

    @abstractmethod
    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        """The batches of one epoch: shuffled by `seed` and `number`, or as they lie where `seed` is `None`."""

    def shares(self, seed: int, number: int, ranks: Ranks) -> Iterator[Share]:
        """The same batches, each cut into the parts of several processes.

        Args:
            seed: Seed of the order.
            number: Number of the epoch.
            ranks: The processes.
        """
        yield from (Share(x, y, None, len(y)) for x, y in self.epoch(seed, number))

    def generators(self) -> list[torch.Generator]:
        """Random generators other than torch's own that the order depends on."""
        return []


class _Indexed(Batches):
    """Batches by index: of tensors that are sliced, or of a data set that is asked item by item."""

    def __init__(self, count: int, batch_size: int, device: torch.device | None = None) -> None:
        self.num_data = count
        self.batch_size: int = batch_size
        self._device = device

    def __len__(self) -> int:
        return -(-self.num_data // self.batch_size)

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Slices of a permutation of the examples."""
        yield from (self.pick(index) for index in self._indices(seed, number))

    def shares(self, seed: int, number: int, ranks: Ranks) -> Iterator[Share]:
        """Each process takes every so many-th example of a batch."""
        for index in self._indices(seed, number):
            mine, weight = ranks.share(index)
            yield Share(*self.pick(mine), weight if ranks.many else None, len(index))

    def _indices(self, seed: int | None, number: int) -> Iterator[Tensor]:
        order = torch.arange(self.num_data) if seed is None else order_of(seed, number, self.num_data)
        # To the data's device once an epoch, so that no step waits for a copy of its indices.
        yield from order.to(self._device).split(self.batch_size)

    @abstractmethod
    def pick(self, index: Tensor) -> tuple[Inputs, Tensor]:
        """The named examples."""


class _Tensors(_Indexed):
    def __init__(self, x: Inputs, y: Tensor, batch_size: int) -> None:
        super().__init__(len(y), batch_size, y.device)
        self.whole = (x, y)
        self._x, self._y = x, y

    def pick(self, index: Tensor) -> tuple[Inputs, Tensor]:
        """Rows of the tensors, wherever they live."""
        rows = tuple(part[index.to(part.device)] for part in (self._x if isinstance(self._x, tuple) else (self._x,)))
        return rows if isinstance(self._x, tuple) else rows[0], self._y[index]


class _Items(_Indexed):
    def __init__(self, dataset: Dataset[Any], batch_size: int) -> None:
        super().__init__(len(dataset), batch_size)  # type: ignore[arg-type]
        self._dataset = dataset

    def pick(self, index: Tensor) -> tuple[Inputs, Tensor]:
        """Items of the data set, collated as a `DataLoader` would."""
        return pair(default_collate([self._dataset[i] for i in index.tolist()]))


class _Loader(Batches):
    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self.batch_size = loader.batch_size
        try:
            self._steps = len(loader)
            # A sampler may leave examples out; without batch_size it is the loader's own and counts batches, and one of
            # several processes counts a part.
            whole = loader.batch_size is None or isinstance(loader.sampler, DistributedSampler)
            counted: Any = loader.dataset if whole else loader.sampler
            self.num_data = len(counted)
        except TypeError as error:
            raise TypeError(
                "data: expected a DataLoader of known length, since schedules need the number of steps; give its data "
                "set a __len__"
            ) from error

    def __len__(self) -> int:
        return self._steps

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Inputs, Tensor]]:
        """The loader's batches, in the loader's own order."""
        yield from (pair(batch) for batch in self._loader)

    def shares(self, seed: int, number: int, ranks: Ranks) -> Iterator[Share]:
        """The loader's batches, which its sampler has shared out already."""
        sampler = self._loader.sampler
        if ranks.many and not isinstance(sampler, DistributedSampler):
            raise ValueError(
                f"data: expected a DataLoader with a torch.utils.data.DistributedSampler, since {ranks.size} processes "
                f"share the data, got one with a {type(sampler).__name__}; or give (x, y) or a Dataset, which fit "
                "shares out itself"
            )
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(number)
        yield from super().shares(seed, number, ranks)

    def generators(self) -> list[torch.Generator]:
        """The generators of the loader and of its samplers."""
        batched = self._loader.batch_sampler
        parts = (self._loader, self._loader.sampler, batched, getattr(batched, "sampler", None))
        found = [getattr(part, "generator", None) for part in parts]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def as_batches(data: Any, batch_size: int, what: str = "data") -> Batches:
    """Cut a data set into batches.

    Args:
        data: `(x, y)` tensors, where `x` may be a tuple of tensors; a `Dataset` of such items; or a `DataLoader`, which
            keeps its own batches and order.
        batch_size: Number of examples of a batch.
        what: What the errors call the data.

    Returns:
        The batches.

    Raises:
        TypeError: The data are none of these.
        ValueError: The data set is empty, or there are not as many inputs as targets.

    Example:
        >>> batches = as_batches((torch.zeros(5, 2), torch.arange(5)), 2)
        >>> [y.tolist() for _, y in batches.epoch(None, 0)]
        [[0, 1], [2, 3], [4]]
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number from 1 up, got {batch_size!r}")
    batches: Batches
    if isinstance(data, DataLoader):
        batches = _Loader(data)
    elif type(data) is TensorDataset and len(data.tensors) > 1:
        *inputs, y = data.tensors
        batches = _Tensors(tuple(inputs) if len(inputs) > 1 else inputs[0], y, batch_size)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        batches = _Items(data, batch_size)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        batches = _of_tensors(data[0], data[1], batch_size, what)
    else:
        got = f"{type(data).__name__} of {len(data)}" if isinstance(data, (tuple, list)) else type(data).__name__
        raise TypeError(
            f"{what}: expected (x, y) tensors (several inputs as a tuple x), a map-style torch Dataset or a "
            f"DataLoader, got {got}"
        )
    if batches.num_data == 0:
        raise ValueError(f"{what}: expected at least one example, got an empty data set")
    return batches


def _of_tensors(x: Any, y: Any, batch_size: int, what: str) -> Batches:
    if not isinstance(y, Tensor) or y.dim() == 0:
        raise TypeError(f"{what}: expected targets y as a tensor with an axis of examples, got {type(y).__name__}")
    x = tuple(x) if isinstance(x, list) else x
    for part in x if isinstance(x, tuple) else (x,):
        if count_of(part) != len(y):
            raise ValueError(f"{what}: expected as many inputs as targets, got {len(part)} inputs and {len(y)} targets")
    return _Tensors(x, y, batch_size)


def move_to_device(batches: Batches, device: torch.device) -> Batches:
    """The same batches with their data on the device, where they lie in memory as tensors and fit there easily.

    A batch is then a slice that no copy from the host waits for.

    Args:
        batches: The batches.
        device: Where the model lives.

    Returns:
        Batches of the same examples in the same order.

    Example:
        >>> batches = as_batches((torch.zeros(5, 2), torch.arange(5)), 2)
        >>> move_to_device(batches, torch.device("cpu")) is batches
        True
    """
    if batches.whole is None or batches.batch_size is None:
        return batches
    x, y = batches.whole
    parts = (*(x if isinstance(x, tuple) else (x,)), y)
    away = [part for part in parts if part.device != device]
    if not away or sum(part.numel() * part.element_size() for part in away) > _free_memory(device):
        return batches
    return _Tensors(to_device(x, device), y.to(device), batches.batch_size)


def _free_memory(device: torch.device) -> int:
    """Bytes that data may take on a device: a quarter of what is free on a GPU, nothing elsewhere."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0


def pair(batch: Any) -> tuple[Inputs, Tensor]:
    """`(x, y)` from what a data set or loader yields: the last entry is the target."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[-1], Tensor):
        raise TypeError(
            "data: expected items (x, y), or (x1, x2, ..., y) for several inputs, as tensors; got "
            + type(batch).__name__
            + (f" of {[type(part).__name__ for part in batch]}" if isinstance(batch, (tuple, list)) else "")
        )
    *inputs, y = batch
    x = inputs[0] if len(inputs) == 1 else tuple(inputs)
    return tuple(x) if isinstance(x, list) else x, y

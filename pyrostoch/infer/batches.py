"""A data set as batches `(x, y)`, in an order that depends on a seed and the epoch number only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch._seeds import mixed_seed
from pyrostoch._targets import Target
from pyrostoch.infer.parallel import Ranks
from pyrostoch.protocols import FlatInputs

__all__ = ["Batches", "Share", "epoch_order", "must_stay_whole"]


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of the examples in an epoch, the same on every machine with the same version of torch.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        count: Number of examples.

    Returns:
        A permutation of 0 ... count - 1.

    Example:
        >>> bool((epoch_order(0, 1, 5) == epoch_order(0, 1, 5)).all()), sorted(epoch_order(0, 2, 4).tolist())
        (True, [0, 1, 2, 3])
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


@dataclass(frozen=True)
class Share:
    """One process's part of a batch.

    Args:
        x: Inputs.
        y: Targets.
        weight: Weight of this part's data term, which makes up for parts of different size; `None` with one process.
        count: Number of examples in the whole batch.
    """

    x: FlatInputs
    y: Target
    weight: float | None
    count: int


class Batches(ABC):
    """A data set split into batches.

    Attributes:
        num_data: Number of examples.
        batch_size: Number of examples in a batch, the last of which may be smaller; `None` where a loader decides.
        shuffle: Whether epochs with a seed have a random order.
        from_loader: Whether a loader of the user's makes the batches.
        is_stream: Whether an epoch is a part of a stream, which goes on in the next one.
        items_are_batches: Whether a loader's data set holds whole batches, as parts of graphs; `num_data` counts those
            until somebody who knows the number of examples sets it.
        in_memory: The whole data set `(x, y)` where it is held in memory as tensors, else `None`.
    """

    num_data: int
    batch_size: int | None
    shuffle: bool = True
    from_loader: bool = False
    is_stream: bool = False
    items_are_batches: bool = False
    in_memory: tuple[FlatInputs, Target] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches in an epoch."""

    @abstractmethod
    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[FlatInputs, Target]]:
        """The batches of one epoch.

        Args:
            seed: Seed of the order; `None` keeps the order of the data set.
            number: Number of the epoch; together with the seed it determines the order.
        """

    def first(self) -> tuple[FlatInputs, Target]:
        """A batch of an epoch."""
        return next(iter(self.epoch(None, 0)))

    def shares(self, seed: int, number: int, ranks: Ranks) -> Iterator[Share]:
        """This process's part of each batch of `epoch`.

        Args:
            seed: Seed of the order.
            number: Number of the epoch.
            ranks: The processes among which each batch is divided.
        """
        yield from (Share(x, y, None, len(y)) for x, y in self.epoch(seed, number))

    def generators(self) -> list[torch.Generator]:
        """The random generators that the order depends on, besides torch's global one."""
        return []

    def whole(self) -> Batches:
        """The same data set as a single batch; a loader keeps its batches."""
        return self


def must_stay_whole(batches: Batches, model: object, *, also_of_loader: bool = False) -> bool:
    """Whether a data set must not be cut into batches, since a model's examples meet in its network.

    Args:
        batches: The batches. Those of a loader are what its owner wants them to be.
        model: A model; one without a method `examples_meet` is taken to keep examples apart.
        also_of_loader: Whether the batches of a loader are to be cut, too, and not only used as they come.

    Example:
        >>> from pyrostoch.infer.data_sets import as_batches
        >>> must_stay_whole(as_batches((torch.zeros(5, 2), torch.arange(5)), 2), model=None)
        False
    """
    find = getattr(model, "examples_meet", None)
    if not callable(find) or (batches.from_loader and not also_of_loader):
        return False
    return bool(find(*(batches.first() if batches.in_memory is None else batches.in_memory)))

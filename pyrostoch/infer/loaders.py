"""Batches that a loader of the user's makes: of known length, or a stream without an end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch._targets import Target
from pyrostoch.infer.batches import Batches, Share
from pyrostoch.infer.items import Reader
from pyrostoch.infer.parallel import Ranks
from pyrostoch.protocols import FlatInputs

__all__ = ["LoaderBatches", "Stream"]


@dataclass(frozen=True)
class Stream:
    """The length that a stream of unknown length lacks.

    Args:
        num_data: Number of examples, N of the ELBO.
        steps_per_epoch: Number of batches in an epoch; `None` for one pass, of which no length is needed.
        is_trained: Whether schedules need the number of steps.
    """

    num_data: int
    steps_per_epoch: int | None = None
    is_trained: bool = False


class LoaderBatches(Batches):
    """The batches of a `DataLoader`, in its own order.

    With `steps_per_epoch` an epoch is so many batches, and the next one goes on where it ended; a loader that ends
    begins anew.

    Args:
        loader: The loader.
        reader: Splits its batches into inputs and targets.
        what: Name of the data in error messages.
        stream: What a loader of unknown length lacks.

    Attributes:
        is_stream: Whether its length is not known, or is not that of an epoch.

    Raises:
        TypeError: Its length is not known, and schedules need it.
    """

    from_loader = True

    def __init__(
        self, loader: DataLoader[Any], reader: Reader, what: str = "data", stream: Stream | None = None
    ) -> None:
        self._loader, self._reader, self._what = loader, reader, what
        self.batch_size = loader.batch_size
        self.items_are_batches = loader.batch_size is None and loader.batch_sampler is None
        self._running: Iterator[Any] | None = None
        self._first: tuple[FlatInputs, Target] | None = None
        length = _length(loader)
        self._steps = length[0] if length is not None else None
        self.is_stream = length is None or (stream is not None and stream.steps_per_epoch is not None)
        if not self.is_stream and length is not None:
            self.num_data = length[1]
            return
        if stream is None or (stream.is_trained and stream.steps_per_epoch is None):
            raise TypeError(
                f"{what}: the loader has no length, and schedules need the number of steps: give fit(..., "
                "steps_per_epoch=), the number of batches of an epoch; num_data of the model says how many examples "
                f"there are{see('how-to/your_own_data')}"
            )
        self.num_data, self.items_are_batches = stream.num_data, False
        if stream.steps_per_epoch is not None:
            self._steps = check_count("steps_per_epoch", stream.steps_per_epoch)

    def __len__(self) -> int:
        if self._steps is None:
            raise TypeError(f"{self._what}: a stream of unknown length has no number of batches")
        return self._steps

    def first(self) -> tuple[FlatInputs, Target]:
        """A batch of an epoch; one of a stream comes again in the next epoch."""
        if not self.is_stream:
            return super().first()
        if self._first is None:
            self._first = self._next()
        return self._first

    def _next(self) -> tuple[FlatInputs, Target]:
        """The next batch of a stream."""
        for _ in range(2):
            if self._running is None:
                self._running = iter(self._loader)
            for batch in self._running:
                return self._reader.split(batch, self._what)
            self._running = None  # it has ended, and begins anew
        raise ValueError(f"{self._what}: the stream has ended, and gives nothing when it is begun anew")

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[FlatInputs, Target]]:
        """The loader's batches, in the loader's own order."""
        if self.is_stream and self._steps is not None:
            for _ in range(self._steps):
                batch, self._first = self._first or self._next(), None
                yield batch
            return
        count = 0
        for batch in self._loader:
            count += 1
            yield self._reader.split(batch, self._what)
        if not count:
            raise ValueError(
                f"{self._what}: expected batches from the DataLoader, got none; data that can be read once only cannot "
                f"be read for each epoch, or for each mode{see('how-to/your_own_data')}"
            )

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


def _length(loader: DataLoader[Any]) -> tuple[int, int] | None:
    """Numbers of batches and of examples of a loader; `None` where they are not known."""
    # The sampler's length is the number of examples, since it may leave some out. Not so without a batch_size, where it
    # counts batches, nor with a DistributedSampler, which counts the examples of one process; streams have none.
    of_dataset = (
        loader.batch_size is None
        or isinstance(loader.sampler, DistributedSampler)
        or isinstance(loader.dataset, IterableDataset)
    )
    counted: Any = loader.dataset if of_dataset else loader.sampler
    try:
        return len(loader), len(counted)
    except TypeError:
        return None

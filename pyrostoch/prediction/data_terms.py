"""The data term of an ELBO over batches and draws, for each head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.distributions import Distribution

from pyrostoch._targets import Target
from pyrostoch.likelihoods.several import observations
from pyrostoch.prediction.observed import observed_mask
from pyrostoch.records import Record

__all__ = ["HeadRow", "HeadTotals", "mean_and_error"]


@dataclass(frozen=True)
class HeadRow(Record):
    """The data term of one head.

    Args:
        head: Name of the head.
        data: Expected log-likelihood, summed over all examples.
        stderr: Standard error of `data` over the draws; `None` with a single one.
        num_targets: Number of targets of all examples.
        num_observed: Number of those that are observed.
    """

    head: str
    data: float
    stderr: float | None
    num_targets: int
    num_observed: int


class HeadTotals:
    """Data terms of batches, one for each draw and head; a single draw where nothing is drawn.

    Args:
        num_samples: Number of draws.

    Example:
        >>> totals = HeadTotals(2)
        >>> totals.start_batch()
        >>> for mean in (0.0, 1.0):
        ...     totals.add(torch.distributions.Normal(torch.full((3,), mean), 1.0), torch.zeros(3))
        >>> [round(total, 4) for total in totals.by_draw()], totals.num_observed
        ([-2.7568, -4.2568], 3)
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._batches: list[dict[str, list[float]]] = []
        self._targets: dict[str, int] = {}
        self._observed: dict[str, int] = {}

    def start_batch(self) -> None:
        """Say that what is added next belongs to another batch."""
        self._batches.append({})

    def add(self, distribution: Distribution, y: Target) -> None:
        """Add a draw for the present batch.

        Args:
            distribution: The distribution of the observations.
            y: Targets.
        """
        batch = self._batches[-1]
        for part in observations(distribution, y):
            value = part.log_prob().sum(dtype=torch.float64).item()
            if part.name not in batch and part.value is not None:
                mask = observed_mask(part.distribution, part.value)
                size = part.value.numel()
                self._targets[part.name] = self._targets.get(part.name, 0) + size
                seen = size if mask is None else int(mask.sum())
                self._observed[part.name] = self._observed.get(part.name, 0) + seen
            batch.setdefault(part.name, []).append(value)

    @property
    def num_targets(self) -> int:
        """Number of targets in all."""
        return sum(self._targets.values())

    @property
    def num_observed(self) -> int:
        """Number of targets that are observed."""
        return sum(self._observed.values())

    def by_draw(self, head: str | None = None) -> list[float]:
        """The data term of each draw, of one head or of all.

        Args:
            head: Name of the head.
        """
        lists = [values for batch in self._batches for name, values in batch.items() if head is None or name == head]
        return [math.fsum(values[min(k, len(values) - 1)] for values in lists) for k in range(self.num_samples)]

    def rows(self, sampled: bool) -> tuple[HeadRow, ...]:
        """The data term of each head, where there are several.

        Args:
            sampled: Whether anything was drawn.
        """
        rows = []
        for name in filter(None, self._targets):
            totals = self.by_draw(name)
            mean, error = mean_and_error(totals) if sampled else (totals[0], 0.0)
            rows.append(HeadRow(name, mean, error, self._targets[name], self._observed[name]))
        return tuple(rows)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of some numbers and its standard error, `None` for a single number.

    Args:
        values: The numbers.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)
    """
    mean = math.fsum(values) / len(values)
    if len(values) > 1 and min(values) == max(values):
        return values[0], 0.0  # a computed mean of equal numbers may differ from them in its last bit
    if len(values) < 2:
        return mean, None
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) * (len(values) - 1)))

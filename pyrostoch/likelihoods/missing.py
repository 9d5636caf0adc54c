"""Targets that are missing: what is NaN, or a label that stands for none, has no part in densities and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints
from torch.types import _size

__all__ = ["Missing", "WithMissing", "mark_padding", "with_missing"]

# A possible value by support.
_FILLERS: dict[Any, float] = {
    constraints.real: 0.0,
    constraints.real_vector.base_constraint: 0.0,
    constraints.positive: 1.0,
    constraints.nonnegative: 1.0,
    constraints.nonnegative_integer: 0.0,
    constraints.boolean: 0.0,
    constraints.unit_interval: 0.5,
}


@dataclass(frozen=True)
class Missing:
    """Which targets count as missing.

    Args:
        nan: Whether NaN does.
        index: A label that does; `None` for none.
    """

    nan: bool = False
    index: int | None = None

    def __bool__(self) -> bool:
        return self.nan or self.index is not None

    def where(self, target: Tensor) -> Tensor:
        """True where targets are missing.

        Args:
            target: The targets.
        """
        found = torch.zeros_like(target, dtype=torch.bool)
        if self.nan and target.is_floating_point():
            found = found | torch.isnan(target)
        return found if self.index is None else found | (target == self.index)

    def filled(self, target: Tensor, distribution: Distribution) -> Tensor:
        """The targets with a possible value of the distribution where they are missing.

        Args:
            target: The targets.
            distribution: Their distribution.
        """
        if not target.is_floating_point():
            return torch.where(self.where(target), 0, target)
        support: Any = getattr(type(distribution), "support", None)
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if support not in _FILLERS:
            raise ValueError(
                f"missing targets: {type(distribution).__name__} has the support {support}, of which no value is known "
                "to put in their place; leave these examples out"
            )
        return torch.where(self.where(target), _FILLERS[support], target)


class WithMissing(MaskedDistribution):
    """A distribution whose log density is 0 for targets that are missing.

    Args:
        base: The distribution of each target.
        missing: Which count as missing.

    Example:
        >>> import pyro.distributions as dist
        >>> observed = WithMissing(dist.Normal(torch.zeros(2), 1.0), Missing(nan=True))
        >>> observed.log_prob(torch.tensor([torch.nan, 0.0]))
        tensor([ 0.0000, -0.9189])
    """

    def __init__(self, base: Distribution, missing: Missing) -> None:
        super().__init__(base, True)
        self.missing = missing

    def expand(self, batch_shape: _size, _instance: Any = None) -> Any:
        """The same distribution with a larger batch shape."""
        return WithMissing(self.base_dist.expand(batch_shape), self.missing)

    def absent(self, value: Tensor) -> Tensor:
        """True where an event is missing as a whole, in the batch shape.

        Args:
            value: Targets.

        Raises:
            ValueError: A part of an event is missing, whose other entries depend on it.
        """
        absent = self.missing.where(value)
        for _ in range(len(self.base_dist.event_shape)):
            if bool((absent.any(-1) != absent.all(-1)).any()):
                raise ValueError(
                    f"missing targets: the entries of a {type(self.base_dist).__name__} target depend on each other; "
                    "expected all of them to be missing, or none"
                )
            absent = absent.all(-1)
        return absent

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of targets, and 0 where they are missing.

        Args:
            value: Targets.
        """
        absent = self.absent(value)
        found: Tensor = self.base_dist.log_prob(self.missing.filled(value, self.base_dist))
        return torch.where(absent, 0.0, found)


def with_missing(distribution: Distribution, missing: Missing) -> Distribution:
    """A distribution of observations in which targets may be missing, entry by entry where they are independent.

    Args:
        distribution: The distribution.
        missing: Which count as missing.
    """
    if isinstance(distribution, Independent):
        inner: Any = with_missing(distribution.base_dist, missing)
        found: Distribution = inner.to_event(distribution.reinterpreted_batch_ndims)
        return found
    return WithMissing(distribution, missing)


def mark_padding(target: Tensor, lengths: Tensor, index: int | None = None) -> Tensor:
    """Padded targets with what is beyond their length marked as missing, for `nan_is_missing` and `ignore_index`.

    Args:
        target: Padded sequences or sets, (batch, most, ...): real numbers, or labels.
        lengths: Number of entries of each that are no padding, (batch,).
        index: The label that stands for none; NaN takes that place for real numbers.

    Returns:
        A copy with padding replaced.

    Raises:
        ValueError: Shapes do not fit, a length is larger than there is room, or labels lack an `index`.

    Example:
        >>> mark_padding(torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]), torch.tensor([2, 1]))
        tensor([[1., 2., nan],
                [3., nan, nan]])
        >>> mark_padding(torch.tensor([[4, 0]]), torch.tensor([1]), index=-100)
        tensor([[   4, -100]])
    """
    whole = not lengths.is_floating_point() and lengths.dtype != torch.bool
    if target.dim() < 2 or lengths.shape != target.shape[:1] or not whole:
        raise ValueError(
            f"padding: expected targets (batch, most, ...) and a whole number for each example, got "
            f"{tuple(target.shape)} and {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if bool(((lengths < 0) | (lengths > target.shape[1])).any()):
        raise ValueError(
            f"padding: expected lengths from 0 to {target.shape[1]}, got {lengths.min()} to {lengths.max()}"
        )
    if target.is_floating_point() != (index is None):
        raise ValueError(
            f"padding: labels need an index that stands for none, real numbers have NaN; got {target.dtype}"
        )
    beyond = torch.arange(target.shape[1], device=target.device) >= lengths[:, None]
    beyond = beyond.reshape(beyond.shape + (1,) * (target.dim() - 2))
    if index is not None:
        limits = torch.iinfo(target.dtype)
        if not limits.min <= index <= limits.max:
            raise ValueError(f"padding: the index {index} does not fit into {target.dtype}; convert by labels.long()")
        if bool(((target == index) & ~beyond).any()):
            raise ValueError(
                f"padding: the index {index} is a label of some entries, too; choose another, such as -100"
            )
    return torch.where(beyond, torch.nan if index is None else index, target)

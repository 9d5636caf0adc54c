"""Targets that are missing: what is NaN, or a label that stands for none, has no part in densities and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints
from torch.types import _size

__all__ = ["Missing", "WithMissing", "with_missing"]

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

"""A distribution some of whose entries are constants."""

from __future__ import annotations

from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import kl_divergence, register_kl
from torch.types import _size

from pyrostoch._fixed_entries import FixedEntries

__all__ = ["PartlyFixed"]


class PartlyFixed(TorchDistribution):
    r"""Independent entries, some of which are constants $c_i$ and are never drawn.

    A fixed entry costs nothing: between two such distributions with the same fixed entries, the KL divergence is that
    of the other entries alone. A constant has no density. So that Pyro's other inference algorithms, which draw every
    entry, have a proper target, a fixed entry has the log density of $N(c_i, 1)$, which cancels between guide and
    model; the network puts the constant in place of what they draw.

    Args:
        base_dist: The distribution of all entries, elementwise.
        fixed: Which entries are constant, and the constants.

    Example:
        >>> import pyro.distributions as dist
        >>> fixed = FixedEntries(torch.tensor([True, False]), torch.tensor(7.0))
        >>> mixed = PartlyFixed(dist.Normal(torch.zeros(2), 1.0), fixed)
        >>> mixed.mean.tolist(), mixed.variance.tolist(), mixed.sample()[0].item()
        ([7.0, 0.0], [0.0, 1.0], 7.0)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base_dist: Distribution, fixed: FixedEntries) -> None:
        self.base_dist: Any = base_dist
        self.fixed = fixed
        super().__init__(base_dist.batch_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the base distribution has reparameterized draws."""
        return bool(self.base_dist.has_rsample)

    @property
    def support(self) -> Any:
        """The support of the entries that are drawn."""
        return self.base_dist.support

    @property
    def free(self) -> Tensor:
        """True for the entries that are drawn, in the batch shape."""
        return (~self.fixed.mask).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """The constants, and the base distribution's mean elsewhere."""
        return self.fixed.put_into(self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        """Zero for the constants, and the base distribution's variance elsewhere."""
        return torch.where(self.fixed.mask, 0.0, self.base_dist.variance)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Self:
        """The same distribution with a larger batch shape."""
        return type(self)(self.base_dist.expand(Size(batch_shape)), self.fixed)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw with the constants in it, of shape `sample_shape + batch_shape`."""
        return self.fixed.put_into(self.base_dist.rsample(Size(sample_shape)))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """The same draw, without gradient."""
        with torch.no_grad():
            return self.fixed.put_into(self.base_dist.sample(Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each entry; that of N(constant, 1) for the fixed ones."""
        constants = self.fixed.value.to(value.dtype)
        standard = torch.distributions.Normal(constants, torch.ones_like(constants), validate_args=False)
        # A stand-in for the constants, at which the base distribution may have no density and no gradient.
        drawn = torch.where(self.fixed.mask, 1.0, value)
        validated, self.base_dist._validate_args = self.base_dist._validate_args, False
        try:
            log_prob = self.base_dist.log_prob(drawn)
        finally:
            self.base_dist._validate_args = validated
        return torch.where(self.fixed.mask, standard.log_prob(value), log_prob)


@register_kl(PartlyFixed, PartlyFixed)
def _kl_partly_fixed(q: PartlyFixed, p: PartlyFixed) -> Tensor:
    return torch.where(q.free & p.free, kl_divergence(q.base_dist, p.base_dist), 0.0)

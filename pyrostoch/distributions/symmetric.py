"""Distributions symmetric about zero with one scale: the base of the uniform and the two-point distribution."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size


class SymmetricDistribution(TorchDistribution):
    r"""A distribution of $w = \varphi\,\varepsilon$, where $\varepsilon$ is parameter-free noise with mean zero.

    A subclass defines `_noise(shape)` and `noise_variance`; the base class handles scale, shapes and the
    reparameterized draw.

    Args:
        scale: $\varphi > 0$, a number or a tensor; its shape is the batch shape.
        validate_args: Check the scale, and the values given to `log_prob`; torch's default when None.

    Example:
        >>> class Triangular(SymmetricDistribution):
        ...     noise_variance = 1 / 6
        ...     def _noise(self, shape):
        ...         return torch.rand(shape) - torch.rand(shape)
        >>> Triangular(torch.tensor(3.0)).variance
        tensor(1.5000)
    """

    arg_constraints = {"scale": constraints.positive}
    has_rsample = True
    zero_mean = True
    noise_variance: float

    def __init__(self, scale: Tensor | float, validate_args: bool | None = None) -> None:
        (self.scale,) = broadcast_all(scale)
        super().__init__(self.scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: SymmetricDistribution | None = None) -> SymmetricDistribution:
        """The same distribution with a larger batch shape, without copying the scale."""
        new = self._get_checked_instance(SymmetricDistribution, _instance)
        new.scale = self.scale.expand(batch_shape)
        super(SymmetricDistribution, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Zeros of the batch shape (expanded: no memory)."""
        return torch.zeros((), dtype=self.scale.dtype, device=self.scale.device).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """The variance, in the batch shape."""
        return self.scale.square() * self.noise_variance

    @property
    def stddev(self) -> Tensor:
        """The standard deviation, in the batch shape."""
        return self.scale * self.noise_variance**0.5

    def _noise(self, shape: Size) -> Tensor:
        """Noise of unit scale, in the scale's dtype and on its device."""
        raise TypeError(f"{type(self).__name__} is a SymmetricDistribution without noise: define _noise(shape)")

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw of shape `sample_shape + batch_shape`, differentiable in the scale."""
        return self.scale * self._noise(self._extended_shape(Size(sample_shape)))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """The same draw as `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

"""The uniform distribution of a weight around zero."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyrostoch.distributions.symmetric import SymmetricDistribution


class SymmetricUniform(SymmetricDistribution):
    r"""Uniform distribution $U(-\varphi, \varphi)$, reparameterized: $w = \varphi\,(2u - 1)$ with $u \sim U(0, 1)$.

    Mean zero, variance $\varphi^2 / 3$, density $1 / (2\varphi)$ inside the interval. One of the families of variance
    networks, whose weights store information in their variance only.

    Args:
        scale: Half width $\varphi > 0$, a number or a tensor; its shape is the batch shape.
        validate_args: Check the scale, and the values given to `log_prob`; torch's default when None.

    Example:
        >>> distribution = SymmetricUniform(torch.tensor([1.0, 3.0]))
        >>> distribution.variance
        tensor([0.3333, 3.0000])
        >>> distribution.log_prob(torch.tensor([0.5, -2.0])).exp()
        tensor([0.5000, 0.1667])

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov 2018, "Variance Networks: When Expectation Does Not Meet Your
        Expectations" (arXiv 1803.03764).
    """

    noise_variance = 1 / 3

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The closed interval from `-scale` to `scale`."""
        return constraints.interval(-self.scale, self.scale)

    def _noise(self, shape: Size) -> Tensor:
        return 2 * torch.rand(shape, dtype=self.scale.dtype, device=self.scale.device) - 1

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats: `-log(2 scale)` inside the interval, minus infinity outside."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.where(value.abs() <= self.scale, -(2 * self.scale).log(), -math.inf)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, `log(2 scale)`."""
        return (2 * self.scale).log()

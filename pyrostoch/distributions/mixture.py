"""The scale mixture of two Gaussians, a prior with a narrow peak and wide tails."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size


class ScaleMixture(TorchDistribution):
    r"""Scale mixture $\pi\,N(0, \sigma_1^2) + (1 - \pi)\,N(0, \sigma_2^2)$, the prior of "Bayes by backprop".

    Mean zero, variance $\pi\sigma_1^2 + (1 - \pi)\sigma_2^2$. Draws carry no gradient (a prior needs none);
    `log_prob` is differentiable in the value and in all three parameters. Its KL has no closed form and is
    estimated from draws.

    Args:
        mix: $\pi$ in [0, 1], the probability of the first component.
        scale1: $\sigma_1 > 0$.
        scale2: $\sigma_2 > 0$; the three broadcast to the batch shape.
        validate_args: Check the parameters, and the values given to `log_prob`; torch's default when None.

    Example:
        >>> prior = ScaleMixture(0.5, 1.0, 0.1)
        >>> prior.variance
        tensor(0.5050)
        >>> prior.log_prob(torch.tensor([0.0, 1.0]))
        tensor([ 0.7858, -2.1121])

    References:
        Blundell, Cornebise, Kavukcuoglu, Wierstra 2015, "Weight Uncertainty in Neural Networks".
    """

    arg_constraints = {
        "mix": constraints.unit_interval,
        "scale1": constraints.positive,
        "scale2": constraints.positive,
    }
    support = constraints.real
    has_rsample = False
    zero_mean = True

    def __init__(
        self,
        mix: Tensor | float,
        scale1: Tensor | float,
        scale2: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.mix, self.scale1, self.scale2 = broadcast_all(mix, scale1, scale2)
        super().__init__(self.mix.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: ScaleMixture | None = None) -> ScaleMixture:
        """The same distribution with a larger batch shape, without copying the parameters."""
        new = self._get_checked_instance(ScaleMixture, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(ScaleMixture, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Zeros of the batch shape (expanded: no memory)."""
        return torch.zeros((), dtype=self.mix.dtype, device=self.mix.device).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """The variance, in the batch shape."""
        return self.mix * self.scale1.square() + (1 - self.mix) * self.scale2.square()

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """A draw of shape `sample_shape + batch_shape`."""
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            first = torch.rand(shape, dtype=self.mix.dtype, device=self.mix.device) < self.mix
            noise = torch.randn(shape, dtype=self.mix.dtype, device=self.mix.device)
            return noise * torch.where(first, self.scale1, self.scale2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, of the broadcast shape of the value and the batch."""
        if self._validate_args:
            self._validate_sample(value)
        first = self.mix.log() - (value / self.scale1).square() / 2 - self.scale1.log()
        second = torch.log1p(-self.mix) - (value / self.scale2).square() / 2 - self.scale2.log()
        return torch.logaddexp(first, second) - math.log(2 * math.pi) / 2

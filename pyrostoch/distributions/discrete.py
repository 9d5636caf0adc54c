"""The two-point distribution of a weight around zero."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyrostoch.distributions.symmetric import SymmetricDistribution

# A value that was not computed as -scale or +scale exactly may differ in its last bits.
_TOLERANCE_ULPS = 16


class _TwoPoints(constraints.Constraint):
    """The values -scale and +scale, up to rounding."""

    is_discrete = True

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is one of the two points."""
        # The rounding error is that of the coarser of the two types.
        eps = max(torch.finfo(value.dtype).eps, torch.finfo(self.scale.dtype).eps)
        return (value.abs() - self.scale).abs() <= _TOLERANCE_ULPS * eps * self.scale


class TwoPoint(SymmetricDistribution):
    r"""The values $-\varphi$ and $+\varphi$, each with probability 1/2: a random sign times a learned scale.

    Mean zero, variance $\varphi^2$. The draw is reparameterized in the scale, $w = \varphi\,\varepsilon$ with
    $\varepsilon = \pm 1$, so its gradient needs no score function. `log_prob` is the log of a probability mass,
    $-\log 2$, not of a density. The KL divergence to a continuous prior is infinite and raises an error; to
    `LogUniform` it is 0 by convention (see `kl_pairs`), as it is the same for every scale.

    Args:
        scale: $\varphi > 0$, a number or a tensor; its shape is the batch shape.
        validate_args: Check the scale, and the values given to `log_prob`; torch's default when None.

    Example:
        >>> distribution = TwoPoint(torch.tensor(0.5))
        >>> distribution.log_prob(torch.tensor([-0.5, 0.5])).exp()
        tensor([0.5000, 0.5000])
        >>> distribution.sample((1000,)).abs().unique()
        tensor([0.5000])

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov 2018, "Variance Networks: When Expectation Does Not Meet Your
        Expectations" (arXiv 1803.03764), the Bernoulli family.
    """

    noise_variance = 1.0

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The two points, up to rounding."""
        return _TwoPoints(self.scale)

    def _noise(self, shape: Size) -> Tensor:
        uniform = torch.rand(shape, dtype=self.scale.dtype, device=self.scale.device)
        return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats: `-log 2` at each of the two points (up to rounding), minus infinity elsewhere."""
        if self._validate_args:
            self._validate_sample(value)
        log_half = torch.full((), -math.log(2), dtype=self.scale.dtype, device=self.scale.device)
        return torch.where(_TwoPoints(self.scale).check(value), log_half, -math.inf)

    def entropy(self) -> Tensor:
        """Entropy of the sign in nats, `log 2`."""
        return torch.full_like(self.scale, math.log(2))

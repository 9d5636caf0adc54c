"""Gaussian distributions of a weight: multiplicative noise, and noise around zero."""

from __future__ import annotations

import math

import torch
from pyro.distributions import Normal
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size


class MultiplicativeNormal(Normal):
    r"""Gaussian $N(\mu, \alpha\mu^2)$: multiplicative noise with relative variance $\alpha$, reparameterized.

    A draw is $w = \mu\,(1 + \sqrt{\alpha}\,\varepsilon)$ with $\varepsilon \sim N(0, 1)$; its gradient is finite also
    at $\mu = 0$. The class is a `Normal` that computes `scale` $= \sqrt{\alpha}\,|\mu|$ and `variance`
    $= \alpha\mu^2$ on access.

    `log_alpha` may have fewer elements than `loc` (one alpha for a neuron, or for a layer) and is stored without
    expansion: the KL divergences that depend on alpha alone are evaluated once for each alpha, not for each weight.

    At $\mu = 0$ the distribution is a point mass: `log_prob` is plus infinity at 0 and minus infinity elsewhere.

    Args:
        loc: Mean $\mu$, a number or a tensor.
        log_alpha: $\log\alpha$, a number or a tensor, broadcast against `loc`.
        validate_args: Check that parameters are not NaN, and check the values given to `log_prob`; torch's default
            when None.

    Example:
        >>> distribution = MultiplicativeNormal(torch.ones(3, 4), torch.tensor(-2.0))
        >>> distribution.batch_shape, distribution.unexpanded_log_alpha.shape
        (torch.Size([3, 4]), torch.Size([]))
        >>> distribution.variance[0, 0]
        tensor(0.1353)

    References:
        Kingma, Salimans, Welling 2015, "Variational Dropout and the Local Reparameterization Trick";
        Molchanov, Ashukha, Vetrov 2017, "Variational Dropout Sparsifies Deep Neural Networks";
        Neklyudov, Molchanov, Ashukha, Vetrov 2018, "Variance Networks" (arXiv 1803.03764), on shared alphas.
    """

    arg_constraints = {"loc": constraints.real, "log_alpha": constraints.real}
    zero_mean = False
    #: Log alpha in the shape in which it was given; it broadcasts to the batch shape.
    unexpanded_log_alpha: Tensor

    def __init__(self, loc: Tensor | float, log_alpha: Tensor | float, validate_args: bool | None = None) -> None:
        if not isinstance(loc, Tensor):
            like = log_alpha if isinstance(log_alpha, Tensor) else torch.empty(())
            loc = torch.as_tensor(loc, dtype=like.dtype, device=like.device)
        self.unexpanded_log_alpha = torch.as_tensor(log_alpha, dtype=loc.dtype, device=loc.device)
        batch_shape = torch.broadcast_shapes(loc.shape, self.unexpanded_log_alpha.shape)
        self.loc = loc.expand(batch_shape)
        # Skip Normal's constructor, which would store an expanded scale.
        super(torch.distributions.Normal, self).__init__(batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: MultiplicativeNormal | None = None) -> MultiplicativeNormal:
        """The same distribution with a larger batch shape; `unexpanded_log_alpha` is not expanded."""
        new = self._get_checked_instance(MultiplicativeNormal, _instance)
        new.loc = self.loc.expand(batch_shape)
        new.unexpanded_log_alpha = self.unexpanded_log_alpha
        super(torch.distributions.Normal, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def log_alpha(self) -> Tensor:
        """Log of the relative variance, expanded to the batch shape."""
        return self.unexpanded_log_alpha.expand(self.batch_shape)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Standard deviation, `exp(log_alpha / 2) |loc|`."""
        return (self.unexpanded_log_alpha / 2).exp() * self.loc.abs()

    @property
    def variance(self) -> Tensor:
        """Variance, `exp(log_alpha) loc**2`: smooth in `loc` also at zero."""
        return self.unexpanded_log_alpha.exp() * self.loc.square()

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw of shape `sample_shape + batch_shape`, differentiable in `loc` and `log_alpha`."""
        shape = self._extended_shape(Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc * (1 + (self.unexpanded_log_alpha / 2).exp() * noise)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """The same draw as `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; that of a point mass where `loc` is zero."""
        if self._validate_args:
            self._validate_sample(value)
        scale = self.scale
        degenerate = scale == 0
        # `where` evaluates both branches: avoid a division by zero, also in the gradient.
        scale = torch.where(degenerate, 1.0, scale)
        density = -((value - self.loc) / scale).square() / 2 - scale.log() - math.log(2 * math.pi) / 2
        atom = torch.where(value == self.loc, math.inf, -math.inf).to(density.dtype)
        return torch.where(degenerate, atom, density)


class CenteredNormal(Normal):
    r"""Gaussian around zero, $N(0, \sigma^2)$: the distribution of a weight in a variance network.

    The limit $\alpha \to \infty$ of multiplicative noise: the mean is zero, and the weight stores information in its
    variance only.

    Args:
        scale: Standard deviation $\sigma > 0$, a number or a tensor; its shape is the batch shape.
        validate_args: Check the scale, and the values given to `log_prob`; torch's default when None.

    Example:
        >>> distribution = CenteredNormal(torch.tensor([0.5, 2.0]))
        >>> distribution.mean, distribution.variance
        (tensor([0., 0.]), tensor([0.2500, 4.0000]))

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov 2018, "Variance Networks: When Expectation Does Not Meet Your
        Expectations" (arXiv 1803.03764).
    """

    arg_constraints = {"scale": constraints.positive}
    zero_mean = True

    def __init__(self, scale: Tensor | float, validate_args: bool | None = None) -> None:
        (self.scale,) = broadcast_all(scale)
        super(torch.distributions.Normal, self).__init__(self.scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: CenteredNormal | None = None) -> CenteredNormal:
        """The same distribution with a larger batch shape, without copying the scale."""
        new = self._get_checked_instance(CenteredNormal, _instance)
        new.scale = self.scale.expand(batch_shape)
        super(torch.distributions.Normal, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def loc(self) -> Tensor:  # type: ignore[override]
        """Zeros of the batch shape (expanded: no memory)."""
        return torch.zeros((), dtype=self.scale.dtype, device=self.scale.device).expand(self.batch_shape)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw of shape `sample_shape + batch_shape`, differentiable in the scale."""
        shape = self._extended_shape(Size(sample_shape))
        return self.scale * torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """The same draw as `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

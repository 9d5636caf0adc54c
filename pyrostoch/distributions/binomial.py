"""A weight from a count of successes, and the prior under which every trial is a fair one."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from pyrostoch._checks import check_count
from pyrostoch.distributions.improper import ImproperPrior
from pyrostoch.distributions.levels import Levels

__all__ = ["BinomialLevels", "SymmetricBinomial", "log_choices"]


def log_choices(n: int) -> list[float]:
    r"""$\log\binom nk$ for k from 0 to n.

    Args:
        n: Number of trials.

    Example:
        >>> [round(math.exp(value)) for value in log_choices(3)]
        [1, 3, 3, 1]
    """
    return [math.log(math.comb(n, k)) for k in range(n + 1)]


class BinomialLevels(Levels):
    r"""A weight $w = s\,(2K/n - 1)$ with $K \sim \mathrm{Binomial}(n, p)$: n + 1 equally spaced levels from -s to s.

    With the logit $\lambda$, $p = 1/(1 + e^{-\lambda})$,

    $$ \mathbb{E}w = s\tanh(\lambda/2), \qquad \mathrm{Var}\,w = \frac{4 s^2 p\,(1 - p)}{n}. $$

    It is the distribution `Levels` whose logits are $\log\binom nk + (k - n/2)\lambda$, so that draws, their
    straight-through gradient and `log_prob` are those of `Levels`. Mean and variance are computed by the formulas
    above, without a tensor of n + 1 numbers for each weight.

    Args:
        logit: $\lambda$; its shape is the batch shape.
        n: Number of trials, at least 1.
        scale: $s > 0$, broadcast to the batch shape.
        validate_args: Check the arguments; torch's default when None.

    Raises:
        ValueError: `n` is no whole number of at least 1.

    References:
        Peters, Welling, "Probabilistic binary neural networks", 2018 (arXiv 1809.03368), for n = 1.

    Example:
        >>> distribution = BinomialLevels(torch.tensor(0.0), 2, torch.tensor(3.0))
        >>> distribution.log_prob(torch.tensor([-3.0, 0.0, 3.0])).exp()
        tensor([0.2500, 0.5000, 0.2500])
        >>> distribution.variance
        tensor(4.5000)
    """

    arg_constraints = {"logit": constraints.real, "scale": constraints.positive}

    def __init__(self, logit: Tensor, n: int, scale: Tensor | float = 1.0, validate_args: bool | None = None) -> None:
        self.n = check_count("BinomialLevels n", n)
        self.levels = tuple((2 * k - n) / n for k in range(n + 1))
        self.logit = logit
        self.scale = torch.as_tensor(scale, dtype=logit.dtype, device=logit.device).expand(logit.shape)
        # Not Levels.__init__, which takes the logits of all levels.
        TorchDistribution.__init__(self, logit.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Levels | None = None) -> BinomialLevels:
        """The same distribution with a larger batch shape."""
        shape = Size(batch_shape)
        new = BinomialLevels(self.logit.expand(shape), self.n, self.scale.expand(shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        """Logits of the levels, (..., n + 1)."""
        successes = torch.arange(self.n + 1, dtype=self.logit.dtype, device=self.logit.device)
        return self.logit.new_tensor(log_choices(self.n)) + (successes - self.n / 2) * self.logit.unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the weight, in the batch shape."""
        return 4 * self.scale.square() * self.logit.sigmoid() * (-self.logit).sigmoid() / self.n

    @property
    def _center(self) -> Tensor:
        return (self.logit / 2).tanh()


class SymmetricBinomial(ImproperPrior):
    r"""The prior of a weight on n + 1 levels: the level's number is Binomial(n, 1/2), at any scale of the levels.

    $\mathrm{KL} = n\,(\log 2 + p\lambda - \log(1 + e^\lambda))$ for `BinomialLevels`: n times that of a coin to a fair
    coin. It takes levels and scale from the posterior, so it is no probability distribution of its own and cannot be
    sampled.

    Args:
        batch_shape: As in torch.
        validate_args: As in torch.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> kl_divergence(BinomialLevels(torch.tensor([0.0, 100.0]), 3), SymmetricBinomial())
        tensor([0.0000, 2.0794])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises `ValueError`: the prior takes its levels from the posterior."""
        self._refuse("log probability of its own")

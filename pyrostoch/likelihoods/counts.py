"""Likelihoods of counts: Poisson, with more spread, and with more zeros."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from pyrostoch.likelihoods.base import Likelihood, like, per_example
from pyrostoch.likelihoods.quantities import Noise

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedPoisson"]


class _PreciseNegativeBinomial(dist.NegativeBinomial):
    """Whose log density is computed in double precision: for a large r it is the difference of large numbers."""

    def log_prob(self, value: Tensor) -> Tensor:
        r, logits, y = self.total_count.double(), self.logits.double(), value.double()
        found = y * F.logsigmoid(logits) + r * F.logsigmoid(-logits)
        found = found + torch.lgamma(r + y) - torch.lgamma(r) - torch.lgamma(1.0 + y)
        return found.to(self.logits.dtype)


class _PreciseZeroInflatedPoisson(dist.ZeroInflatedPoisson):
    """Whose variance is no difference of large numbers."""

    @property
    def variance(self) -> Tensor:
        gate, rate = self.gate, self.rate
        found: Tensor = (1.0 - gate) * (rate + gate * rate.square())
        return found


class Poisson(Likelihood):
    """Counts; the network's output is the logarithm of the rate, `(batch,)` or `(batch, d)`.

    Counts over an exposure t, such as a time or an area, have t times the rate of a unit: let the network add log t to
    its output.

    Args:
        output: Which part of the network's output is the log rate; see `Likelihood`.
        nan_is_missing: Whether targets that are NaN are missing, and left out.

    Example:
        >>> import torch
        >>> Poisson()(torch.zeros(3, 1)).mean.squeeze(-1)
        tensor([1., 1., 1.])
    """

    def __init__(self, *, output: str | int | None = None, nan_is_missing: bool = False) -> None:
        super().__init__(output=output, nan_is_missing=nan_is_missing)

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """Poisson(exp(output))."""
        return per_example(dist.Poisson(output.exp()))


class NegativeBinomial(Likelihood):
    r"""Counts with more spread than Poisson's; the network's output is the logarithm of the mean.

    The variance is $\mu + \mu^2 / r$; as r grows it becomes Poisson's.

    Args:
        concentration: The number r; or a tensor with one for each output, or its prior, a distribution on the positive
            numbers, which makes it the random site `likelihood.concentration`.
        learn: Whether to fit r, starting from the number.
        output: Which part of the network's output is the log mean; see `Likelihood`.
        nan_is_missing: Whether targets that are NaN are missing, and left out.

    Example:
        >>> import torch
        >>> NegativeBinomial(2.0)(torch.zeros(1, 1)).variance.item()
        1.5

    References:
        Hilbe, "Negative binomial regression", 2011, the form NB2.
    """

    def __init__(
        self,
        concentration: float | Tensor | Distribution = 1.0,
        *,
        learn: bool = False,
        output: str | int | None = None,
        nan_is_missing: bool = False,
    ) -> None:
        super().__init__(output=output, nan_is_missing=nan_is_missing)
        self.concentration = Noise(concentration, learn=learn, site="likelihood.concentration")

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """NegativeBinomial(r, logits=output - log r), whose mean is exp(output)."""
        r = like(quantities["concentration"], output)
        return per_example(_PreciseNegativeBinomial(r, logits=output - r.log()))


class ZeroInflatedPoisson(Likelihood):
    r"""Counts with more zeros than Poisson's: with probability $\pi$ the count is 0 whatever the rate.

    The network's output `(batch, 2 d)` holds d log rates, then d logits of $\pi$.

    Args:
        output: Which part of the network's output it reads; see `Likelihood`.
        nan_is_missing: Whether targets that are NaN are missing, and left out.

    Example:
        >>> import torch
        >>> ZeroInflatedPoisson()(torch.zeros(1, 2)).mean.item()
        0.5

    References:
        Lambert, "Zero-inflated Poisson regression, with an application to defects in manufacturing", 1992.
    """

    def __init__(self, *, output: str | int | None = None, nan_is_missing: bool = False) -> None:
        super().__init__(output=output, nan_is_missing=nan_is_missing)

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """The mixture of a zero and Poisson(exp(log rate))."""
        if output.dim() < 2 or output.shape[-1] % 2:
            raise ValueError(
                "likelihood ZeroInflatedPoisson: expected a network output of shape (batch, 2 d), log rates then "
                f"logits, got {tuple(output.shape)}"
            )
        log_rate, gate = output.chunk(2, dim=-1)
        return per_example(_PreciseZeroInflatedPoisson(log_rate.exp(), gate_logits=gate))

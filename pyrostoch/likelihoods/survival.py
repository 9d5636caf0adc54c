"""Likelihoods of times, of which some are known only to be later than, or to lie between, others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from pyrostoch._checks import check_choice
from pyrostoch._manual import see
from pyrostoch.likelihoods.base import Likelihood, like
from pyrostoch.likelihoods.quantities import Noise

__all__ = ["CensoredTime", "LogNormalTime", "Survival", "WeibullTime"]

#: What the two numbers of a target are.
Form = Literal["event", "interval"]
_FORMS = ("event", "interval")
_LOG_HALF = math.log(0.5)
# Logarithm of a hazard below which it is the probability itself.
_SMALL = -20.0
Times = Callable[[Tensor], Tensor]
Draw = Callable[[torch.Size], Tensor]


def _log1mexp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) for negative values, without loss near 0 and far from it."""
    value = value.clamp_max(-torch.finfo(value.dtype).tiny)
    near = value > _LOG_HALF
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, value, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, value))),
    )


class CensoredTime(TorchDistribution):
    r"""The distribution of a time T, observed as two numbers.

    With `"event"` a target is (t, e): the time itself where e is 1, and T > t where e is 0 (censored on the right).
    With `"interval"` it is (l, u): the time itself where both are equal, else l < T <= u; u is infinite for T > l, and
    l is 0 for T <= u.

    Args:
        log_density: The log density at given times.
        log_cdf: The logarithm of P(T <= t) at given times.
        log_survival: The logarithm of P(T > t) at given times.
        draw: Draws times.
        mean: Mean of T, (batch,).
        variance: Variance of T, (batch,).
        form: What the two numbers are.

    Example:
        >>> import torch
        >>> exponential = WeibullTime()(torch.zeros(2, 1))
        >>> exponential.log_prob(torch.tensor([[2.0, 1.0], [2.0, 0.0]]))
        tensor([-2., -2.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.nonnegative, 1)
    has_rsample = False

    def __init__(
        self,
        log_density: Times,
        log_cdf: Times,
        log_survival: Times,
        draw: Draw,
        mean: Tensor,
        variance: Tensor,
        form: Form,
    ) -> None:
        self._log_density, self._log_cdf, self._log_survival = log_density, log_cdf, log_survival
        self._draw, self.form = draw, form
        self._mean, self._variance = mean, variance
        super().__init__(mean.shape, torch.Size([2]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of the time."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Variance of the time."""
        return self._variance

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of times that are known, and the log probability of what is known of the others.

        Args:
            value: Targets, (batch, 2).
        """
        one, two = value[..., 0], value[..., 1]
        if self.form == "event":
            return torch.where(two > 0.5, self._log_density(one), self._log_survival(one))
        exact, open_end, from_zero = one == two, torch.isinf(two), one <= 0
        # Where a number is not used it must not spoil the gradient.
        point = torch.where(exact, one, 1.0)
        low = torch.where(from_zero | exact, 1.0, one)
        high = torch.where(exact | open_end, 2.0 * low, two)
        below = torch.where(from_zero, -torch.inf, self._log_cdf(low))
        until, beyond = self._log_cdf(high), self._log_survival(low)
        # The difference of two probabilities, on the side where both are small.
        left = until + _log1mexp(torch.where(from_zero, -1.0, below - until))
        right = beyond + _log1mexp(torch.where(from_zero, -1.0, self._log_survival(high) - beyond))
        between = torch.where(until < _LOG_HALF, left, right)
        between = torch.where(from_zero, self._log_cdf(torch.where(from_zero & ~open_end, two, 1.0)), between)
        after = torch.where(from_zero, 0.0, beyond)
        return torch.where(exact, self._log_density(point), torch.where(open_end, after, between))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws of the time, as targets that are known.

        Args:
            sample_shape: Shape of the draws.
        """
        times = self._draw(torch.Size(sample_shape))
        return torch.stack([times, torch.ones_like(times) if self.form == "event" else times], -1)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Any:
        """The same distribution; another batch shape is refused."""
        if tuple(batch_shape) != tuple(self.batch_shape):
            raise ValueError(f"CensoredTime: expected the batch shape {tuple(self.batch_shape)}, got {batch_shape}")
        return self


class Survival(Likelihood):
    """Base class: times that may be censored; the network's output `(batch,)` or `(batch, 1)` sets their scale.

    Args:
        scale: The distribution's second parameter: a number, or its prior.
        learn: Whether to fit it, starting from the number.
        censoring: `"event"`, targets (time, 1 where the event was observed, else 0); or `"interval"`, targets (lower,
            upper), which are equal where the time is known, and upper infinite where it is known to be later.
        output: Which part of the network's output it reads; see `Likelihood`.
    """

    #: Name of the second parameter.
    second: ClassVar[str]

    def __init__(
        self,
        scale: float | Distribution = 1.0,
        *,
        learn: bool = False,
        censoring: Form = "event",
        output: str | int | None = None,
    ) -> None:
        super().__init__(output=output)
        self.censoring: Form = check_choice(f"likelihood {type(self).__name__} censoring", censoring, _FORMS)  # type: ignore[assignment]
        self.scale = Noise(scale, learn=learn, site=f"likelihood.{self.second}")

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """The distribution of the times."""
        if output.dim() not in (1, 2) or (output.dim() == 2 and output.shape[1] != 1):
            raise ValueError(
                f"likelihood {type(self).__name__}: expected a network output of shape (batch,) or (batch, 1), got "
                f"{tuple(output.shape)}{see('how-to/write_a_likelihood')}"
            )
        return self.of_times(output.reshape(-1), like(quantities["scale"], output))

    def of_times(self, output: Tensor, scale: Tensor) -> CensoredTime:
        """The distribution for an output (batch,) and the second parameter."""
        raise TypeError(f"{type(self).__name__} must implement of_times(output, scale)")

    def check_target(self, distribution: Distribution, target: Tensor) -> None:
        """Raise a `ValueError` for targets that are no times, or no intervals of them."""
        name, (one, two) = type(self).__name__, target.unbind(-1)
        if self.censoring == "event":
            wrong = ~((one > 0) & torch.isfinite(one) & ((two == 0) | (two == 1)))
            expected = "targets (time, event) with a positive time, and an event of 0 or 1"
        else:
            wrong = ~((one >= 0) & torch.isfinite(one) & (two >= one) & (two > 0))
            expected = "targets (lower, upper) with 0 <= lower <= upper, and upper > 0"
        if bool(wrong.any()):
            raise ValueError(
                f"likelihood {name}: expected {expected}, got {int(wrong.sum())} others, among them "
                f"{target[wrong][0].tolist()}{see('how-to/write_a_likelihood')}"
            )

    def extra_repr(self) -> str:
        """The form of targets."""
        return f"censoring={self.censoring!r}"


class WeibullTime(Survival):
    r"""Times with a Weibull distribution, $P(T > t) = \exp(-(t / e^f)^k)$, for the network's output f.

    Args:
        concentration: The shape k: a number (1 is the exponential distribution), or its prior, a distribution on the
            positive numbers, which makes it the random site `likelihood.concentration`.
        learn: Whether to fit k, starting from the number.
        censoring: What the two numbers of a target are; see `Survival`.
        output: Which part of the network's output it reads; see `Likelihood`.

    Example:
        >>> import torch
        >>> WeibullTime(2.0)(torch.zeros(1, 1)).mean
        tensor([0.8862])

    References:
        Kalbfleisch, Prentice, "The statistical analysis of failure time data", 2002.
    """

    second = "concentration"

    def __init__(
        self,
        concentration: float | Distribution = 1.0,
        *,
        learn: bool = False,
        censoring: Form = "event",
        output: str | int | None = None,
    ) -> None:
        super().__init__(concentration, learn=learn, censoring=censoring, output=output)

    def of_times(self, output: Tensor, scale: Tensor) -> CensoredTime:
        """The Weibull distribution of scale exp(output)."""
        k = scale
        # In double precision, since a variance is the difference of near numbers.
        log1, log2 = (torch.lgamma(1.0 + n / k.double()) for n in (1.0, 2.0))
        mean = (output.double() + log1).exp().to(output.dtype)
        variance = (2 * output.double() + log2).exp() * -torch.expm1(2 * log1 - log2)

        def log_hazard(t: Tensor) -> Tensor:
            return k * (t.log() - output)

        def hazard(t: Tensor) -> Tensor:
            return torch.exp(log_hazard(t))

        def log_cdf(t: Tensor) -> Tensor:
            far = log_hazard(t) < _SMALL
            return torch.where(far, log_hazard(t), torch.log(-torch.expm1(-torch.where(far, 1.0, hazard(t)))))

        def draw(shape: torch.Size) -> Tensor:
            drawn = torch.empty(shape + output.shape, dtype=output.dtype, device=output.device).exponential_()
            return (output + drawn.log() / k).exp().detach()

        def log_density(t: Tensor) -> Tensor:
            return k.log() - t.log() + k * (t.log() - output) - hazard(t)

        return CensoredTime(
            log_density, log_cdf, lambda t: -hazard(t), draw, mean, variance.to(output.dtype), self.censoring
        )


class LogNormalTime(Survival):
    r"""Times whose logarithm is Gaussian, $\log T \sim N(f, \sigma^2)$, for the network's output f.

    Args:
        scale: Standard deviation of the logarithm: a number, or its prior, a distribution on the positive numbers,
            which makes it the random site `likelihood.scale`.
        learn: Whether to fit it, starting from the number.
        censoring: What the two numbers of a target are; see `Survival`.
        output: Which part of the network's output it reads; see `Likelihood`.

    Example:
        >>> import torch
        >>> LogNormalTime(0.5)(torch.zeros(1, 1)).log_prob(torch.tensor([[1.0, 0.0]])).exp()
        tensor([0.5000])

    References:
        Kalbfleisch, Prentice, "The statistical analysis of failure time data", 2002.
    """

    second = "scale"

    def of_times(self, output: Tensor, scale: Tensor) -> CensoredTime:
        """The log-normal distribution of location `output`."""

        def standard(t: Tensor) -> Tensor:
            return (t.log() - output) / scale

        def draw(shape: torch.Size) -> Tensor:
            noise = torch.randn(shape + output.shape, dtype=output.dtype, device=output.device)
            return (output + scale * noise).exp().detach()

        def log_density(t: Tensor) -> Tensor:
            return -0.5 * standard(t).square() - t.log() - scale.log() - 0.5 * math.log(2 * math.pi)

        def log_cdf(t: Tensor) -> Tensor:
            return torch.special.log_ndtr(standard(t))

        def log_survival(t: Tensor) -> Tensor:
            return torch.special.log_ndtr(-standard(t))

        spread = scale.square()
        mean = (output + 0.5 * spread).exp()
        variance = torch.expm1(spread) * (2 * output + spread).exp()
        return CensoredTime(log_density, log_cdf, log_survival, draw, mean, variance, self.censoring)

r"""Piecewise linear units: threshold, k states, ReLU, leaky ReLU, clamps, absolute value. All moments are exact.

Up to a constant any such function is $f(x) = c\,x + \sum_k J_k\,[x > \theta_k] + K_k\,(x - \theta_k)^+$ with jumps
$J_k$ of the value and kinks $K_k$ of the slope. Its mean is a sum over the knots $\theta_k$, its variance and its
covariance are sums over pairs of knots, and each term is one of a few Gaussian integrals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyrostoch.moments.bivariate import density_integral, normal_cdf, normal_parts, normal_pdf, rectified_mean
from pyrostoch.moments.gaussian import Link, Moments, per_example

__all__ = ["Knot", "Piecewise", "Unit", "activate", "correlation", "root"]

# Smallest variance of which a root is taken, so that the derivative of the root is finite.
_FLOOR = {torch.float64: 1e-24}


class Unit(Protocol):
    """An activation function f together with the moments of f(x) for Gaussian x; all arguments broadcast."""

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of f(x) for x with the given mean and variance."""

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean of f'(x) for x with the given mean and variance."""

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Covariance of f(x) and f(y) for x and y with the given means, variances and covariance."""


def root(var: Tensor) -> Tensor:
    """The standard deviation, bounded away from zero so that its derivative is finite.

    Args:
        var: Variance.
    """
    return var.clamp_min(_FLOOR.get(var.dtype, 1e-16)).sqrt()


def correlation(var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
    """Correlation from variances and covariance, clipped to [-1, 1].

    Args:
        var: The two variances.
        cov: The covariance.
    """
    return (cov / (root(var[0]) * root(var[1]))).clamp(-1.0, 1.0)


def activate(x: Moments, unit: Unit) -> Moments:
    """Moments after an activation function is applied to each entry.

    Args:
        x: The moments.
        unit: The activation function.

    Example:
        >>> activate(Moments(torch.zeros(1, 2), torch.ones(1, 2)), Piecewise.threshold()).var
        tensor([[0.2500, 0.2500]])
    """
    loc, var = unit.mean_variance(x.loc, x.var)
    original_unit, inputs = unit, (x.loc, x.var)

    @functools.cache
    def gain() -> Tensor:
        # Evaluated only where branches of the network meet again.
        return original_unit.slope(*inputs)

    cov = None
    if x.cov is not None:
        m, v = per_example(x.loc), per_example(x.var)
        if isinstance(unit, Piecewise):
            unit = unit.placed(x.loc.shape)
        cov = unit.covariance((m.unsqueeze(2), m.unsqueeze(1)), (v.unsqueeze(2), v.unsqueeze(1)), x.cov)
        cov = torch.diagonal_scatter(cov, per_example(var), dim1=1, dim2=2)
    return Moments(loc, var, cov, x.settings, (Link(x, lambda rows: rows * gain().unsqueeze(1), gain),))


@dataclass(frozen=True)
class Knot:
    """A point at which a piecewise linear function jumps or bends.

    Args:
        at: The point.
        jump: Increase of the function's value there.
        kink: Increase of the function's slope there.

    Example:
        >>> step = Piecewise((Knot(0.5, jump=2.0),))  # 0 below 0.5, 2 above
        >>> activate(Moments(torch.full((1, 1), 0.5), torch.ones(1, 1)), step).loc
        tensor([[1.]])
    """

    at: Tensor | float = 0.0
    jump: Tensor | float = 0.0
    kink: Tensor | float = 0.0


@dataclass(frozen=True)
class Piecewise:
    r"""A piecewise linear function with exact moments for Gaussian inputs, given by its jumps and bends.

    $$ f(x) = \mathrm{offset} + \mathrm{slant}\,x + \sum_k J_k [x > \theta_k] + K_k (x - \theta_k)^+ $$

    Args:
        knots: The points where it jumps ($J_k$) or bends ($K_k$).
        offset: A constant.
        slant: Slope to the left of all knots.
        across: The function of the second variable in a covariance, if it is not the same function.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> relu = Piecewise((Knot(kink=1.0),))
        >>> [round(value.item(), 6) for value in relu.mean_variance(zero, one)]
        [0.398942, 0.340845]

    References:
        Price, "A useful theorem for nonlinear devices having Gaussian inputs", 1958; for the threshold: Macke, Berens,
        Ecker, Tolias, Bethge, "Generating spike trains with specified correlation coefficients", 2009.
    """

    knots: tuple[Knot, ...]
    offset: Tensor | float = 0.0
    slant: Tensor | float = 0.0
    across: Piecewise | None = None

    @classmethod
    def threshold(cls, at: Tensor | float = 0.0) -> Piecewise:
        """The step function: 1 above a threshold, 0 below.

        Args:
            at: The threshold.
        """
        return cls((Knot(at, jump=1.0),))

    @classmethod
    def states(cls, values: Sequence[Tensor | float], thresholds: Sequence[Tensor | float]) -> Piecewise:
        """A step function with several states: each threshold separates two successive values.

        Args:
            values: The values of the states, one more than thresholds.
            thresholds: The points at which it changes from one state to the next, increasing.
        """
        steps = zip(values[:-1], values[1:], thresholds, strict=True)
        return cls(tuple(Knot(at, jump=high - low) for low, high, at in steps), offset=values[0])

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance; the variance is the covariance at correlation 1."""
        s = root(var)
        if len(self.knots) == 1:
            return self._mean_variance_of_one_knot(loc, var, s)
        mean = self.offset + self.slant * loc
        for knot in self.knots:
            a = (loc - knot.at) / s
            if _nonzero(knot.jump):
                mean = mean + knot.jump * normal_cdf(a)
            if _nonzero(knot.kink):
                mean = mean + knot.kink * s * rectified_mean(a)
        variance = self._sum_over_pairs((loc, loc), (s, s), var, _integrals_at_correlation_one)
        return mean, variance.clamp_min(0.0)

    def _mean_variance_of_one_knot(self, loc: Tensor, var: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance with fewer evaluations, for the most frequent functions (threshold, ReLU)."""
        (knot,) = self.knots
        a = (loc - knot.at if _nonzero(knot.at) else loc) / s
        above, over, under = normal_parts(a)
        mean: Tensor | float = self.offset + self.slant * loc if _nonzero(self.slant) else self.offset
        variance: Tensor | float = 0.0
        if _nonzero(self.slant):
            variance = self.slant * self.slant * var
            variance = variance + 2.0 * self.slant * s * (knot.jump * normal_pdf(a) + knot.kink * s * above)
        if _nonzero(knot.jump):
            below = normal_cdf(-a)
            mean = mean + knot.jump * above
            variance = variance + knot.jump * below * (knot.jump * above + 2.0 * knot.kink * s * over)
        if _nonzero(knot.kink):
            bend = s if isinstance(knot.kink, float) and knot.kink == 1.0 else knot.kink * s
            part = bend * over
            mean = mean + part if _nonzero(mean) else part
            own = bend.square() * torch.addcmul(above, over, under, value=-1.0)
            variance = variance + own if _nonzero(variance) else own
        mean, variance = torch.as_tensor(mean, dtype=loc.dtype, device=loc.device), torch.as_tensor(variance).to(loc)
        return mean.expand_as(a), variance.clamp_min(0.0).expand_as(a)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative; the derivative of a jump is a delta function, whose mean is the density at the knot."""
        s = root(var)
        total = torch.zeros_like(loc) + self.slant
        for knot in self.knots:
            a = (loc - knot.at) / s
            if _nonzero(knot.jump):
                total = total + knot.jump * normal_pdf(a) / s
            if _nonzero(knot.kink):
                total = total + knot.kink * normal_cdf(a)
        return total

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Exact covariance: one integral for each pair of knots, and one more for each pair of kinks."""
        rho = correlation(var, cov)

        def integrals(a: Tensor, b: Tensor, jumps: bool, kinks: bool) -> tuple[Tensor, ...]:
            return _integrals(a, b, rho, jumps, kinks)

        return self._sum_over_pairs(loc, (root(var[0]), root(var[1])), cov, integrals)

    def placed(self, shape: torch.Size) -> Piecewise:
        """The function in a form that broadcasts against full covariances (B, n, n).

        Parameters that differ between entries vary along the rows, and along the columns in `across`.

        Args:
            shape: Shape of the moments, (B, ...).
        """
        count = shape[1:].numel()

        def along(axis: int) -> Callable[[Tensor | float], Tensor | float]:
            def place(value: Tensor | float) -> Tensor | float:
                if not isinstance(value, Tensor) or value.dim() == 0:
                    return value
                return per_example(value.expand(1, *shape[1:])).reshape((1, count, 1) if axis else (1, 1, count))

            return place

        return self._mapped(along(1), self._mapped(along(0)))

    def _mapped(self, place: Callable[[Tensor | float], Tensor | float], across: Piecewise | None = None) -> Piecewise:
        knots = tuple(Knot(place(knot.at), place(knot.jump), place(knot.kink)) for knot in self.knots)
        return Piecewise(knots, place(self.offset), place(self.slant), across)

    def _sum_over_pairs(
        self,
        loc: tuple[Tensor, Tensor],
        deviation: tuple[Tensor, Tensor],
        cov: Tensor,
        integrals: Callable[[Tensor, Tensor, bool, bool], tuple[Tensor, ...]],
    ) -> Tensor:
        """The covariance as a sum over pairs of terms: one of this function, one of `across`."""
        (m1, m2), (s1, s2) = loc, deviation
        across = self if self.across is None else self.across
        total = self.slant * across.slant * cov
        for one, counterpart in zip(self.knots, across.knots, strict=True):
            a = (m1 - one.at) / s1
            if _nonzero(self.slant):
                b = (m2 - counterpart.at) / s2
                slope_1 = one.jump * normal_pdf(a) / s1 + one.kink * normal_cdf(a)
                slope_2 = counterpart.jump * normal_pdf(b) / s2 + counterpart.kink * normal_cdf(b)
                total = total + across.slant * cov * slope_1
                total = total + self.slant * cov * slope_2
            for other in across.knots:
                b = (m2 - other.at) / s2
                jumps = _nonzero(one.jump) and _nonzero(other.jump)
                kinks = _nonzero(one.kink) and _nonzero(other.kink)
                mixed = _nonzero(one.jump) and _nonzero(other.kink), _nonzero(one.kink) and _nonzero(other.jump)
                step_step, ramp_ramp, step_ramp, ramp_step = integrals(a, b, jumps or any(mixed), kinks)
                if jumps:
                    total = total + one.jump * other.jump * step_step
                if kinks:
                    total = total + one.kink * other.kink * s1 * s2 * ramp_ramp
                if mixed[0]:
                    total = total + one.jump * other.kink * s2 * step_ramp
                if mixed[1]:
                    total = total + one.kink * other.jump * s1 * ramp_step
        return total


def _nonzero(value: Tensor | float) -> bool:
    """Whether a parameter can be other than zero; a tensor is not read, since that would synchronize a GPU."""
    return isinstance(value, Tensor) or value != 0.0


def _integrals(a: Tensor, b: Tensor, rho: Tensor, jumps: bool, kinks: bool) -> tuple[Tensor, ...]:
    """Covariances of steps [x + a > 0] and ramps (x + a)^+ with those of y + b, for standard normal x and y.

    Returns:
        The covariances of step and step, ramp and ramp, step and ramp, ramp and step.
    """
    zero = torch.zeros_like(rho)
    pa, pb = normal_cdf(a), normal_cdf(b)
    ramp_ramp = rho * pa * pb + density_integral(a, b, rho, 1) if kinks else zero
    if not jumps:
        return zero, ramp_ramp, zero, zero
    step_step = density_integral(a, b, rho)
    q = ((1.0 - rho) * (1.0 + rho)).clamp_min(torch.finfo(rho.dtype).eps ** 1.5).sqrt()
    beyond_a, beyond_b = normal_cdf((a - rho * b) / q), normal_cdf((b - rho * a) / q)
    da, db = normal_pdf(a), normal_pdf(b)
    step_ramp = b * step_step + db * (beyond_a - pa) + rho * da * beyond_b
    ramp_step = a * step_step + da * (beyond_b - pb) + rho * db * beyond_a
    return step_step, ramp_ramp, step_ramp, ramp_step


def _integrals_at_correlation_one(a: Tensor, b: Tensor, jumps: bool, kinks: bool) -> tuple[Tensor, ...]:
    """The covariances of `_integrals` for y = x."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    step_step = normal_cdf(low) * normal_cdf(-high)
    over, under = rectified_mean(low), rectified_mean(-high)
    ramp_ramp = normal_cdf(low) - over * under

    # Where the ramp has the larger offset it is positive wherever the step is 1, else the step is 1 on all of the ramp.
    def step_ramp(step: Tensor, ramp: Tensor) -> Tensor:
        inside = normal_pdf(step) - normal_cdf(step) * rectified_mean(-ramp)
        return torch.where(step <= ramp, inside, normal_cdf(-step) * rectified_mean(ramp))

    return step_step, ramp_ramp, step_ramp(a, b), step_ramp(b, a)

r"""Units made of steps and kinks: threshold, k states, ReLU, leaky ReLU, clamps, absolute value. All exact.

Any such function is $f(x) = c\,x + \sum_k J_k\,[x > \theta_k] + K_k\,(x - \theta_k)^+$ up to a constant, so its mean,
variance and covariance are sums over pairs of the same few integrals of Gaussians.
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

# Below this variance the deviation is held: derivatives by it stay finite, and nothing visible moves.
_FLOOR = {torch.float64: 1e-24}


class Unit(Protocol):
    """A function of one Gaussian variable, as moments see it; all arguments broadcast."""

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of f(x)."""

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean of f'(x)."""

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Covariance of f(x) and f(y) for x and y with the given means, variances and covariance."""


def root(var: Tensor) -> Tensor:
    """The standard deviation, kept off zero so that its derivative is finite.

    Args:
        var: Variance.
    """
    return var.clamp_min(_FLOOR.get(var.dtype, 1e-16)).sqrt()


def correlation(var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
    """Correlation from variances and covariance, within -1 and 1.

    Args:
        var: The two variances.
        cov: The covariance.
    """
    return (cov / (root(var[0]) * root(var[1]))).clamp(-1.0, 1.0)


def activate(x: Moments, unit: Unit) -> Moments:
    """Moments after a function of each entry.

    Args:
        x: The moments.
        unit: The function.

    Example:
        >>> activate(Moments(torch.zeros(1, 2), torch.ones(1, 2)), Piecewise.threshold()).var
        tensor([[0.2500, 0.2500]])
    """
    loc, var = unit.mean_variance(x.loc, x.var)
    given, before = unit, (x.loc, x.var)

    @functools.cache
    def gain() -> Tensor:
        # Only branches that meet again ask for it.
        return given.slope(*before)

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
    """A place where a unit jumps or bends.

    Args:
        at: Where.
        jump: By how much its value rises there.
        kink: By how much its slope rises there.
    """

    at: Tensor | float = 0.0
    jump: Tensor | float = 0.0
    kink: Tensor | float = 0.0


@dataclass(frozen=True)
class Piecewise:
    r"""$f(x) = \mathrm{offset} + \mathrm{slant}\,x + \sum_k J_k [x > \theta_k] + K_k (x - \theta_k)^+$.

    Args:
        knots: The places where it jumps or bends.
        offset: A constant.
        slant: Slope left of all knots.
        across: The unit on the other side of a covariance, where it is another one.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> relu = Piecewise((Knot(kink=1.0),))
        >>> [round(value.item(), 6) for value in relu.mean_variance(zero, one)]
        [0.398942, 0.340845]

    References:
        Price 1958; Macke, Berens, Ecker, Tolias, Bethge, "Generating spike trains with specified correlation
        coefficients", 2009, for the threshold.
    """

    knots: tuple[Knot, ...]
    offset: Tensor | float = 0.0
    slant: Tensor | float = 0.0
    across: Piecewise | None = None

    @classmethod
    def threshold(cls, at: Tensor | float = 0.0) -> Piecewise:
        """1 above a threshold, 0 below.

        Args:
            at: The threshold.
        """
        return cls((Knot(at, jump=1.0),))

    @classmethod
    def states(cls, values: Sequence[Tensor | float], thresholds: Sequence[Tensor | float]) -> Piecewise:
        """The k-th of a row of values between the k-th and the next threshold.

        Args:
            values: The values of the states, one more than thresholds.
            thresholds: Where the unit changes from one state to the next, rising.
        """
        steps = zip(values[:-1], values[1:], thresholds, strict=True)
        return cls(tuple(Knot(at, jump=high - low) for low, high, at in steps), offset=values[0])

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, the sums over pairs of knots taken at correlation 1."""
        s = root(var)
        if len(self.knots) == 1:
            return self._of_one_knot(loc, var, s)
        mean = self.offset + self.slant * loc
        for knot in self.knots:
            a = (loc - knot.at) / s
            if _there(knot.jump):
                mean = mean + knot.jump * normal_cdf(a)
            if _there(knot.kink):
                mean = mean + knot.kink * s * rectified_mean(a)
        variance = self._pairs((loc, loc), (s, s), var, _at_one)
        return mean, variance.clamp_min(0.0)

    def _of_one_knot(self, loc: Tensor, var: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The same with one tail and one density for everything: thresholds and ReLUs are most of what there is."""
        (knot,) = self.knots
        a = (loc - knot.at) / s
        above, over, under = normal_parts(a)
        mean, variance = self.offset + self.slant * loc, self.slant * self.slant * var
        if _there(self.slant):
            variance = variance + 2.0 * self.slant * s * (knot.jump * normal_pdf(a) + knot.kink * s * above)
        if _there(knot.jump):
            below = normal_cdf(-a)
            mean = mean + knot.jump * above
            variance = variance + knot.jump * below * (knot.jump * above + 2.0 * knot.kink * s * over)
        if _there(knot.kink):
            mean = mean + knot.kink * s * over
            variance = variance + knot.kink * knot.kink * s.square() * (above - over * under)
        return mean, variance.clamp_min(0.0)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative: a jump counts with the density at its place."""
        s = root(var)
        total = torch.zeros_like(loc) + self.slant
        for knot in self.knots:
            a = (loc - knot.at) / s
            if _there(knot.jump):
                total = total + knot.jump * normal_pdf(a) / s
            if _there(knot.kink):
                total = total + knot.kink * normal_cdf(a)
        return total

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Exact covariance, by one integral for each pair of jumps and one more for each pair of kinks."""
        rho = correlation(var, cov)

        def integrals(a: Tensor, b: Tensor, jumps: bool, kinks: bool) -> tuple[Tensor, ...]:
            return _general(a, b, rho, jumps, kinks)

        return self._pairs(loc, (root(var[0]), root(var[1])), cov, integrals)

    def placed(self, shape: torch.Size) -> Piecewise:
        """The unit for a covariance of all entries with all: numbers of single entries go along rows and columns.

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

    def _pairs(
        self,
        loc: tuple[Tensor, Tensor],
        deviation: tuple[Tensor, Tensor],
        cov: Tensor,
        integrals: Callable[[Tensor, Tensor, bool, bool], tuple[Tensor, ...]],
    ) -> Tensor:
        """The covariance as a sum over the two units' parts."""
        (m1, m2), (s1, s2) = loc, deviation
        across = self if self.across is None else self.across
        total = self.slant * across.slant * cov
        for one, twin in zip(self.knots, across.knots, strict=True):
            a = (m1 - one.at) / s1
            if _there(self.slant):
                b = (m2 - twin.at) / s2
                total = total + across.slant * cov * (one.jump * normal_pdf(a) / s1 + one.kink * normal_cdf(a))
                total = total + self.slant * cov * (twin.jump * normal_pdf(b) / s2 + twin.kink * normal_cdf(b))
            for other in across.knots:
                b = (m2 - other.at) / s2
                jumps, kinks = _there(one.jump) and _there(other.jump), _there(one.kink) and _there(other.kink)
                mixed = _there(one.jump) and _there(other.kink), _there(one.kink) and _there(other.jump)
                steps, bends, step_bend, bend_step = integrals(a, b, jumps or any(mixed), kinks)
                if jumps:
                    total = total + one.jump * other.jump * steps
                if kinks:
                    total = total + one.kink * other.kink * s1 * s2 * bends
                if mixed[0]:
                    total = total + one.jump * other.kink * s2 * step_bend
                if mixed[1]:
                    total = total + one.kink * other.jump * s1 * bend_step
        return total


def _there(value: Tensor | float) -> bool:
    return isinstance(value, Tensor) or value != 0.0


def _general(a: Tensor, b: Tensor, rho: Tensor, jumps: bool, kinks: bool) -> tuple[Tensor, ...]:
    """Covariances of steps and ramps of x + a and y + b, standard normal: two steps, two ramps, one of each."""
    none = torch.zeros_like(rho)
    pa, pb = normal_cdf(a), normal_cdf(b)
    bends = rho * pa * pb + density_integral(a, b, rho, 1) if kinks else none
    if not jumps:
        return none, bends, none, none
    steps = density_integral(a, b, rho)
    q = ((1.0 - rho) * (1.0 + rho)).clamp_min(torch.finfo(rho.dtype).eps ** 1.5).sqrt()
    beyond_a, beyond_b = normal_cdf((a - rho * b) / q), normal_cdf((b - rho * a) / q)
    da, db = normal_pdf(a), normal_pdf(b)
    step_bend = b * steps + db * (beyond_a - pa) + rho * da * beyond_b
    bend_step = a * steps + da * (beyond_b - pb) + rho * db * beyond_a
    return steps, bends, step_bend, bend_step


def _at_one(a: Tensor, b: Tensor, jumps: bool, kinks: bool) -> tuple[Tensor, ...]:
    """The same for y = x."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    steps = normal_cdf(low) * normal_cdf(-high)
    over, under = rectified_mean(low), rectified_mean(-high)
    bends = normal_cdf(low) - over * under

    # The step at the higher offset contains the ramp's range, or lies within it.
    def step_bend(step: Tensor, bend: Tensor) -> Tensor:
        inside = normal_pdf(step) - normal_cdf(step) * rectified_mean(-bend)
        return torch.where(step <= bend, inside, normal_cdf(-step) * rectified_mean(bend))

    return steps, bends, step_bend(a, b), step_bend(b, a)

r"""Rectified powers $k [x]_+^n$, used as rates of recurrent networks that sample: exact moments for integer n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch.moments.bivariate import bivariate_cdf, normal_cdf, normal_pdf
from pyrostoch.moments.units import correlation, root

__all__ = ["RectifiedPower"]


@dataclass(frozen=True)
class RectifiedPower:
    r"""The rectified power $f(x) = k [x - \theta]_+^n$ for an integer $n \ge 1$, with exact moments.

    Integration by parts lowers the powers: with $a$, $b$ the means in units of the standard deviations and $X = a + z$,

    $$ E[X_+^m Y_+^n] = a\,E[X_+^{m-1} Y_+^n] + (m-1)\,E[X_+^{m-2} Y_+^n] + \rho n\,E[X_+^{m-1} Y_+^{n-1}], $$

    where for m = 1 the second term is the boundary term at the threshold, $\varphi(a)\,E[Y_+^n \mid X = 0]$.

    Args:
        power: n.
        gain: k.
        at: Threshold $\theta$.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> [round(value.item(), 10) for value in RectifiedPower(2).mean_variance(zero, one)]
        [0.5, 1.25]

    References:
        Hennequin, Lengyel, "Characterizing variability in nonlinear recurrent neuronal networks", 2016 (arXiv
        1610.03110); Echeveste et al., "Cortical-like dynamics in recurrent circuits optimized for sampling-based
        probabilistic inference", 2020.
    """

    power: int
    gain: float = 1.0
    at: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.power, int) or self.power < 1:
            raise ValueError(f"RectifiedPower: expected an integer power from 1 up, got {self.power!r}")

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, computed in double precision as the variance is a difference of moments."""
        m, v = loc.double() - self.at, var.double()
        moments = _single(m, root(v), 2 * self.power)
        mean = moments[self.power]
        variance = (moments[2 * self.power] - mean.square()).clamp_min(0.0)
        return (self.gain * mean).to(loc.dtype), (self.gain**2 * variance).to(loc.dtype)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative."""
        lower = _single(loc - self.at, root(var), self.power - 1)[self.power - 1]
        return self.gain * self.power * lower

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Exact covariance, computed in double precision as it is a difference of moments."""
        n, (m1, m2) = self.power, (value.double() - self.at for value in loc)
        s1, s2 = (root(value.double()) for value in var)
        rho = correlation((var[0].double(), var[1].double()), cov.double())
        joint = _joint((m1, m2), (s1, s2), rho, n) - _single(m1, s1, n)[n] * _single(m2, s2, n)[n]
        return (self.gain**2 * joint).to(cov.dtype)


def _single(loc: Tensor, s: Tensor, power: int) -> list[Tensor]:
    """Means of the powers 0 to `power` of the positive part of loc + s z, z standard normal."""
    a = loc / s
    moments = [normal_cdf(a), loc * normal_cdf(a) + s * normal_pdf(a)]
    for n in range(2, power + 1):
        moments.append(loc * moments[n - 1] + (n - 1) * s.square() * moments[n - 2])
    return moments[: power + 1]


def _joint(loc: tuple[Tensor, Tensor], s: tuple[Tensor, Tensor], rho: Tensor, power: int) -> Tensor:
    """Mean of the product of the n-th powers of two positive parts with correlation rho."""
    (m1, m2), (s1, s2) = loc, s
    a, b = m1 / s1, m2 / s2
    q = ((1.0 - rho) * (1.0 + rho)).clamp_min(torch.finfo(rho.dtype).eps).sqrt()
    edge, cov = normal_pdf(a), rho * s1 * s2
    # Moments of the second variable, given that the first is at its threshold.
    given = _single(m2 - rho * s2 * a, s2 * q, power)
    table: dict[tuple[int, int], Tensor] = {(0, 0): bivariate_cdf(a, b, rho)}
    for n in range(1, power + 1):
        # Power 0 of the first variable is a step: the correlation contributes a term at its threshold.
        rest = s2 * normal_pdf(b) * normal_cdf((a - rho * b) / q) if n == 1 else (n - 1) * s2**2 * table[0, n - 2]
        table[0, n] = m2 * table[0, n - 1] + rest + rho * s2 * edge * given[n - 1]
    for m in range(1, power + 1):
        for n in range(m, power + 1):
            rest = s1 * edge * given[n] if m == 1 else (m - 1) * s1**2 * table[m - 2, n]
            table[m, n] = m1 * table[m - 1, n] + rest + n * cov * table[m - 1, n - 1]
    return table[power, power]

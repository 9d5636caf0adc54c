r"""Rectified powers $k [x]_+^n$, the rates of recurrent networks that sample: exact for whole n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch.moments.bivariate import bivariate_cdf, normal_cdf, normal_pdf
from pyrostoch.moments.units import correlation, root

__all__ = ["RectifiedPower"]


@dataclass(frozen=True)
class RectifiedPower:
    r"""$f(x) = k [x - \theta]_+^n$ for a whole number n from 1 up.

    Integration by parts lowers the powers: with $a$, $b$ the means in deviations and $X = a + z$,

    $$ E[X_+^m Y_+^n] = a\,E[X_+^{m-1} Y_+^n] + (m-1)\,E[X_+^{m-2} Y_+^n] + \rho n\,E[X_+^{m-1} Y_+^{n-1}], $$

    and for m = 1 the second term is what remains at the threshold, $\varphi(a)\,E[Y_+^n \mid X = 0]$.

    Args:
        power: n.
        gain: k.
        at: Threshold.

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
            raise ValueError(f"RectifiedPower: expected a whole power from 1 up, got {self.power!r}")

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance."""
        s = root(var)
        moments = _single((loc - self.at) / s, 2 * self.power)
        mean = moments[self.power]
        variance = moments[2 * self.power] - mean.square()
        return self.gain * s**self.power * mean, (self.gain * s**self.power).square() * variance.clamp_min(0.0)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative."""
        s = root(var)
        lower = _single((loc - self.at) / s, self.power - 1)[self.power - 1]
        return self.gain * self.power * s ** (self.power - 1) * lower

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Exact covariance."""
        n, rho = self.power, correlation(var, cov)
        (s1, s2) = root(var[0]), root(var[1])
        a, b = (loc[0] - self.at) / s1, (loc[1] - self.at) / s2
        joint = _joint(a, b, rho, n) - _single(a, n)[n] * _single(b, n)[n]
        return self.gain**2 * (s1 * s2) ** n * joint


def _single(a: Tensor, power: int) -> list[Tensor]:
    """E of the powers 0 to `power` of the positive part of a + z."""
    found = [normal_cdf(a), a * normal_cdf(a) + normal_pdf(a)]
    for n in range(2, power + 1):
        found.append(a * found[n - 1] + (n - 1) * found[n - 2])
    return found[: power + 1]


def _joint(a: Tensor, b: Tensor, rho: Tensor, power: int) -> Tensor:
    """E of the product of both n-th powers."""
    q = ((1.0 - rho) * (1.0 + rho)).clamp_min(torch.finfo(rho.dtype).eps).sqrt()
    # Given that one is at its threshold, the other has this mean and the deviation q.
    rest_a = [value * q**n for n, value in enumerate(_single((a - rho * b) / q, power))]
    rest_b = [value * q**n for n, value in enumerate(_single((b - rho * a) / q, power))]
    edge_a, edge_b = normal_pdf(a), normal_pdf(b)
    table: dict[tuple[int, int], Tensor] = {(0, 0): bivariate_cdf(a, b, rho)}
    for n in range(1, power + 1):
        table[0, n] = b * table[0, n - 1] + rho * edge_a * rest_b[n - 1] + _lower(table, edge_b, rest_a, n)
    for m in range(1, power + 1):
        for n in range(power + 1):
            value = a * table[m - 1, n]
            value = value + (edge_a * rest_b[n] if m == 1 else (m - 1) * table[m - 2, n])
            table[m, n] = value + rho * n * table[m - 1, n - 1] if n else value
            if n == 0:
                # Beside a step the correlated term is what remains at the step's threshold.
                table[m, 0] = value + rho * edge_b * rest_a[m - 1]
    return table[power, power]


def _lower(table: dict[tuple[int, int], Tensor], edge_b: Tensor, rest_a: list[Tensor], n: int) -> Tensor:
    """The term of the power two lower beside a step; for n = 1 what remains at the threshold."""
    return edge_b * rest_a[0] if n == 1 else (n - 1) * table[0, n - 2]

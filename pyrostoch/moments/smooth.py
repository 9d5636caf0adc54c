"""Smooth units: the error function and GELU in closed form, other functions by quadrature and a Hermite series."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrostoch.moments.bivariate import bivariate_cdf, density_integral, normal_cdf, normal_pdf
from pyrostoch.moments.units import correlation, root

__all__ = ["Gelu", "Probit", "Smooth"]

# The trapezoidal rule on the real line converges geometrically: for tanh with standard deviation s and step h the error
# is of the order of exp(-pi^2 / (s h)), 1e-11 at s = 1.5 and 1e-4 at s = 4.
_STEP, _NUM_NODES, _DEGREE = 0.25, 26, 12

# Nodes z >= 0 with their weights; each is used with both signs, so that 0 has half the weight.
_NODES = tuple(
    (_STEP * k, _STEP * math.exp(-0.5 * (_STEP * k) ** 2) / math.sqrt(2.0 * math.pi) * (1.0 if k else 0.5))
    for k in range(_NUM_NODES + 1)
)

# Smallest variance for slopes: over a narrower distribution the differences of f would be lost in rounding.
_MIN_SLOPE_VARIANCE = 1e-10


@dataclass(frozen=True)
class Probit:
    r"""The normal distribution function as a unit, $\mathrm{scale}\,\Phi(x / \mathrm{width}) + \mathrm{offset}$; exact.

    It is the mean of a step function whose argument has Gaussian noise.

    Args:
        width: Standard deviation of that noise.
        scale: Factor.
        offset: Constant.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> round(Probit().mean_variance(0 * one, one)[1].item(), 12) == round(1 / 12, 12)
        True
    """

    width: float = 1.0
    scale: float = 1.0
    offset: float = 0.0

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance; the variance is the covariance of two steps of x with independent noises."""
        total_var = self.width**2 + var
        h = loc * total_var.rsqrt()
        mean = self.offset + self.scale * normal_cdf(h)
        return mean, self.scale**2 * density_integral(h, h, var / total_var)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative."""
        inverse_deviation = (self.width**2 + var).rsqrt()
        return self.scale * normal_pdf(loc * inverse_deviation) * inverse_deviation

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Exact covariance."""
        one, other = ((self.width**2 + v).rsqrt() for v in var)
        return self.scale**2 * density_integral(loc[0] * one, loc[1] * other, cov * one * other)


class Smooth:
    r"""Any smooth elementwise function as a unit: moments by quadrature, covariances by a Hermite series.

    With $c_k = E[f(m + s z)\,\mathrm{He}_k(z)] / \sqrt{k!}$ the covariance is $\sum_k c_k c_k' \rho^k$ (Mehler), summed
    up to k = 12. The parts of the two variances that these terms do not explain are added at the next two powers of
    $\rho$, odd and even parts separately. A loop over the nodes, in the backward pass too, keeps memory independent of
    their number; sums are in double precision.

    Args:
        function: The elementwise function.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> round(Smooth(torch.tanh).mean_variance(zero, one)[1].item(), 8)
        0.39429449

    References:
        Mehler, "Ueber die Entwicklung einer Function von beliebig vielen Variablen nach Laplaceschen Functionen höherer
        Ordnung", 1866; Trefethen, Weideman, "The exponentially convergent trapezoidal rule", 2014.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, by quadrature."""
        mean, square, _, _ = self._expectations(loc, var, 0)
        variance = (square - mean.square()).clamp_min(0.0)
        return (self.function(loc.double()).detach() + mean).to(loc.dtype), variance.to(loc.dtype)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative: the first Hermite coefficient over the standard deviation."""
        s = root(var.double().clamp_min(_MIN_SLOPE_VARIANCE))
        return (self._expectations(loc, s.square(), 1)[3][0] / s).to(loc.dtype)

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Covariance from the Hermite coefficients."""
        rho = correlation((var[0].double(), var[1].double()), cov.double())
        parts = []
        for m, v in zip(loc, var, strict=True):
            mean, square, mirrored, series = self._expectations(m, v, _DEGREE)
            even, odd = 0.5 * (square + mirrored) - mean.square(), 0.5 * (square - mirrored)
            even = even - sum(c.square() for c in series[1::2])
            odd = odd - sum(c.square() for c in series[::2])
            parts.append((series, odd.clamp_min(0.0), even.clamp_min(0.0)))
        total, power = torch.zeros_like(rho), torch.ones_like(rho)
        for c, d in zip(parts[0][0], parts[1][0], strict=True):
            power = power * rho
            total = total + c * d * power
        for one, other in zip(parts[0][1:], parts[1][1:], strict=True):  # odd remainders, then even ones
            power = power * rho
            total = total + (one * other).clamp_min(torch.finfo(rho.dtype).tiny).sqrt() * power
        return total.to(cov.dtype)

    def _expectations(self, loc: Tensor, var: Tensor, degree: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """E g, E g(z)^2, E g(z) g(-z) for g(z) = f(m + s z) - f(m), and the Hermite coefficients 1 to `degree`."""
        expectations = _Expectations.apply(loc.double(), root(var.double()), self.function, degree)
        mean, square, mirrored, *series = expectations
        return mean, square, mirrored, tuple(series)


class _Expectations(torch.autograd.Function):
    """The quadrature of `Smooth`, with a loop over the nodes forward and backward."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, s: Tensor, function: Callable[[Tensor], Tensor], degree: int) -> Any:
        ctx.save_for_backward(loc, s)
        ctx.function, ctx.degree = function, degree
        center = function(loc)
        sums = [torch.zeros_like(center) for _ in range(3 + degree)]
        for z, weight in _NODES:
            up, down = function(loc + s * z) - center, function(loc - s * z) - center
            sums[0] += weight * (up + down)
            sums[1] += weight * (up.square() + down.square())
            sums[2] += 2.0 * weight * up * down
            for k, polynomial in enumerate(_hermite(z, degree)):
                sums[3 + k] += weight * polynomial * (up + down if k % 2 else up - down)
        return tuple(sums)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        loc, s = ctx.saved_tensors
        by_loc, by_s = torch.zeros_like(loc), torch.zeros_like(s)
        for z, weight in _NODES:
            with torch.enable_grad():
                m, d = loc.detach().requires_grad_(), s.detach().requires_grad_()
                center = ctx.function(m).detach()
                up, down = ctx.function(m + d * z) - center, ctx.function(m - d * z) - center
                total = grads[0] * (up + down) + grads[1] * (up.square() + down.square()) + 2.0 * grads[2] * up * down
                for k, polynomial in enumerate(_hermite(z, ctx.degree)):
                    total = total + grads[3 + k] * polynomial * (up + down if k % 2 else up - down)
                slopes = torch.autograd.grad((weight * total).sum(), (m, d))
            by_loc += slopes[0]
            by_s += slopes[1]
        return by_loc, by_s, None, None


def _hermite(z: float, degree: int) -> list[float]:
    """Hermite polynomials of degree 1 to `degree` at z, normalized to unit variance."""
    values = [1.0, z]
    for k in range(1, degree):
        values.append((z * values[k] - math.sqrt(k) * values[k - 1]) / math.sqrt(k + 1))
    return values[1 : degree + 1]


@dataclass(frozen=True)
class Gelu:
    r"""GELU, $x\,\Phi(x)$, as a unit: mean and variance in closed form, covariance by the Hermite series of `Smooth`.

    By Stein's lemma all moments reduce to those of $\Phi(x)^2$, $\Phi(x)\varphi(x)$ and $\varphi(x)^2$.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> round(Gelu().mean_variance(zero, one)[0].item(), 8)
        0.28209479
    """

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, computed in double precision as the variance is a difference of moments."""
        dtype, loc, var = loc.dtype, loc.double(), var.double()
        total_var = 1.0 + var
        h = loc * total_var.rsqrt()
        mean = _gelu_mean(loc, var)
        density = normal_pdf(h) * total_var.rsqrt()  # mean of the standard normal density at x
        inner_loc, inner_var = loc / total_var, var / total_var  # mean and variance of x, weighted by that density
        # Means of g = Phi(x)^2, of its derivative and of its second derivative.
        g = bivariate_cdf(h, h, var / total_var)
        g1 = 2.0 * density * normal_cdf(inner_loc * (1.0 + inner_var).rsqrt())
        squared_density = torch.exp(-loc.square() / (1.0 + 2.0 * var)) / (2.0 * math.pi * (1.0 + 2.0 * var).sqrt())
        g2 = 2.0 * squared_density - 2.0 * density * _gelu_mean(inner_loc, inner_var)
        xg, xg1 = loc * g + var * g1, loc * g1 + var * g2
        variance = (loc * xg + var * (g + xg1) - mean.square()).clamp_min(0.0)
        return mean.to(dtype), variance.to(dtype)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative, E[Phi(x) + x phi(x)]."""
        total_var = 1.0 + var
        density = normal_pdf(loc * total_var.rsqrt()) * total_var.rsqrt()
        return normal_cdf(loc * total_var.rsqrt()) + density * loc / total_var

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Covariance by the Hermite series of `Smooth`."""
        return Smooth(F.gelu).covariance(loc, var, cov)


def _gelu_mean(loc: Tensor, var: Tensor) -> Tensor:
    inverse_deviation = (1.0 + var).rsqrt()
    return loc * normal_cdf(loc * inverse_deviation) + var * inverse_deviation * normal_pdf(loc * inverse_deviation)

"""Smooth units: the error function and GELU in closed form, any other function by quadrature and a Hermite series."""

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

# The trapezoidal rule on the real line converges geometrically: for tanh with a deviation s the error is of the order
# of exp(-pi^2 / (s h)), 1e-11 at s = 1.5 and 1e-4 at s = 4.
_STEP, _REACH, _DEGREE = 0.25, 26, 12

# Nodes from 0 up, each for both signs, with their weights; the one at 0 counts half for either.
_NODES = tuple(
    (_STEP * k, _STEP * math.exp(-0.5 * (_STEP * k) ** 2) / math.sqrt(2.0 * math.pi) * (1.0 if k else 0.5))
    for k in range(_REACH + 1)
)

# Below this variance a slope is that of a wider distribution: differences of f would drown in rounding.
_FLAT = 1e-10


@dataclass(frozen=True)
class Probit:
    r"""$\mathrm{scale}\,\Phi(x / \mathrm{width}) + \mathrm{offset}$, exact: a step behind Gaussian noise.

    Args:
        width: Deviation of that noise.
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
        """Mean and variance: two steps that share x and have noises of their own."""
        wide = self.width**2 + var
        h = loc * wide.rsqrt()
        mean = self.offset + self.scale * normal_cdf(h)
        return mean, self.scale**2 * density_integral(h, h, var / wide)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative."""
        narrow = (self.width**2 + var).rsqrt()
        return self.scale * normal_pdf(loc * narrow) * narrow

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Exact covariance."""
        one, other = ((self.width**2 + v).rsqrt() for v in var)
        return self.scale**2 * density_integral(loc[0] * one, loc[1] * other, cov * one * other)


class Smooth:
    r"""A smooth function by quadrature: $E[f(m + s z)]$ and the coefficients of f in Hermite polynomials of z.

    With $c_k = E[f(m + s z)\,\mathrm{He}_k(z)] / \sqrt{k!}$ the covariance is $\sum_k c_k c_k' \rho^k$ (Mehler), taken
    up to k = 12; what is left of the two variances, even and odd parts apart, counts at the next powers. The nodes are
    looped over, in the backward pass too, so that memory does not grow with their number; sums are in double precision.

    Args:
        function: The function, entry by entry.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> round(Smooth(torch.tanh).mean_variance(zero, one)[1].item(), 8)
        0.39429449

    References:
        Mehler 1866; Trefethen, Weideman, "The exponentially convergent trapezoidal rule", 2014.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance."""
        mean, square, _, _ = self._expectations(loc, var, 0)
        variance = (square - mean.square()).clamp_min(0.0)
        return (self.function(loc.double()).detach() + mean).to(loc.dtype), variance.to(loc.dtype)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean derivative, the first coefficient over the deviation."""
        s = root(var.double().clamp_min(_FLAT))
        return (self._expectations(loc, s.square(), 1)[3][0] / s).to(loc.dtype)

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Covariance from the coefficients."""
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
        for one, other in zip(parts[0][1:], parts[1][1:], strict=True):
            power = power * rho
            total = total + (one * other).clamp_min(torch.finfo(rho.dtype).tiny).sqrt() * power
        return total.to(cov.dtype)

    def _expectations(self, loc: Tensor, var: Tensor, degree: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """E g, E g(z)^2, E g(z) g(-z) for g = f(m + s z) - f(m), and the first coefficients."""
        found = _Expectations.apply(loc.double(), root(var.double()), self.function, degree)
        mean, square, mirrored, *series = found
        return mean, square, mirrored, tuple(series)


class _Expectations(torch.autograd.Function):
    """The quadrature, node by node, forward and backward."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, s: Tensor, function: Callable[[Tensor], Tensor], degree: int) -> Any:
        ctx.save_for_backward(loc, s)
        ctx.function, ctx.degree = function, degree
        center = function(loc)
        found = [torch.zeros_like(center) for _ in range(3 + degree)]
        for z, weight in _NODES:
            up, down = function(loc + s * z) - center, function(loc - s * z) - center
            found[0] += weight * (up + down)
            found[1] += weight * (up.square() + down.square())
            found[2] += 2.0 * weight * up * down
            for k, polynomial in enumerate(_hermite(z, degree)):
                found[3 + k] += weight * polynomial * (up + down if k % 2 else up - down)
        return tuple(found)

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
                moved = torch.autograd.grad((weight * total).sum(), (m, d))
            by_loc += moved[0]
            by_s += moved[1]
        return by_loc, by_s, None, None


def _hermite(z: float, degree: int) -> list[float]:
    """Hermite polynomials of degree 1 to `degree`, of unit variance."""
    values = [1.0, z]
    for k in range(1, degree):
        values.append((z * values[k] - math.sqrt(k) * values[k - 1]) / math.sqrt(k + 1))
    return values[1 : degree + 1]


@dataclass(frozen=True)
class Gelu:
    r"""$x\,\Phi(x)$: mean and variance in closed form, covariance by the Hermite series of `Smooth`.

    By Stein's lemma all moments reduce to those of $\Phi(x)^2$, $\Phi(x)\varphi(x)$ and $\varphi(x)^2$.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> round(Gelu().mean_variance(zero, one)[0].item(), 8)
        0.28209479
    """

    def mean_variance(self, loc: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, in double precision: the variance is a difference."""
        dtype, loc, var = loc.dtype, loc.double(), var.double()
        wide = 1.0 + var
        h = loc * wide.rsqrt()
        mean = _gelu_mean(loc, var)
        near = normal_pdf(h) * wide.rsqrt()  # E of the density at x
        inner_loc, inner_var = loc / wide, var / wide  # of x, weighted by that density
        # g = Phi(x)^2 and its derivatives.
        g = bivariate_cdf(h, h, var / wide)
        g1 = 2.0 * near * normal_cdf(inner_loc * (1.0 + inner_var).rsqrt())
        double = torch.exp(-loc.square() / (1.0 + 2.0 * var)) / (2.0 * math.pi * (1.0 + 2.0 * var).sqrt())
        g2 = 2.0 * double - 2.0 * near * _gelu_mean(inner_loc, inner_var)
        xg, xg1 = loc * g + var * g1, loc * g1 + var * g2
        variance = (loc * xg + var * (g + xg1) - mean.square()).clamp_min(0.0)
        return mean.to(dtype), variance.to(dtype)

    def slope(self, loc: Tensor, var: Tensor) -> Tensor:
        """Mean of Phi(x) + x phi(x)."""
        wide = 1.0 + var
        near = normal_pdf(loc * wide.rsqrt()) * wide.rsqrt()
        return normal_cdf(loc * wide.rsqrt()) + near * loc / wide

    def covariance(self, loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor) -> Tensor:
        """Covariance by the Hermite series of `Smooth`."""
        return Smooth(F.gelu).covariance(loc, var, cov)


def _gelu_mean(loc: Tensor, var: Tensor) -> Tensor:
    narrow = (1.0 + var).rsqrt()
    return loc * normal_cdf(loc * narrow) + var * narrow * normal_pdf(loc * narrow)

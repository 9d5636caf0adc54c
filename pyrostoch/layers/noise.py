"""Distributions of the noise that stochastic neurons add to their input: symmetric, mean 0, variance 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch.moments.bivariate import normal_cdf, normal_pdf

__all__ = ["NOISE_DISTRIBUTIONS", "NoiseDistribution"]


@dataclass(frozen=True)
class NoiseDistribution:
    """A symmetric distribution of mean 0 and variance 1.

    Args:
        name: Its name.
        cdf: Cumulative distribution function, accurate in its lower tail.
        pdf: Density.
        draw: Returns independent draws with the shape, dtype and device of its argument.
        bounded: Whether the density is constant between two bounds and 0 outside.

    Example:
        >>> NOISE_DISTRIBUTIONS["logistic"].cdf(torch.tensor(0.0))
        tensor(0.5000)
    """

    name: str
    cdf: Callable[[Tensor], Tensor]
    pdf: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor], Tensor]
    bounded: bool = False


# The scale parameters at which the distributions have variance 1.
_LOGISTIC, _LAPLACE, _UNIFORM = math.sqrt(3.0) / math.pi, math.sqrt(0.5), math.sqrt(3.0)


def _logistic_pdf(z: Tensor) -> Tensor:
    return torch.sigmoid(z / _LOGISTIC) * torch.sigmoid(-z / _LOGISTIC) / _LOGISTIC


def _laplace_cdf(z: Tensor) -> Tensor:
    tail = 0.5 * torch.exp(-z.abs() / _LAPLACE)
    return torch.where(z > 0, 1.0 - tail, tail)


def _laplace_draw(x: Tensor) -> Tensor:
    centered = torch.rand_like(x) - 0.5
    return -_LAPLACE * centered.sign() * torch.log1p(-2.0 * centered.abs())


#: The distributions, by name.
NOISE_DISTRIBUTIONS: dict[str, NoiseDistribution] = {
    distribution.name: distribution
    for distribution in (
        NoiseDistribution("gaussian", normal_cdf, normal_pdf, torch.randn_like),
        NoiseDistribution(
            "logistic",
            lambda z: torch.sigmoid(z / _LOGISTIC),
            _logistic_pdf,
            lambda x: _LOGISTIC * torch.logit(torch.rand_like(x)),
        ),
        NoiseDistribution(
            "uniform",
            lambda z: (0.5 + z / (2.0 * _UNIFORM)).clamp(0.0, 1.0),
            lambda z: (z.abs() <= _UNIFORM).to(z.dtype) / (2.0 * _UNIFORM),
            lambda x: _UNIFORM * (2.0 * torch.rand_like(x) - 1.0),
            bounded=True,
        ),
        NoiseDistribution(
            "laplace", _laplace_cdf, lambda z: torch.exp(-z.abs() / _LAPLACE) / (2.0 * _LAPLACE), _laplace_draw
        ),
    )
}

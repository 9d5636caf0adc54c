"""Continuous activations, whose draws are reparameterized."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from pyrostoch._checks import check_choice, check_positive
from pyrostoch.layers.activations.base import ActivationDistribution, Link, identity

__all__ = ["Gaussian", "Laplace", "LogNormal", "StudentT"]

# The output whose softplus is 1.
_ONE = math.log(math.e - 1.0)


class _LocationScale(ActivationDistribution):
    """Two kernels: a location, and the scale before a softplus."""

    noise = "scale"

    @property
    def links(self) -> dict[str, Link]:
        """Of `loc` and `scale`."""
        return {"loc": identity, "scale": F.softplus}

    @property
    def standard(self) -> tuple[float, ...]:
        """Those of location 0 and scale 1."""
        return 0.0, _ONE

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The location."""
        return parameters[0]


@dataclass(frozen=True)
class Gaussian(_LocationScale):
    r"""$N(\mu, \sigma^2)$; the kernels give $\mu$ and, before the link, $\sigma$.

    Args:
        scale: The link of the standard deviation: `"softplus"`, `"exp"`, or `"raw"`, the output as it is. That may be
            negative: the distribution is that of its absolute value.

    Raises:
        ValueError: There is no such link.

    Example:
        >>> Gaussian("raw").distribution((torch.zeros(1), torch.tensor([-2.0]))).stddev
        tensor([2.])
    """

    scale: Literal["softplus", "exp", "raw"] = "softplus"

    def __post_init__(self) -> None:
        check_choice("Gaussian scale", self.scale, ["softplus", "exp", "raw"])

    @property
    def links(self) -> dict[str, Link]:
        """Of `loc` and `scale`."""
        scales: dict[str, Link] = {"softplus": F.softplus, "exp": torch.exp, "raw": torch.abs}
        return {"loc": identity, "scale": scales[self.scale]}

    @property
    def standard(self) -> tuple[float, ...]:
        """Those of the standard normal distribution."""
        return 0.0, {"softplus": _ONE, "exp": 0.0, "raw": 1.0}[self.scale]

    def make(self, *parameters: Tensor) -> Distribution:
        """Normal(loc, scale)."""
        loc, scale = parameters
        return dist.Normal(loc, scale)


@dataclass(frozen=True)
class Laplace(_LocationScale):
    r"""The Laplace distribution, with the density $e^{-|h - \mu| / b} / (2 b)$ and $b$ by softplus.

    Example:
        >>> Laplace().distribution((torch.zeros(1), torch.zeros(1))).scale
        tensor([0.6931])
    """

    def make(self, *parameters: Tensor) -> Distribution:
        """Laplace(loc, scale)."""
        return dist.Laplace(*parameters)


@dataclass(frozen=True)
class StudentT(_LocationScale):
    """Student's t, shifted and scaled by the kernels.

    Args:
        df: Degrees of freedom; above 1, so that there is a mean.

    Raises:
        ValueError: There is no mean.

    Example:
        >>> StudentT(5.0).distribution((torch.zeros(1), torch.zeros(1))).df
        tensor([5.])
    """

    df: float = 4.0

    def __post_init__(self) -> None:
        if check_positive("StudentT df", self.df) <= 1.0:
            raise ValueError(f"StudentT df: expected above 1, so that there is a mean, got {self.df}")

    def make(self, *parameters: Tensor) -> Distribution:
        """StudentT(df, loc, scale)."""
        return dist.StudentT(self.df, *parameters)


@dataclass(frozen=True)
class LogNormal(_LocationScale):
    r"""$e^z$ with $z \sim N(\mu, \sigma^2)$; without noise it is $e^\mu$.

    Example:
        >>> LogNormal().noise_free(torch.zeros(1), torch.ones(1))
        tensor([1.])
    """

    def make(self, *parameters: Tensor) -> Distribution:
        """LogNormal(loc, scale)."""
        return dist.LogNormal(*parameters)

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The exponential of the location."""
        return parameters[0].exp()

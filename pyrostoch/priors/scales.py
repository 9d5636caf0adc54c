"""Gaussian priors whose scale is learned from the data: fitted by maximum likelihood, or a random variable."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import nn
from torch.distributions import Distribution

from pyrostoch._checks import check_positive
from pyrostoch.priors.base import FromDistribution, Prior

__all__ = ["EmpiricalBayes", "Hierarchical"]


class EmpiricalBayes(Prior):
    """N(0, s^2) with one s per site, fitted together with the guide (type-II maximum likelihood).

    Args:
        scale: Initial value of s.

    References:
        MacKay, "A practical Bayesian framework for backpropagation networks", 1992; Wu et al., "Deterministic
        variational inference for robust Bayesian neural networks", 2019.

    Example:
        >>> EmpiricalBayes(0.5)
        EmpiricalBayes(scale=0.5)
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(check_positive("EmpiricalBayes scale", scale))))

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """N(0, s^2), expanded to the shape of the weights."""
        return dist.Normal(torch.zeros_like(self.log_scale), self.log_scale.exp()).expand(shape)

    def extra_repr(self) -> str:
        """The current scale."""
        return f"scale={self.log_scale.exp().item():.6g}"


class Hierarchical(Prior):
    """N(0, s^2) with one random s per site, which is the Pyro site `<site>_prior_scale`.

    Args:
        scale: Prior of s, a distribution on the positive numbers; half-Cauchy(1) by default.

    Raises:
        ValueError: `scale` is not a distribution on the positive numbers.

    References:
        Gelman, "Prior distributions for variance parameters in hierarchical models", 2006.

    Example:
        >>> Hierarchical(dist.HalfNormal(1.0))
        Hierarchical(HalfNormal(scale=1))
    """

    def __init__(self, scale: Distribution | None = None) -> None:
        super().__init__()
        self.scale = FromDistribution(dist.HalfCauchy(1.0) if scale is None else scale)
        support = self.scale.distribution("", torch.Size()).support
        if not bool(support.check(torch.tensor(1.0))) or bool(support.check(torch.tensor(-1.0))):
            raise ValueError(f"Hierarchical scale: expected a distribution on the positive numbers, got {self.scale!r}")

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """N(0, s^2) given a draw of s, expanded to the shape of the weights."""
        scale = pyro.sample(f"{name}_prior_scale", self.scale.distribution(name, torch.Size()))
        return dist.Normal(torch.zeros_like(scale), scale).expand(shape)

    def extra_repr(self) -> str:
        """The prior of the scale."""
        return repr(self.scale)

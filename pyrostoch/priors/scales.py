"""Priors whose scale is found from the data: by maximum likelihood, or as a random variable of its own."""

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
    """N(0, s^2) with one s a site, fitted together with the guide (type-II maximum likelihood).

    Args:
        scale: Where s starts.

    References:
        MacKay 1992; Wu et al., "Deterministic variational inference for robust Bayesian neural networks", 2019.

    Example:
        >>> EmpiricalBayes(0.5)
        EmpiricalBayes(scale=0.5)
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(check_positive("EmpiricalBayes scale", scale))))

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """N(0, s^2), expanded."""
        return dist.Normal(torch.zeros_like(self.log_scale), self.log_scale.exp()).expand(shape)

    def extra_repr(self) -> str:
        """The scale as it stands."""
        return f"scale={self.log_scale.exp().item():.6g}"


class Hierarchical(Prior):
    """N(0, s^2) with one random s a site, `<site>_prior_scale`, under a prior of its own.

    Args:
        scale: Prior of s, a distribution on the positive numbers; half-Cauchy(1) by default.

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
        """N(0, s^2) given a draw of s, expanded."""
        scale = pyro.sample(f"{name}_prior_scale", self.scale.distribution(name, torch.Size()))
        return dist.Normal(torch.zeros_like(scale), scale).expand(shape)

    def extra_repr(self) -> str:
        """The prior of the scale."""
        return repr(self.scale)

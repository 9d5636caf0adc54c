"""The ratio of a weight's variance to its squared mean: what tells noise from signal, weight by weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrostoch.distributions import MultiplicativeNormal
from pyrostoch.effects import base_law

__all__ = ["is_zero_mean", "log_alpha", "signal", "weight_laws"]


def weight_laws(guide: Any, purpose: str = "weight_laws") -> dict[str, Distribution]:
    """The elementwise law of each random weight of a guide; random scales of priors and likelihoods are no weights.

    Args:
        guide: A guide of `pyrostoch.guides`.
        purpose: The function that needs them, for the error.

    Returns:
        Laws by site, as they stand now.

    Raises:
        TypeError: It is no such guide.
    """
    names = getattr(guide, "weight_names", None)
    if names is None:
        raise TypeError(f"{purpose}: expected a guide of pyrostoch.guides, got {type(guide).__name__}")
    return {name: base_law(guide.site_law(name)) for name in names}


def is_zero_mean(law: Distribution) -> bool:
    """Whether the law's mean is zero by construction, whatever its parameters."""
    return bool(getattr(law, "zero_mean", False))


def signal(law: Normal) -> Tensor:
    r"""Twice what zeroing a weight's mean costs, $\mu^2/\sigma^2 = 1/\alpha$, in float64; 0 where the mean is 0.

    Args:
        law: A normal law.

    Returns:
        A tensor in the law's shape.
    """
    mean = law.loc.detach().double()
    if isinstance(law, MultiplicativeNormal):
        # From alpha itself: a squared small mean would have underflown before it cancels.
        ratio = (-law.log_alpha.detach().double()).exp()
    else:
        ratio = (mean / law.scale.detach().double()).square()
    return torch.where(mean == 0, 0.0, ratio)


def log_alpha(law: Normal) -> Tensor:
    r"""$\log\alpha = \log(\sigma^2/\mu^2)$ of each weight, in float64; infinite where the mean is 0.

    Args:
        law: A normal law.

    Returns:
        A tensor in the law's shape.

    Example:
        >>> log_alpha(Normal(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])))
        tensor([0., inf], dtype=torch.float64)
    """
    if isinstance(law, MultiplicativeNormal):
        ratio = law.log_alpha.detach().double()
    else:
        ratio = 2 * (law.scale.detach().double().log() - law.loc.detach().double().abs().log())
    return torch.where(law.loc.detach() == 0, torch.inf, ratio)

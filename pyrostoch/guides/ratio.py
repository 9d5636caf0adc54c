"""The ratio of a weight's variance to its squared mean, alpha, which measures its noise against its signal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrostoch._fixed_entries import FixedEntries
from pyrostoch.distributions import MultiplicativeNormal, PartlyFixed
from pyrostoch.effects import base_distribution
from pyrostoch.guides.statistics import refuse_own
from pyrostoch.protocols import SiteGuide

__all__ = ["free_entries", "is_zero_mean", "log_alpha", "squared_signal_to_noise", "weight_distributions"]


def weight_distributions(guide: SiteGuide, purpose: str = "weight_distributions") -> dict[str, Distribution]:
    """The elementwise distribution of each random weight of a guide, without scales of priors and likelihoods.

    Args:
        guide: A guide, such as those of `pyrostoch.guides`.
        purpose: Name of the calling function, for the error.

    Returns:
        The present distributions by site.

    Raises:
        TypeError: The guide has no `weight_names`.
        ValueError: The caller makes another network of them, and the guide has running statistics of its own.
    """
    names = getattr(guide, "weight_names", None)
    if names is None:
        raise TypeError(f"{purpose}: expected a guide of pyrostoch.guides, got {type(guide).__name__}")
    if purpose in ("export", "prune", "prune_groups", "to_variance_only"):
        refuse_own(guide, purpose)
    return {name: base_distribution(guide.site_distribution(name)) for name in names}


def free_entries(distribution: Distribution) -> tuple[Distribution, FixedEntries | None]:
    """The distribution that all entries of a weight would have, and those of them that are constants instead.

    Args:
        distribution: The elementwise distribution of a weight.

    Example:
        >>> free_entries(Normal(0.0, 1.0))
        (Normal(loc: 0.0, scale: 1.0), None)
    """
    if isinstance(distribution, PartlyFixed):
        return distribution.base_dist, distribution.fixed
    return distribution, None


def is_zero_mean(distribution: Distribution) -> bool:
    """Whether the distribution's mean is zero by construction, whatever its parameters."""
    return bool(getattr(distribution, "zero_mean", False))


def squared_signal_to_noise(distribution: Normal) -> Tensor:
    r"""$\mu^2/\sigma^2 = 1/\alpha$ of each weight, in float64; 0 where the mean is 0.

    Half of it is the KL between the distribution and the same with mean zero.

    Args:
        distribution: A normal distribution.

    Returns:
        A tensor in the distribution's shape.
    """
    mean = distribution.loc.detach().double()
    if isinstance(distribution, MultiplicativeNormal):
        # From alpha itself, since the square of a small mean may underflow before it cancels.
        ratio = (-distribution.log_alpha.detach().double()).exp()
    else:
        ratio = (mean / distribution.scale.detach().double()).square()
    return torch.where(mean == 0, 0.0, ratio)


def log_alpha(distribution: Normal) -> Tensor:
    r"""$\log\alpha = \log(\sigma^2/\mu^2)$ of each weight, in float64; infinite where the mean is 0.

    Args:
        distribution: A normal distribution.

    Returns:
        A tensor in the distribution's shape.

    Example:
        >>> log_alpha(Normal(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])))
        tensor([0., inf], dtype=torch.float64)
    """
    if isinstance(distribution, MultiplicativeNormal):
        ratio = distribution.log_alpha.detach().double()
    else:
        ratio = 2 * (distribution.scale.detach().double().log() - distribution.loc.detach().double().abs().log())
    return torch.where(distribution.loc.detach() == 0, torch.inf, ratio)

"""Why an interpretation has no rule for a weight's distribution, in words."""

from __future__ import annotations

from pyro.distributions import Delta
from torch.distributions import Distribution

from pyrostoch.distributions import JointWeights, PartlyFixed

__all__ = ["entries_may_depend", "why_unsupported"]


def why_unsupported(distribution: Distribution) -> str:
    """Why a weight of a distribution keeps its drawn value, where an interpretation does not support it.

    Args:
        distribution: The weight's elementwise distribution.

    Example:
        >>> import torch
        >>> why_unsupported(torch.distributions.Cauchy(0.0, 1.0))
        'no rule for Cauchy'
    """
    kind = type(distribution).__name__
    if isinstance(distribution, Delta):
        return "a point"
    if isinstance(distribution, PartlyFixed):
        return "some entries are constant"
    if isinstance(distribution, JointWeights):
        return f"no rule for {kind}" if distribution.shared is None else "it depends on the draws of other sites"
    return f"entries of {kind} may depend on each other" if entries_may_depend(distribution) else f"no rule for {kind}"


def entries_may_depend(distribution: Distribution) -> bool:
    """Whether the distribution is a joint one, whose entries may depend on each other.

    Args:
        distribution: What `base_distribution` returned, so that axes that were declared as an event are none.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> entries_may_depend(dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))
        True
    """
    return bool(distribution.event_shape) and not isinstance(distribution, Delta)

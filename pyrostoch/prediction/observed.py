"""What the distribution of observations has: classes, a mean and a variance, and a mask of what was observed."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent

from pyrostoch.likelihoods.missing import WithMissing
from pyrostoch.moments.predictive import OutputDistribution

__all__ = ["class_log_probs", "mean_and_variance", "observed_mask", "output_summary", "without_wrappers"]


def without_wrappers(distribution: Distribution) -> Distribution:
    """The elementwise distribution inside `Independent`, `expand` and `mask`.

    Args:
        distribution: A distribution of observations.

    Example:
        >>> import pyro.distributions as dist
        >>> without_wrappers(dist.Normal(torch.zeros(2, 3), 1.0).mask(torch.ones(2, 3) > 0).to_event(1))
        Normal(loc: torch.Size([2, 3]), scale: torch.Size([2, 3]))
    """
    inner: Any = distribution
    while isinstance(inner, (Independent, ExpandedDistribution, MaskedDistribution)):
        inner = inner.base_dist
    base: Distribution = inner
    return base


def observed_mask(distribution: Distribution, y: Tensor | None = None) -> Tensor | None:
    """Which entries of the targets are observed, in the targets' shape; `None` where all are.

    Args:
        distribution: A distribution of observations, perhaps one with `.mask(...)`, or with missing targets.
        y: The targets, which tell which are missing.

    Example:
        >>> import pyro.distributions as dist
        >>> observed_mask(dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])))
        tensor([ True, False])
    """
    if isinstance(distribution, OutputDistribution):
        distribution = distribution.at_mean
    shape = distribution.batch_shape + distribution.event_shape
    inner: Any = distribution
    mask: Tensor | None = None
    while isinstance(inner, (Independent, ExpandedDistribution, MaskedDistribution)):
        if isinstance(inner, WithMissing) and y is not None:
            own = inner.absent(y).logical_not()
            own = own.reshape(own.shape + (1,) * len(inner.event_shape)).expand(shape)
            mask = own if mask is None else mask & own
        elif isinstance(inner, MaskedDistribution) and inner._mask is not True:
            own = torch.as_tensor(inner._mask)
            # A mask over the batch of a joint distribution masks whole events.
            own = own.reshape(own.shape + (1,) * len(inner.event_shape)).expand(shape)
            mask = own if mask is None else mask & own
        inner = inner.base_dist
    return mask


def class_log_probs(distribution: Distribution) -> Tensor | None:
    """Log-probabilities of the classes, `(n, ..., C)` in float64; `None` where the observations are not classes.

    A Bernoulli variable counts as two classes, no and yes: `(n, 2)` for one per example, `(n, ..., 2)` for several.

    Args:
        distribution: A distribution of observations.
    """
    base = without_wrappers(distribution)
    if isinstance(base, Categorical):
        logits = base.logits.to(torch.float64).log_softmax(-1)
        return logits.expand(*distribution.batch_shape, *distribution.event_shape, logits.shape[-1])
    if isinstance(base, Bernoulli):
        shape = distribution.batch_shape + distribution.event_shape
        logits = base.logits.to(torch.float64).expand(shape)
        logits = logits.reshape(-1) if shape.numel() == shape[0] else logits
        return torch.stack([torch.zeros_like(logits), logits], dim=-1).log_softmax(-1)
    return None


def mean_and_variance(distribution: Distribution) -> dict[str, Tensor]:
    """Mean and variance of the observations by name; empty where torch or Pyro know none.

    Args:
        distribution: A distribution of observations.

    Example:
        >>> mean_and_variance(torch.distributions.Normal(torch.zeros(2), 2.0))["variance"].tolist()
        [4.0, 4.0]
    """
    try:
        return {"mean": distribution.mean, "variance": distribution.variance}
    except NotImplementedError:  # raised by torch's distributions that have no known mean or variance
        return {}


def output_summary(distribution: Distribution) -> dict[str, Tensor]:
    """What a distribution of observations says of the network's output: class probabilities, or mean and variance.

    Args:
        distribution: A distribution of observations.
    """
    if isinstance(distribution, OutputDistribution):
        return {"loc": distribution.output.loc, "var": distribution.output.var}
    log_probs = class_log_probs(distribution)
    return mean_and_variance(distribution) if log_probs is None else {"classes": log_probs.exp()}

"""Mean propagation (the weight scaling rule): every latent variable is replaced by its mean."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch._C._functorch import maybe_current_level

from pyrostoch._tracing import being_traced
from pyrostoch.distributions import JointWeights
from pyrostoch.distributions.shared_draw import mark_pending
from pyrostoch.effects.interpretation import Interpretation, base_distribution

__all__ = ["MeanPropagation", "NoiseFree", "replace_by_mean", "stand_in_mean"]


class MeanPropagation(Interpretation):
    """Every latent variable is replaced by its mean: one deterministic pass, the weight scaling rule.

    Fast and often good, but arbitrarily wrong where a layer's information is in the variances of its weights: with
    weights N(0, sigma^2), as in variance networks, the mean of the layer's output does not depend on its input.

    Raises:
        ValueError: The distribution of a latent variable has no known mean; the site is named.

    References:
        Hinton et al., "Improving neural networks by preventing co-adaptation of feature detectors", 2012, for the rule;
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations",
        2018 (arXiv 1803.03764), for where it fails.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> with MeanPropagation():
        ...     pyro.sample("w", dist.Normal(2.0, 5.0)).item()
        2.0
    """

    name = "mean"

    def _pyro_sample(self, msg: Message) -> None:
        replace_by_mean(msg)

    def _pyro_dropout(self, msg: Any) -> None:
        # Dropout divides what it keeps by the probability of keeping it, so the mean of the output is the input.
        msg["value"] = msg["args"][0]
        msg["done"] = True

    def _pyro_activation(self, msg: Any) -> None:
        msg["value"] = msg["kwargs"]["layer"].expected(msg["args"][0])
        msg["done"] = True


class NoiseFree(MeanPropagation):
    """Mean propagation in which random activations are computed without their noise, not replaced by their mean.

    A neuron with thresholds takes the state that its noise-free input selects. This is what hardware without a source
    of noise computes.

    Example:
        >>> import torch
        >>> from pyrostoch.layers import Ternary
        >>> with NoiseFree():
        ...     Ternary(noise=1.0)(torch.tensor([[-0.4, 0.6]]))
        tensor([[0., 1.]])
    """

    name = "noise-free"

    def _pyro_activation(self, msg: Any) -> None:
        msg["value"] = msg["kwargs"]["layer"].noise_free(msg["args"][0])
        msg["done"] = True


def replace_by_mean(msg: Message) -> None:
    """Set the value of a latent site without one to the mean of its distribution.

    Args:
        msg: Pyro's message of the site.

    Raises:
        ValueError: The distribution has no known mean.
    """
    if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
        return
    fn: Any = msg["fn"]
    distribution = base_distribution(fn)
    without = ValueError(
        f"site {msg['name']!r}: {type(distribution).__name__} has no known mean, so it cannot be replaced by it; use "
        "mode='mc'"
    )
    try:
        mean = distribution.mean
    except (NotImplementedError, ValueError) as error:  # raised by distributions of torch and Pyro without a mean
        mean = _mean_through_transforms(distribution)
        if mean is None:
            raise without from error
    # Others, such as the Cauchy, return NaN. In training the loss tells, and reading a value would wait for the device.
    can_read = not torch.is_grad_enabled() and maybe_current_level() is None and not being_traced()
    if can_read and bool(torch.isnan(mean).any()):
        raise without
    # A copy, since a network may write into its weights, and the mean may be a parameter of the guide.
    msg["value"] = mean.expand(fn.shape()).clone()
    msg["done"] = True


def stand_in_mean(msg: Message) -> None:
    """As `replace_by_mean`, but of weights that others depend on the mean stands in for a draw that is made later.

    Args:
        msg: Pyro's message of the site.
    """
    distribution = base_distribution(msg["fn"])
    if msg["done"] or msg["is_observed"] or not isinstance(distribution, JointWeights):
        replace_by_mean(msg)
        return
    value = distribution.mean if distribution.has_mean else distribution.loc
    msg["value"], msg["done"] = mark_pending(value.clone()), True


def _mean_through_transforms(distribution: Any) -> Any:
    """The base distribution's mean passed through the transforms; for a LogNormal scale this is its median."""
    if not hasattr(distribution, "transforms"):
        return None
    value = base_distribution(distribution.base_dist).mean
    for transform in distribution.transforms:
        value = transform(value)
    return value

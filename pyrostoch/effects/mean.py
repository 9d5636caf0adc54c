"""Mean propagation (the weight scaling rule): every weight is replaced by its mean."""

from __future__ import annotations

from typing import Any

from pyro.poutine.util import site_is_subsample

from pyrostoch.effects.interpretation import Interpretation, base_distribution

__all__ = ["MeanPropagation", "NoiseFree", "replace_by_mean"]


class MeanPropagation(Interpretation):
    """Every latent variable is replaced by its mean: one deterministic pass, the weight scaling rule.

    Fast and often good, but arbitrarily wrong where information lies in variances: a variance network, N(0, sigma^2),
    has mean zero and says nothing (Neklyudov et al. 2018, arXiv 1803.03764).

    Raises:
        ValueError: A latent variable's distribution has no finite mean; the site is named.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> with MeanPropagation():
        ...     pyro.sample("w", dist.Normal(2.0, 5.0)).item()
        2.0
    """

    name = "mean"

    def _pyro_sample(self, msg: Any) -> None:
        replace_by_mean(msg)

    def _pyro_dropout(self, msg: Any) -> None:
        # Inverted scaling: the mean of what is left of an input is the input.
        msg["value"] = msg["args"][0]
        msg["done"] = True

    def _pyro_activation(self, msg: Any) -> None:
        msg["value"] = msg["kwargs"]["layer"].expected(msg["args"][0])
        msg["done"] = True


class NoiseFree(MeanPropagation):
    """Mean propagation in which activations lose their noise, and are not replaced by their expectation.

    A neuron with thresholds is in the state of its noise-free input: what a chip without a source of noise computes.

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


def replace_by_mean(msg: Any) -> None:
    """Give a site the mean of its distribution, unless it has a value.

    Args:
        msg: Pyro's message of the site.

    Raises:
        ValueError: The distribution has no finite mean.
    """
    if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
        return
    distribution = base_distribution(msg["fn"])
    try:
        mean = distribution.mean
    except (NotImplementedError, ValueError) as error:  # torch's and Pyro's distributions that have none to tell
        mean = _mean_through_transforms(distribution)
        if mean is None:
            raise ValueError(
                f"site {msg['name']!r}: {type(distribution).__name__} has no known mean, so it cannot be replaced by "
                "it; use mode='mc'"
            ) from error
    # A copy: a network may write into its weights, and the mean may be the guide's own parameter.
    msg["value"] = mean.expand(msg["fn"].shape()).clone()
    msg["done"] = True


def _mean_through_transforms(distribution: Any) -> Any:
    """The base's mean pushed through the transforms: the median of a LogNormal, the usual plug-in for a scale."""
    if not hasattr(distribution, "transforms"):
        return None
    value = base_distribution(distribution.base_dist).mean
    for transform in distribution.transforms:
        value = transform(value)
    return value

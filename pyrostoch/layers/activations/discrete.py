"""Discrete activations: straight-through, or relaxed to continuous values."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from pyrostoch._checks import check_count
from pyrostoch.layers.activations.base import ActivationDistribution, Link, identity

__all__ = ["Bernoulli", "Binomial", "Categorical", "Multinomial", "Poisson"]


class _ByLogits(ActivationDistribution):
    """Discrete activations, whose kernel gives logits."""

    gradients = ("straight-through", "relaxed", "score")
    noise = "logits"

    @property
    def links(self) -> dict[str, Link]:
        """Of `logits`."""
        return {"logits": identity}


@dataclass(frozen=True)
class Bernoulli(_ByLogits):
    """0 or 1; the kernel gives the logit of 1.

    Example:
        >>> Bernoulli().distribution((torch.zeros(1),)).probs
        tensor([0.5000])
    """

    def make(self, *parameters: Tensor) -> Distribution:
        """Bernoulli(logits)."""
        return dist.Bernoulli(logits=parameters[0])

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The more probable value."""
        return (parameters[0] > 0).to(parameters[0].dtype)

    def relaxed(self, temperature: float, *parameters: Tensor) -> Tensor:
        """A concrete draw, from 0 to 1."""
        return _relaxed_bits(parameters[0], temperature)


@dataclass(frozen=True)
class Binomial(_ByLogits):
    """The number of successes in n trials, from 0 to n; the kernel gives the logit of a success.

    Args:
        n: Number of trials.

    Raises:
        ValueError: There is no trial.

    Example:
        >>> Binomial(3).distribution((torch.zeros(1),)).mean
        tensor([1.5000])
    """

    n: int

    def __post_init__(self) -> None:
        check_count("Binomial n", self.n)

    def make(self, *parameters: Tensor) -> Distribution:
        """Binomial(n, logits)."""
        return dist.Binomial(self.n, logits=parameters[0])

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The most probable number."""
        return ((self.n + 1) * parameters[0].sigmoid()).floor().clamp_max(self.n)

    def relaxed(self, temperature: float, *parameters: Tensor) -> Tensor:
        """The sum of n concrete draws."""
        return _relaxed_bits(parameters[0].expand(self.n, *parameters[0].shape), temperature).sum(0)


@dataclass(frozen=True)
class Categorical(_ByLogits):
    """One of the channels is 1 and the others are 0; the kernel gives the logits of the channels.

    Example:
        >>> Categorical().draw((torch.tensor([[0.0, 90.0]]),), "straight-through")
        tensor([[0., 1.]])
    """

    event = True

    def make(self, *parameters: Tensor) -> Distribution:
        """OneHotCategorical(logits)."""
        return dist.OneHotCategorical(logits=parameters[0])

    def sample(self, distribution: Distribution) -> Tensor:
        """A draw without a gradient; no value is read, as in torch's `one_hot`."""
        logits: Tensor = distribution.logits  # type: ignore[attr-defined]  # of a OneHotCategorical
        index = dist.Categorical(logits=logits).sample().unsqueeze(-1)
        return torch.zeros_like(logits).scatter(-1, index, 1.0)

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The most probable channel."""
        (logits,) = parameters
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)

    def relaxed(self, temperature: float, *parameters: Tensor) -> Tensor:
        """A concrete draw, whose channels sum to one."""
        return _relaxed_choice(parameters[0], temperature)


@dataclass(frozen=True)
class Multinomial(_ByLogits):
    """How often each channel is taken in n draws; the counts sum to n, and the kernel gives the channels' logits.

    Args:
        n: Number of draws.

    Raises:
        ValueError: There is no draw.

    Example:
        >>> Multinomial(4).draw((torch.zeros(1, 2),), "straight-through").sum()
        tensor(4.)
    """

    event = True
    n: int

    def __post_init__(self) -> None:
        check_count("Multinomial n", self.n)

    def make(self, *parameters: Tensor) -> Distribution:
        """Multinomial(n, logits)."""
        return dist.Multinomial(self.n, logits=parameters[0])

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The expected counts, which need not be whole."""
        return self.n * parameters[0].softmax(-1)

    def relaxed(self, temperature: float, *parameters: Tensor) -> Tensor:
        """The sum of n concrete draws."""
        return _relaxed_choice(parameters[0].expand(self.n, *parameters[0].shape), temperature).sum(0)


@dataclass(frozen=True)
class Poisson(ActivationDistribution):
    """Counts; the kernel gives the logarithm of the rate.

    Example:
        >>> Poisson().distribution((torch.zeros(1),)).rate
        tensor([1.])
    """

    gradients = ("straight-through", "score")

    @property
    def links(self) -> dict[str, Link]:
        """Of `rate`."""
        return {"rate": torch.exp}

    def make(self, *parameters: Tensor) -> Distribution:
        """Poisson(rate)."""
        return dist.Poisson(*parameters)

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The most probable count."""
        return parameters[0].floor()


def _relaxed_bits(logits: Tensor, temperature: float) -> Tensor:
    drawn: Tensor = dist.RelaxedBernoulli(logits.new_tensor(temperature), logits=logits).rsample()
    return drawn


def _relaxed_choice(logits: Tensor, temperature: float) -> Tensor:
    drawn: Tensor = dist.RelaxedOneHotCategorical(logits.new_tensor(temperature), logits=logits).rsample()
    return drawn

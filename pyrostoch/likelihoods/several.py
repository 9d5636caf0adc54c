"""Distributions of observations of several kinds, and of observations with weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution
from torch.types import _size

from pyrostoch._targets import Target, Targets
from pyrostoch.moments.predictive import OutputDistribution

__all__ = [
    "JointObservations",
    "Observation",
    "WeightedObservations",
    "expected_log_prob",
    "observations",
    "without_weights",
]

_NO_AXES = torch.Size()


@dataclass(frozen=True)
class Observation:
    """One of a model's sites of observations.

    Args:
        name: Name of the head; empty where there is one kind of observations.
        distribution: The distribution.
        value: The targets; `None` where they are drawn.
        weight: Weight of each example's log density.
    """

    name: str
    distribution: Distribution
    value: Tensor | None
    weight: Tensor | None = None

    def log_prob(self) -> Tensor:
        """The log density of the targets times their weight, (n,); its mean over the output where that has moments."""
        value: Any = self.value
        found: Tensor = (
            self.distribution.expected_log_prob(value)
            if isinstance(self.distribution, OutputDistribution)
            else self.distribution.log_prob(value)
        )
        return found if self.weight is None else found * self.weight


class JointObservations(TorchDistribution):
    """Observations of several kinds, independent given the network's output.

    Args:
        heads: The distribution of each kind, with one batch axis.

    Example:
        >>> import pyro.distributions as dist
        >>> joint = JointObservations({"a": dist.Normal(torch.zeros(2), 1.0), "b": dist.Bernoulli(torch.ones(2))})
        >>> joint.log_prob(Targets({"a": torch.zeros(2), "b": torch.ones(2)}))
        tensor([-0.9189, -0.9189])
    """

    arg_constraints = {}

    def __init__(self, heads: dict[str, Distribution]) -> None:
        self.heads = heads
        super().__init__(next(iter(heads.values())).batch_shape, validate_args=False)

    def log_prob(self, value: Any) -> Tensor:
        """The sum of the heads' log densities.

        Args:
            value: Targets by head.
        """
        return torch.stack([head.log_prob(value[name]) for name, head in self.heads.items()]).sum(0)

    def sample(self, sample_shape: _size = _NO_AXES) -> Any:
        """Targets of every head.

        Args:
            sample_shape: Leading axes of the draws.
        """
        return Targets({name: head.sample(sample_shape) for name, head in self.heads.items()})


class WeightedObservations(TorchDistribution):
    """Observations whose log densities are multiplied by weights, which come with the targets.

    Args:
        base: The distribution of the observations.
        target: Name of the targets; `None` where `base` has several kinds.
        weight: Name of the weights.
    """

    arg_constraints = {}

    def __init__(self, base: Distribution, target: str | None, weight: str) -> None:
        self.base, self.target, self.weight = base, target, weight
        super().__init__(base.batch_shape, validate_args=False)

    def unweighted(self, value: Targets) -> Target:
        """The targets without their weights.

        Args:
            value: Targets with weights.
        """
        if self.target is None:
            return Targets({name: part for name, part in value.parts.items() if name != self.weight})
        found: Tensor = value[self.target]
        return found

    def log_prob(self, value: Any) -> Tensor:
        """The log density of the targets times their weights.

        Args:
            value: Targets with weights.
        """
        base: Any = self.base
        found: Tensor = value[self.weight] * base.log_prob(self.unweighted(value))
        return found

    def sample(self, sample_shape: _size = _NO_AXES) -> Any:
        """Targets with the weight 1.

        Args:
            sample_shape: Leading axes of the draws.
        """
        drawn: Any = self.base.sample(sample_shape)
        parts: dict[Any, Tensor] = drawn.parts if isinstance(drawn, Targets) else {self.target: drawn}
        shape = torch.Size(sample_shape) + self.base.batch_shape
        return Targets({**parts, self.weight: torch.ones(shape, device=drawn.device)})


def observations(distribution: Distribution, y: Target | None) -> Iterator[Observation]:
    """The kinds of observations that a distribution has, one by one.

    Args:
        distribution: The distribution of the observations.
        y: Targets; `None` where they are drawn.
    """
    if isinstance(distribution, WeightedObservations):
        values: Any = y
        weight = None if y is None else values[distribution.weight]
        for part in observations(distribution.base, None if y is None else distribution.unweighted(values)):
            yield replace(part, weight=weight)
    elif isinstance(distribution, JointObservations):
        targets: Any = y
        for name, head in distribution.heads.items():
            yield Observation(name, head, None if y is None else targets[name])
    else:
        single: Any = y
        yield Observation("", distribution, single)


def without_weights(distribution: Distribution, y: Any) -> tuple[Distribution, Any]:
    """The distribution by which targets are predicted and scored, and the targets, without their weights.

    Args:
        distribution: The distribution of the observations.
        y: Targets, or `None`.
    """
    if isinstance(distribution, WeightedObservations):
        return distribution.base, None if y is None else distribution.unweighted(y)
    return distribution, y


def expected_log_prob(distribution: Distribution, value: Target) -> Tensor:
    """The log density of the observations; where the output is given by its moments, the mean over the output.

    Args:
        distribution: The distribution of the observations.
        value: The observations.

    Returns:
        Nats, one value per example.
    """
    return torch.stack([part.log_prob() for part in observations(distribution, value)]).sum(0)

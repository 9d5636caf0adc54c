"""A random activation as an effect: interpretations decide whether it is drawn, replaced by its mean, or by moments."""

from __future__ import annotations

from typing import Any, Protocol

from pyro.poutine.runtime import effectful
from torch import Tensor

from pyrostoch.moments import Moments

__all__ = ["RandomActivation", "random_activation"]


class RandomActivation(Protocol):
    """What a layer of random activations says of itself."""

    def draw(self, x: Tensor) -> Tensor:
        """A draw of the activations for inputs x, fresh for each example."""

    def expected(self, x: Tensor) -> Tensor:
        """Their mean for given inputs."""

    def noise_free(self, x: Tensor) -> Tensor:
        """What they are without noise."""

    def propagate(self, x: Moments) -> Moments:
        """Their moments for inputs known by their moments."""


@effectful(type="activation")
def _activation(x: Any, *, layer: RandomActivation) -> Any:
    return layer.propagate(x) if isinstance(x, Moments) else layer.draw(x)


def random_activation(x: Any, layer: RandomActivation) -> Any:
    """The activations of a layer under the interpretation in force: drawn, unless one says otherwise.

    Args:
        x: Inputs, or their moments.
        layer: The layer.

    Example:
        >>> import torch
        >>> class Coin:
        ...     def draw(self, x): return torch.bernoulli(x)
        ...     def expected(self, x): return x
        ...     def noise_free(self, x): return (x > 0.5).to(x.dtype)
        ...     def propagate(self, x): return x
        >>> from pyrostoch.effects import MeanPropagation
        >>> with MeanPropagation():
        ...     random_activation(torch.tensor([0.3]), Coin())
        tensor([0.3000])
    """
    return _activation(x, layer=layer)

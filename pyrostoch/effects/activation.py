"""Random activations as a Pyro effect: the active interpretation draws them, or returns their mean or moments."""

from __future__ import annotations

from typing import Protocol

from pyro.poutine.runtime import effectful
from torch import Tensor

from pyrostoch.moments import Moments

__all__ = ["RandomActivation", "random_activation"]


class RandomActivation(Protocol):
    """What a layer of random activations must provide."""

    def draw(self, x: Tensor) -> Tensor:
        """A draw of the activations for the inputs `x`, fresh for each example."""

    def expected(self, x: Tensor) -> Tensor:
        """The mean of the activations for the inputs `x`."""

    def noise_free(self, x: Tensor) -> Tensor:
        """The activations without noise."""

    def propagate(self, x: Moments) -> Moments:
        """The moments of the activations for inputs with the moments `x`."""


@effectful(type="activation")
def _activation(x: Tensor | Moments, *, layer: RandomActivation) -> Tensor | Moments:
    return layer.propagate(x) if isinstance(x, Moments) else layer.draw(x)


def random_activation(x: Tensor | Moments, layer: RandomActivation) -> Tensor | Moments:
    """The activations of a layer under the active interpretation; without one, they are drawn.

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

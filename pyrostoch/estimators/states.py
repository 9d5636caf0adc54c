"""Shared by the estimators: the handler that sets the states of a network's neurons, layer by layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from pyrostoch._manual import see
from pyrostoch.layers import KState

__all__ = ["Loss", "States", "check_examples_independent", "checked_loss", "log_probabilities", "values_of"]

#: The loss of each example, (B,), from a network's output, (B, ...).
Loss = Callable[[Tensor], Tensor]


class States(Messenger, ABC):
    """A Pyro handler that sets the states of every layer of neurons; subclasses implement `states`.

    Attributes:
        depth: Number of layers of neurons met so far in the present forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def __enter__(self) -> Self:
        self.depth = 0
        super().__enter__()
        return self

    @abstractmethod
    def states(self, layer: KState, x: Tensor) -> Tensor:
        """The states of a layer, without gradient, in the shape of its input.

        Args:
            layer: The layer.
            x: Its input.
        """

    def _pyro_activation(self, msg: Message) -> None:
        layer = msg["kwargs"]["layer"]
        if not isinstance(layer, KState):
            raise TypeError(
                f"estimators: expected neurons with states (KState or a subclass), but this network has a "
                f"{type(layer).__name__}"
                f"{see('how-to/discrete_networks')}"
            )
        if getattr(layer, "correlation", 0.0):
            raise ValueError(
                f"estimators: the noise of this {type(layer).__name__} is correlated between neurons, so that their "
                "joint probabilities have no closed form; use the straight-through estimator"
            )
        msg["value"] = self.states(layer, msg["args"][0])
        msg["done"] = msg["stop"] = True
        self.depth += 1


def log_probabilities(layer: KState, x: Tensor) -> Tensor:
    """Log probabilities of the k states of each neuron, (B, n, k), with all n neurons on one axis.

    Args:
        layer: The layer.
        x: Its input, (B, ...).
    """
    probabilities = layer.probabilities(x)
    # A state of probability 0 is never drawn; a finite logarithm keeps products with it finite.
    floor = torch.finfo(probabilities.dtype).tiny
    return probabilities.clamp_min(floor).log().reshape(len(x), -1, len(layer.states))


def values_of(layer: KState, index: Tensor, x: Tensor) -> Tensor:
    """The values of states given by index, in the shape and dtype of the layer's input.

    Args:
        layer: The layer.
        index: Indices of states, (..., n).
        x: The layer's input, (B, ...).
    """
    values = torch.tensor(layer.states, dtype=x.dtype, device=x.device)
    return values[index].reshape(-1, *x.shape[1:])


def checked_loss(loss: Loss, count: int) -> Loss:
    """The loss with a check of its shape: a mean over the batch would give a wrong gradient without any error.

    Args:
        loss: Loss of each example.
        count: Number of examples.
    """

    def checked(out: Tensor) -> Tensor:
        losses = loss(out)
        if not isinstance(losses, Tensor) or losses.dim() != 1 or len(losses) != len(out):
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"loss: expected one value per example, of shape ({count},), got {shape}; use reduction='none', and "
                "sum over the further axes of an example"
            )
        return losses

    return checked


def check_examples_independent(net: nn.Module, estimator: str) -> None:
    """Refuse layers that make an example's output depend on other examples, or that are random in another way.

    Args:
        net: The network.
        estimator: Name of the estimator.

    Raises:
        ValueError: A batch normalization or dropout layer is in training mode.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"estimator {estimator!r}: {name!r} is a {type(module).__name__} in training mode, where the output of "
                "an example depends on the others; put it into evaluation mode"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0.0:
            raise ValueError(
                f"estimator {estimator!r}: {name!r} is a {type(module).__name__} in training mode, which draws anew at "
                "every run of the network; put it into evaluation mode"
            )

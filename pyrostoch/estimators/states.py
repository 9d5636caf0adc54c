"""What the estimators share: handlers that decide on the states of a network's neurons, layer by layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrostoch.layers import KState

__all__ = ["Loss", "States", "check_apart", "each_example", "log_probabilities", "values_of"]

#: The loss of each example, (B,), from a network's output, (B, ...).
Loss = Callable[[Tensor], Tensor]


class States(Messenger, ABC):
    """Takes every layer of neurons with states out of a network's hands: a subclass says what they are.

    Attributes:
        depth: How many layers have been met in the pass under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def __enter__(self) -> Any:
        self.depth = 0
        return super().__enter__()

    @abstractmethod
    def states(self, layer: KState, x: Tensor) -> Tensor:
        """The states of a layer, without gradient, in the shape of its input.

        Args:
            layer: The layer.
            x: Its input.
        """

    def _pyro_activation(self, msg: Any) -> None:
        layer = msg["kwargs"]["layer"]
        if not isinstance(layer, KState):
            raise TypeError(
                f"estimators: expected neurons with states (KState and its kinds), and this network has a "
                f"{type(layer).__name__}"
            )
        if getattr(layer, "correlation", 0.0):
            raise ValueError(
                f"estimators: the noise of this {type(layer).__name__} is correlated between neurons, whose joint "
                "probabilities have no closed form; use the straight-through estimator"
            )
        msg["value"] = self.states(layer, msg["args"][0])
        msg["done"] = msg["stop"] = True
        self.depth += 1


def log_probabilities(layer: KState, x: Tensor) -> Tensor:
    """Log probabilities of the states, (B, n, k), neurons in a row.

    Args:
        layer: The layer.
        x: Its input, (B, ...).
    """
    found = layer.probabilities(x)
    # A state of probability 0 is never drawn; its logarithm must not spoil what it is multiplied with.
    return found.clamp_min(torch.finfo(found.dtype).tiny).log().reshape(len(x), -1, len(layer.states))


def values_of(layer: KState, index: Tensor, x: Tensor) -> Tensor:
    """States by their numbers, in the shape and dtype of the input.

    Args:
        layer: The layer.
        index: Numbers of states, (..., n).
        x: The input, (B, ...).
    """
    values = torch.tensor(layer.states, dtype=x.dtype, device=x.device)
    return values[index].reshape(-1, *x.shape[1:])


def each_example(loss: Loss, count: int) -> Loss:
    """The loss, held to one value an example: a mean over the batch would give a wrong gradient, and no error.

    Args:
        loss: Loss of each example.
        count: Number of examples.
    """

    def checked(out: Tensor) -> Tensor:
        found = loss(out)
        if not isinstance(found, Tensor) or found.dim() != 1 or len(found) != len(out):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"loss: expected one value an example, of shape ({count},), got {shape}; use reduction='none', and sum "
                "over what else an example has"
            )
        return found

    return checked


def check_apart(net: nn.Module, estimator: str) -> None:
    """Refuse networks with randomness that these estimators do not know, or in which examples see each other.

    Args:
        net: The network.
        estimator: Name of the estimator.

    Raises:
        ValueError: A batch normalization or a dropout is in training mode.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"estimator {estimator!r}: {name!r} is a {type(module).__name__} in training mode, where examples see "
                "each other; put it into evaluation mode"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0.0:
            raise ValueError(
                f"estimator {estimator!r}: {name!r} is a {type(module).__name__} in training mode, whose draws are "
                "others at every run of the network; put it into evaluation mode"
            )

"""The size of the noise of random activations in a pass, as a Pyro handler."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrostoch.effects.active import active_call

__all__ = ["NoiseSizes"]


class NoiseSizes(Messenger):
    r"""Records the mean of $\log \sigma$ over the activations of each layer whose noise has a scale.

    Attributes:
        by_layer: One number for each call of a layer, in nats.

    Example:
        >>> import torch
        >>> from pyrostoch.effects.network import call_network
        >>> from pyrostoch.layers import StochasticAdditive
        >>> with NoiseSizes() as sizes:
        ...     _ = call_network(StochasticAdditive(3, scale=1.0), {}, (torch.zeros(4, 3),))
        >>> [size.item() for size in sizes.by_layer]
        [0.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_layer: list[Tensor] = []

    def _pyro_activation(self, msg: Any) -> None:
        layer = msg["kwargs"]["layer"]
        if active_call() is not None and hasattr(layer, "log_noise"):  # else a pass that only analyzes the network
            self.by_layer.append(layer.log_noise(msg["args"][0]).mean())

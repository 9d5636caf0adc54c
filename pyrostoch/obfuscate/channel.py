"""The activations that a client draws: their distributions, of which bounds of what it tells are made."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._manual import see
from pyrostoch.effects.active import active_call
from pyrostoch.layers.stochastic import StochasticLayer

__all__ = ["DrawnActivations", "family_of", "is_normal"]


class DrawnActivations(Messenger):
    """Keeps the random activations of a pass up to the cut, or puts others in their place.

    Args:
        given: Activations to put in place of the draws, in the order in which they are drawn.
        any_family: Whether activations without a density for each unit are kept, too, without their distributions.

    Attributes:
        layers: The layers that have drawn.
        inputs: What they have drawn from: the outputs of their kernels.
        distributions: Their distributions q(h | x), in the order of the draws.
        values: The draws.
    """

    def __init__(self, given: list[Tensor] | None = None, *, any_family: bool = False) -> None:
        super().__init__()
        self._given, self._any_family, self._closed = given, any_family, False
        self.layers: list[StochasticLayer] = []
        self.inputs: list[Any] = []
        self.distributions: list[Distribution] = []
        self.values: list[Tensor] = []

    def close(self) -> None:
        """Take no notice of what is drawn from now on, behind the cut; of an analysis there is nothing to keep."""
        self._closed = active_call() is not None

    def _pyro_activation(self, msg: Any) -> None:
        if self._closed or active_call() is None:
            return
        layer, x = msg["kwargs"]["layer"], msg["args"][0]
        if getattr(x, "absent", None) is not None and not self._any_family:
            raise ValueError(
                "audit: some activations are absent, as where a background is left out, and which ones they are may "
                f"tell of the input, too; there is no bound, give bounds=False{see('how-to/audit_a_layer')}"
            )
        if self._any_family:
            self.layers.append(layer)
            self.inputs.append(x)
            return
        if not isinstance(layer, StochasticLayer) or layer.family.event or layer.gradient == "relaxed":
            kind = type(family_of(layer)).__name__ if isinstance(layer, StochasticLayer) else type(layer).__name__
            relaxed = "relaxed " if isinstance(layer, StochasticLayer) and layer.gradient == "relaxed" else ""
            raise ValueError(
                f"audit: there is no bound for {relaxed}activations of {kind}, which have no density for each unit; "
                f"give bounds=False{see('how-to/audit_a_layer')}"
            )
        self.layers.append(layer)
        self.distributions.append(layer._distribution(x))
        if self._given is not None:
            msg["value"], msg["done"] = self._given[len(self.layers) - 1].clone(), True

    def _pyro_post_activation(self, msg: Any) -> None:
        if not self._closed and active_call() is not None:
            self.values.append(msg["value"].clone())  # the network may write into it

    def log_densities(self) -> list[Tensor]:
        """The log density q(h | x) of each draw, summed over units, (batch,)."""
        pairs = zip(self.distributions, self.values, strict=True)
        found = [q.log_prob(h.to(_mean_dtype(q))).double() for q, h in pairs]
        return [density.reshape(len(density), -1).sum(1) for density in found]


def family_of(layer: StochasticLayer) -> Any:
    """The distribution of a layer's activations, whatever the factor of its noise is.

    Args:
        layer: The layer.
    """
    return getattr(layer.family, "family", layer.family)


def is_normal(distribution: Distribution) -> bool:
    """Whether a distribution has independent normal entries, and is no mixture of such.

    Args:
        distribution: The distribution.
    """
    return type(distribution) in (torch.distributions.Normal, pyro.distributions.Normal)


def _mean_dtype(distribution: Any) -> torch.dtype:
    found: torch.dtype = distribution.mean.dtype
    return found

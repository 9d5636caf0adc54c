"""Random activations as a Pyro effect: the active interpretation draws them, or returns their mean or moments."""

from __future__ import annotations

from typing import Any, Protocol

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pyrostoch._manual import see
from pyrostoch.effects.active import active_call, inside_network
from pyrostoch.moments import Moments

__all__ = [
    "ActivationInput",
    "ExpectedActivations",
    "InvalidParametersError",
    "RandomActivation",
    "carries_moments",
    "random_activation",
    "wants_site",
]

#: What a random activation depends on: a tensor, or several, such as the outputs of kernels; or their moments.
ActivationInput = Tensor | Moments | tuple[Any, ...]


class RandomActivation(Protocol):
    """What a layer of random activations must provide. `x` is what it gives to `random_activation`."""

    def draw(self, x: Any) -> Tensor:
        """A draw of the activations for the inputs `x`, fresh for each example."""

    def expected(self, x: Any) -> Tensor:
        """The mean of the activations for the inputs `x`."""

    def noise_free(self, x: Any) -> Tensor:
        """The activations without noise."""

    def propagate(self, x: Any) -> Moments:
        """The moments of the activations for inputs with the moments `x`."""


class InvalidParametersError(ValueError):
    """Parameters of an activation's distribution are out of range.

    Args:
        layer: The layer.
        message: What is wrong.

    Example:
        >>> layer = nn.Identity()
        >>> InvalidParametersError(layer, "the scale is 0").named(nn.Sequential(layer))
        ValueError("layer '0': the scale is 0")
    """

    def __init__(self, layer: object, message: str) -> None:
        super().__init__(message)
        self.layer = layer

    def named(self, net: nn.Module) -> ValueError:
        """The same error with the name of the layer.

        Args:
            net: The network that it is in.
        """
        names = {id(module): name for name, module in net.named_modules()}
        return ValueError(f"layer {(names.get(id(self.layer)) or type(self.layer).__name__)!r}: {self}")


class Sites(Protocol):
    """Makes Pyro sites of random activations: see `effects.activation_sites`."""

    def sample(self, layer: Any, x: Any) -> Tensor:
        """The activation as a Pyro site."""


def carries_moments(x: ActivationInput) -> bool:
    """Whether what an activation depends on is given by its moments.

    Args:
        x: A tensor or moments, or several.
    """
    return any(isinstance(part, Moments) for part in (x if isinstance(x, tuple) else (x,)))


def wants_site(layer: object) -> bool:
    """Whether a layer's activation must be a Pyro site: it has a prior, or its gradient needs its log density.

    Args:
        layer: The layer.
    """
    return getattr(layer, "prior", None) is not None or getattr(layer, "gradient", None) == "score"


@effectful(type="activation")
def _activation(x: ActivationInput, *, layer: RandomActivation, sites: Sites | None = None) -> Tensor | Moments:
    if carries_moments(x):
        return layer.propagate(x)
    if sites is None and wants_site(layer):
        _check_no_term_is_lost(layer)
    return layer.draw(x) if sites is None else sites.sample(layer, x)


class ExpectedActivations(Messenger):
    """Replaces random activations by their means where they have one, and nothing else.

    Example:
        >>> from pyrostoch.layers import Binary
        >>> with ExpectedActivations():
        ...     Binary()(torch.zeros(1, 2))
        tensor([[0., 0.]])
    """

    def _pyro_activation(self, msg: Any) -> None:
        if msg["done"]:
            return
        try:
            mean = msg["kwargs"]["layer"].expected(msg["args"][0])
        except (NotImplementedError, ValueError):  # raised by distributions without a mean
            return
        if not bool(torch.isnan(mean).any()):
            msg["value"], msg["done"] = mean, True


def _check_no_term_is_lost(layer: object) -> None:
    """Raise an error where a prior's rate, or a gradient, would be lost, since no `BayesianModel` calls the network."""
    name = type(layer).__name__
    in_model = active_call() is not None or (_is_traced() and not inside_network())
    if in_model and getattr(layer, "prior", None) is not None:
        raise ValueError(
            f"{name}: its activations have a prior, but the network is not called by a BayesianModel, so their rate "
            f"would be missing in the ELBO; use BayesianModel, or prior=None{see('how-to/stochastic_layers')}"
        )
    if getattr(layer, "gradient", None) == "score" and torch.is_grad_enabled() and not _is_analysis():
        raise ValueError(
            f"{name}: gradient='score' has no gradient outside of the ELBO of a BayesianModel, since the draws are not "
            "differentiable; call it under torch.no_grad(), or choose another gradient"
            f"{see('how-to/stochastic_layers')}"
        )


def _is_traced() -> bool:
    """Whether a Pyro program is being recorded, such as a model of somebody's own."""
    return any(isinstance(handler, TraceMessenger) for handler in _PYRO_STACK)


def _is_analysis() -> bool:
    return inside_network() and active_call() is None


def random_activation(x: ActivationInput, layer: RandomActivation) -> Tensor | Moments:
    """The activations of a layer under the active interpretation; without one, they are drawn.

    Args:
        x: What they depend on: inputs, or several tensors such as parameters of their distribution; or their moments.
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
    if torch.compiler.is_exporting():
        # Pyro's validation reads values, which a program that is exported does not have yet.
        with pyro.validation_enabled(False):
            return _activation(x, layer=layer)
    return _activation(x, layer=layer)

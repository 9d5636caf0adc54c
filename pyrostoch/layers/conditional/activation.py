"""The random activation of a conditional layer: of the class of each example, or of several classes together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyrostoch._checks import check_choice
from pyrostoch._precision import at_least_single
from pyrostoch.layers.activations import ActivationDistribution, Gradient
from pyrostoch.layers.conditional.combine import Combination, Combined, mixture_gradients
from pyrostoch.layers.partial import Partial
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.moments import Moments
from pyrostoch.moments.gaussian import per_example
from pyrostoch.moments.table import refuse

__all__ = ["ConditionalActivation", "is_traced"]


def is_traced() -> bool:
    """Whether a program is being traced, in which values of tensors cannot be read."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


class _Selected(Partial):
    """The kernels' outputs of several classes, (batch, classes, ...), and the number of each class."""


class ConditionalActivation(StochasticLayer):
    """What a `Conditional` layer draws; it has the distribution and the prior of the layers of its classes.

    Args:
        layer: The stochastic layer of one class, whose prior becomes that of all.
        combine: How several classes become one distribution.
        gradient: How draws from a mixture are differentiated.

    Raises:
        ValueError: The distribution cannot be combined like this, or has no such gradient.

    Example:
        >>> from pyrostoch.layers import StochasticLinear
        >>> activation = ConditionalActivation(StochasticLinear(3, 2), "shared", None)
        >>> one, quarter = torch.ones(5, 4, 2), torch.full((5, 4, 2), 0.25)
        >>> outputs = activation.selected((one, one), quarter)
        >>> activation.posterior(outputs).mean.shape
        torch.Size([5, 2])
    """

    def __init__(self, layer: StochasticLayer, combine: Combination, gradient: Gradient | None) -> None:
        nn.Module.__init__(self)
        family = layer._family
        self.combine: Combination = combine
        self._channel_axis = layer.channel_axis
        self._set_distribution(family, layer.prior, None, layer.temperature, layer.channels)
        allowed = mixture_gradients(family) if combine.startswith("mixture") else family.gradients
        default = layer.gradient if layer.gradient in allowed else allowed[0]
        if combine.startswith("mixture") and layer.prior is not None:
            default = "score"  # the only one that differentiates the estimate of the rate
        self.noise_factor = layer.noise_factor
        self.gradient = check_choice("Conditional gradient", gradient or default, list(allowed))  # type: ignore[assignment]
        self._keep_costs()

    @property
    def _title(self) -> str:
        return "Conditional"

    @property
    def channel_axis(self) -> int:
        """The axis of the activations that counts channels, or features."""
        return self._channel_axis

    def family_of(self, x: tuple[Tensor, ...]) -> ActivationDistribution:
        """The distribution of the activations of one class, or of several together.

        Args:
            x: The kernels' outputs.
        """
        return Combined(self.family, self.combine) if isinstance(x, _Selected) else self.family

    def selected(self, outputs: tuple[Tensor, ...], weights: Tensor, absent: Tensor | None = None) -> tuple[Any, ...]:
        """What the activations depend on, for several classes.

        Args:
            outputs: The kernels' outputs, (batch, classes, ...).
            weights: The number of each class, in the same shape.
            absent: Positions of padding, the first axes of the activations.
        """
        found = _Selected((*outputs, weights))
        nowhere = (weights == 0).all(1)
        if absent is not None:
            nowhere = nowhere | absent.reshape(*absent.shape, *(1,) * (nowhere.dim() - absent.dim()))
        elif not is_traced() and not bool(nowhere.any()):  # a program that is traced keeps what may happen later
            return found
        found.absent = nowhere.all(self.channels) if self.family.event else nowhere
        return found

    def propagate(self, x: tuple[Moments, ...]) -> Moments:
        """The moments of the activations: exact for known parameters of several classes; see `StochasticLayer`.

        Args:
            x: The moments of the kernels' outputs.
        """
        if not isinstance(x, _Selected):
            return super().propagate(x)
        if self.family.event or self.combine == "mixture-by-example":
            refuse(type(self).forward, "the entries of an activation depend on each other")
        if any(bool((part.var != 0).any()) for part in x):
            refuse(type(self).forward, "the kernels' outputs of several classes, or their numbers, are random")
        known = _Selected(part.loc for part in x)
        known.absent = x.absent
        distribution: Any = self._distribution(known)
        mean = Moments.certain(self.restored(distribution.mean, known), x[0].settings)
        var = self.restored(distribution.variance, known)
        cov = None if mean.cov is None else torch.diag_embed(per_example(var))
        return Moments(mean.loc, var, cov, mean.settings, mean.links)

    def _gradient_of(self, family: ActivationDistribution) -> Gradient:
        """The layer's gradient; that of one class, where only mixtures have it."""
        known = self.gradient == "score" or self.gradient in family.gradients
        return self.gradient if known else family.gradients[0]

    def _arranged(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs in at least single precision, with the classes where `Combined` expects them."""
        if not isinstance(outputs, _Selected):
            return super()._arranged(outputs)
        precise = [at_least_single(output) for output in outputs]
        channels = self.channels + 1 if self.channels >= 0 else self.channels
        if self.family.event:
            precise = [output.movedim(channels, -1) for output in precise]
            precise[-1] = precise[-1][..., 0]
        if self.combine != "mixture":
            return tuple(precise)
        last = [-2 if self.family.event else -1] * (len(precise) - 1) + [-1]
        return tuple(output.movedim(1, axis) for output, axis in zip(precise, last, strict=True))

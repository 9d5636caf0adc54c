"""What a distribution of activations is: how the outputs of a layer's kernels become its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["ActivationDistribution", "Gradient", "Link", "identity"]

#: How draws are differentiated.
Gradient = Literal["reparameterized", "relaxed", "straight-through", "score"]
#: A map from a kernel's output to values that a parameter may take.
Link = Callable[[Tensor], Tensor]


class ActivationDistribution(ABC):
    r"""A family of distributions of an activation: $h \sim p(h; \theta_1, \ldots)$ with $\theta_i = l_i(k_i(x))$.

    The link $l_i$ maps the output of the kernel $k_i$ to values that the parameter may take. Outputs have the shape of
    the activations, `(batch, ...)`.

    Attributes:
        gradients: How its draws can be differentiated, the default first: `"reparameterized"`, `"relaxed"` (a
            continuous value in place of a discrete one), `"straight-through"` (the derivative of the mean), `"score"`
            (the score function, which the ELBO adds).
        event: Whether the entries along the channels belong together, as the probabilities of classes do.
        noise: The parameter that sets the size of the noise: a scale, or logits, which are those of a choice under
            noise of scale 1; `None` where there is no such parameter.

    Example:
        >>> import torch
        >>> from pyrostoch.layers.activations import Gaussian
        >>> Gaussian().distribution((torch.zeros(2), torch.zeros(2))).stddev
        tensor([0.6931, 0.6931])
    """

    gradients: ClassVar[tuple[Gradient, ...]] = ("reparameterized",)
    event: ClassVar[bool] = False
    noise: ClassVar[Literal["scale", "logits"] | None] = None

    @property
    @abstractmethod
    def links(self) -> dict[str, Link]:
        """The link of each parameter, by its name; there is one kernel for each."""

    @property
    def standard(self) -> tuple[float, ...]:
        """The kernels' outputs at which the distribution is the standard one of its family."""
        return (0.0,) * len(self.links)

    @abstractmethod
    def make(self, *parameters: Tensor) -> Distribution:
        """The distribution of every entry, or of every position where entries belong together (on the last axis).

        Args:
            *parameters: The parameters, in the order of `links`.
        """

    @abstractmethod
    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The activation without noise.

        Args:
            *parameters: The parameters, in the order of `links`.
        """

    def relaxed(self, temperature: float, *parameters: Tensor) -> Tensor:
        """A continuous draw in place of a discrete one.

        Args:
            temperature: Its temperature; lower is nearer to discrete values.
            *parameters: The parameters, in the order of `links`.
        """
        raise TypeError(
            f"{type(self).__name__} must implement relaxed(temperature, ...), since it names it in gradients"
        )

    def parameters(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The parameters for the kernels' outputs.

        Args:
            outputs: One output for each parameter.
        """
        return tuple(link(output) for link, output in zip(self.links.values(), outputs, strict=True))

    def distribution(self, outputs: tuple[Tensor, ...]) -> Distribution:
        """The distribution for the kernels' outputs.

        Args:
            outputs: One output for each parameter.
        """
        return self.make(*self.parameters(outputs))

    def draw(self, outputs: tuple[Tensor, ...], gradient: Gradient, temperature: float = 0.5) -> Tensor:
        """A draw of the activations.

        Args:
            outputs: The outputs of the kernels.
            gradient: How it is differentiated, one of `gradients`. A relaxed value takes the place of a discrete one
                only where gradients are computed.
            temperature: The temperature of `"relaxed"`.
        """
        parameters = self.parameters(outputs)
        if gradient == "relaxed" and torch.is_grad_enabled():
            return self.relaxed(temperature, *parameters)
        distribution = self.make(*parameters)
        if gradient == "reparameterized":
            return distribution.rsample()
        drawn = self.sample(distribution)
        if gradient == "straight-through":
            return drawn + (distribution.mean - distribution.mean.detach())
        return drawn

    def sample(self, distribution: Distribution) -> Tensor:
        """A draw without a gradient.

        Args:
            distribution: The distribution, as `make` returns it.
        """
        return distribution.sample()


def identity(value: Tensor) -> Tensor:
    """The link of a parameter that takes any value."""
    return value

r"""How the distributions of several classes become one.

With numbers $w_c$, the mean $\mu$ of the activation, and mean $\mu_c$ and standard deviation $\sigma_c$ of each class:

| name | activation | mean | variance |
| --- | --- | --- | --- |
| `"shared"` | $\sum_c w_c (\mu_c + \sigma_c \varepsilon)$ | $\sum_c w_c \mu_c$ | $(\sum_c w_c \sigma_c)^2$ |
| `"independent"` | $\sum_c w_c (\mu_c + \sigma_c \varepsilon_c)$ | $\sum_c w_c \mu_c$ | $\sum_c w_c^2 \sigma_c^2$ |
| `"mixture"` | that of a class drawn for each entry | the same | $\sum_c w_c (\sigma_c^2 + \mu_c^2) - \mu^2$ |
| `"mixture-by-example"` | that of a class drawn for each example | the same | the same, by entry |
"""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._manual import see
from pyrostoch.layers.activations import ActivationDistribution, Gaussian, Gradient, Laplace, StudentT
from pyrostoch.layers.activations.base import Link, identity
from pyrostoch.layers.activations.noisier import Noisier

__all__ = ["COMBINATIONS", "Combination", "Combined"]

#: How the distributions of several classes become one.
Combination = Literal["shared", "independent", "mixture", "mixture-by-example"]
COMBINATIONS = ("shared", "independent", "mixture", "mixture-by-example")


class Combined(ActivationDistribution):
    """The distribution of an activation from those of several classes, whose axis is the second one of the outputs.

    The last output is the number of each class. For `"mixture"` the classes are on the last axis, or on that before
    entries that belong together.

    Args:
        family: The distribution of the activation for one class.
        how: How they are combined.

    Raises:
        ValueError: Sums of draws have no distribution of the family: only those of Gaussian activations have, and with
            shared noise also those of Laplace and Student's t.

    Example:
        >>> outputs = torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2), torch.full((1, 2), 0.5)
        >>> for how in ("shared", "independent", "mixture"):
        ...     print(how, f"{Combined(Gaussian('exp'), how).distribution(outputs).variance.item():.2f}")
        shared 1.00
        independent 0.50
        mixture 2.00
    """

    def __init__(self, family: ActivationDistribution, how: Combination) -> None:
        own = family.family if isinstance(family, Noisier) else family
        kinds: tuple[type, ...] = (Gaussian,) if how == "independent" else (Gaussian, Laplace, StudentT)
        self.is_mixture = how.startswith("mixture")
        if not self.is_mixture and not isinstance(own, kinds):
            raise ValueError(
                f"combine={how!r}: a weighted sum of {type(own).__name__} activations of several classes is none; use "
                f"combine='mixture', or {' or '.join(kind.__name__ for kind in kinds)} activations"
                f"{see('how-to/conditional_layers')}"
            )
        self.family, self.how = family, how
        self.event = family.event  # type: ignore[misc]
        self.noise = family.noise  # type: ignore[misc]
        self.gradients = mixture_gradients(family) if self.is_mixture else family.gradients  # type: ignore[misc]

    @property
    def links(self) -> dict[str, Link]:
        """Those of the family, and of the numbers of the classes."""
        return {**self.family.links, "weight": identity}

    @property
    def standard(self) -> tuple[float, ...]:
        """Those of the family, and 1."""
        return (*self.family.standard, 1.0)

    def make(self, *parameters: Tensor) -> Distribution:
        """The distribution of every entry, or of every example for `"mixture-by-example"`.

        Args:
            *parameters: Those of the family by class, and the numbers of the classes.
        """
        *own, weights = parameters
        if self.is_mixture:
            return dist.MixtureSameFamily(self._classes(weights), self._parts(own))
        loc, scale = own
        if self.how == "shared":
            combined = (weights * scale).sum(1)
        else:
            # The root has no derivative at 0, which a class that is not there would reach.
            square = (weights * scale).square().sum(1)
            combined = torch.where(square > 0, square, 1.0).sqrt()
        present = (weights != 0).any(1)
        return self.family.make((weights * loc).sum(1), torch.where(present, combined, 1.0))

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The sum without noise; for mixtures, that of the class with the largest number.

        Args:
            *parameters: Those of the family by class, and the numbers of the classes.
        """
        *own, weights = parameters
        values = self.family.noise_free(*own)
        if not self.is_mixture:
            return (weights * values).sum(1)
        axis = self._axis(weights)
        chosen = _one_of(weights.argmax(axis, keepdim=True), weights, axis)
        return (self._like(chosen, values) * values).sum(axis)

    def draw(self, outputs: tuple[Tensor, ...], gradient: Gradient, temperature: float = 0.5) -> Tensor:
        """A draw of the activations.

        Args:
            outputs: The outputs of the kernels by class, and the numbers of the classes.
            gradient: How it is differentiated. In a mixture the class is drawn, and `"straight-through"` or
                `"relaxed"` is the gradient of that draw; the activation is reparameterized where it can be.
            temperature: The temperature of `"relaxed"`.
        """
        if not self.is_mixture:
            return super().draw(outputs, gradient, temperature)
        *own, weights = self.parameters(outputs)
        parts, classes = self.family.make(*own), self._classes(weights)
        if gradient == "score":
            with torch.no_grad():
                values = self.family.sample(parts)
        elif parts.has_rsample:
            values = parts.rsample()
        else:
            values = self.family.sample(parts) + (parts.mean - parts.mean.detach())
        log_probs = classes.logits
        if gradient == "relaxed" and torch.is_grad_enabled():
            noise = -torch.empty_like(log_probs).exponential_().log()
            chosen = ((log_probs + noise) / temperature).softmax(-1)
        else:
            chosen = _one_of(classes.sample()[..., None], log_probs, -1)
            if gradient == "straight-through":
                chosen = chosen + (classes.probs - classes.probs.detach())
        axis = self._axis(weights)
        return (self._like(chosen, values) * values).sum(axis)

    def _classes(self, weights: Tensor) -> Any:
        """The distribution of the class; where there is none, it does not matter."""
        by_example = self.how == "mixture-by-example"
        weights = weights.flatten(2)[..., 0] if by_example and weights.dim() > 2 else weights
        present = (weights != 0).any(-1, keepdim=True)
        return dist.Categorical(probs=torch.where(present, weights, 1.0))

    def _parts(self, own: list[Tensor]) -> Any:
        """The distributions by class, with those axes as batch axes that the distribution of the class has."""
        parts: Any = self.family.make(*own)
        return parts.to_event(len(parts.batch_shape) - 2) if self.how == "mixture-by-example" else parts

    def _axis(self, weights: Tensor) -> int:
        """The axis of the classes in the values, which have one more axis where entries belong together."""
        if self.how == "mixture-by-example":
            return 1
        return weights.dim() - 1

    def _like(self, chosen: Tensor, values: Tensor) -> Tensor:
        """Numbers of classes with axes of size 1 for those that only the values have."""
        return chosen.reshape(*chosen.shape, *(1,) * (values.dim() - chosen.dim()))


def _one_of(index: Tensor, like: Tensor, axis: int) -> Tensor:
    """1 at an index along an axis, else 0; torch's `one_hot` would read values."""
    return torch.zeros_like(like).scatter_(axis, index, 1.0)


def mixture_gradients(family: ActivationDistribution) -> tuple[Gradient, ...]:
    """How draws from a mixture can be differentiated.

    Args:
        family: The distribution of the activation for one class.
    """
    reparameterized = "reparameterized" in family.gradients
    return ("straight-through", "relaxed", "score") if reparameterized else ("straight-through", "score")

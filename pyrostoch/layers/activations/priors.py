"""Priors p(h) of activations: standard, fixed, learned, or a mixture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_choice, check_count
from pyrostoch._manual import see
from pyrostoch.layers.activations.base import ActivationDistribution
from pyrostoch.priors.base import HoldsDistribution, LearnedPrior

__all__ = ["ActivationPrior", "Learned", "Mixture", "PriorOfActivations", "as_activation_prior"]


class ActivationPrior(LearnedPrior, ABC):
    """Base class of priors of activations: a distribution p(h) that does not depend on the input.

    Example:
        >>> class Heavy(ActivationPrior):
        ...     def forward(self, posterior):
        ...         shape = posterior.batch_shape + posterior.event_shape
        ...         return dist.Cauchy(0.0, 1.0).expand(shape).to_event(len(shape) - 1)
        >>> Heavy()(dist.Normal(torch.zeros(5, 3), 1.0).to_event(1)).event_shape
        torch.Size([3])
    """

    @abstractmethod
    def forward(self, posterior: Distribution) -> Distribution:
        """The prior, with the batch shape and the event shape of the posterior.

        Args:
            posterior: q(h | x), of which only shapes and dtype are to be used; its batch axis counts the examples.
        """

    def bind(self, family: ActivationDistribution) -> None:
        """Take note of the family of the layer's activations.

        Args:
            family: The family.
        """


class _FromFamily(ActivationPrior):
    """A prior from the family of the activations; `outputs` takes the place of the kernels' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.family: ActivationDistribution | None = None

    def bind(self, family: ActivationDistribution) -> None:
        if self.family is not None and self.family != family:
            raise ValueError(
                f"{type(self).__name__}: it is the prior of {self.family} activations already, and cannot be that of "
                f"{family} ones; make another{see('how-to/stochastic_layers')}"
            )
        self.family = family

    def _given_family(self) -> ActivationDistribution:
        if self.family is None:
            raise ValueError(f"{type(self).__name__}: it has no family yet; give it to a stochastic layer as prior=")
        return self.family


class Standard(_FromFamily):
    """The standard distribution of the activations' family, such as N(0, 1) or the fair coin."""

    def forward(self, posterior: Distribution) -> Distribution:
        family = self._given_family()
        like: Tensor = posterior.mean
        outputs = tuple(torch.full((), value, dtype=like.dtype, device=like.device) for value in family.standard)
        return _in_shape(family.distribution(tuple(output.expand(like.shape) for output in outputs)))


class Fixed(HoldsDistribution, ActivationPrior):
    """A given Pyro distribution, broadcast over the activations."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.base = distribution

    def forward(self, posterior: Distribution) -> Distribution:
        own, example = self.base.batch_shape, posterior.event_shape
        example = example[: len(example) - len(self.base.event_shape)]
        if len(own) > len(example) or not _broadcasts(own, example):
            raise _wrong_shape(type(self.base).__name__, tuple(own), posterior)
        return _in_shape(self.base.expand(example).expand(posterior.batch_shape + example))


class Learned(_FromFamily):
    r"""A prior from the activations' family whose parameters are learned: $p(h) = p(h; \theta)$, started as standard.

    Args:
        shape: Shape of the parameters; it broadcasts against an example's activations, such as `(channels, 1, 1)` for
            images. Channels are last for categorical and multinomial activations.

    Example:
        >>> from pyrostoch.layers import StochasticLinear
        >>> layer = StochasticLinear(3, 2, prior=Learned((2,)))
        >>> sorted(name for name, _ in layer.prior.named_parameters())
        ['outputs.0', 'outputs.1']

    References:
        Alemi, Fischer, Dillon, Murphy, "Deep variational information bottleneck", 2017.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.outputs = nn.ParameterList()

    def bind(self, family: ActivationDistribution) -> None:
        """Make the parameters for a family.

        Args:
            family: The family of the layer's activations.
        """
        known = self.family is not None
        super().bind(family)
        if not known:
            self.outputs.extend(nn.Parameter(torch.full(self.shape, value)) for value in family.standard)

    def forward(self, posterior: Distribution) -> Distribution:
        """The prior, with the batch shape and the event shape of the posterior.

        Args:
            posterior: q(h | x).

        Raises:
            ValueError: The shape does not broadcast against the activations.
        """
        family = self._given_family()
        shape = posterior.batch_shape + posterior.event_shape
        if len(self.shape) > len(posterior.event_shape) or not _broadcasts(self.shape, posterior.event_shape):
            raise _wrong_shape("Learned", self.shape, posterior)
        outputs = tuple(output.expand(shape) for output in self.outputs)
        return _in_shape(family.distribution(outputs))

    def extra_repr(self) -> str:
        """The shape."""
        return f"shape={self.shape}"


class Mixture(_FromFamily):
    r"""A learned mixture over an example's activations as a whole: $p(h) = \sum_k \pi_k \prod_i p(h_i; \theta_{ki})$.

    Its rate has no closed form, and is estimated from the draw.

    Args:
        components: Number of components.
        shape: Shape of an example's activations; channels are last for categorical and multinomial activations.

    Example:
        >>> from pyrostoch.layers import StochasticLinear
        >>> layer = StochasticLinear(3, 2, prior=Mixture(4, (2,)))
        >>> layer.prior.logits.shape
        torch.Size([4])

    References:
        Tomczak, Welling, "VAE with a VampPrior", 2018, for mixtures as priors.
    """

    def __init__(self, components: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.components, self.shape = check_count("Mixture components", components), tuple(shape)
        self.logits = nn.Parameter(torch.zeros(components))
        self.outputs = nn.ParameterList()

    def bind(self, family: ActivationDistribution) -> None:
        """Make the parameters for a family; components start at random places.

        Args:
            family: The family of the layer's activations.
        """
        known = self.family is not None
        super().bind(family)
        if known:
            return
        for index, value in enumerate(family.standard):
            start = torch.full((self.components, *self.shape), value)
            self.outputs.append(nn.Parameter(start + torch.randn_like(start) if index == 0 else start))

    def forward(self, posterior: Distribution) -> Distribution:
        """The prior, with the batch shape and the event shape of the posterior.

        Args:
            posterior: q(h | x).

        Raises:
            ValueError: The shape is not that of an example's activations.
        """
        if tuple(posterior.event_shape) != self.shape:
            raise ValueError(
                f"Mixture: expected activations of shape {self.shape} for each example, got "
                f"{tuple(posterior.event_shape)}{see('how-to/stochastic_layers')}"
            )
        parts: Any = self._given_family().distribution(tuple(self.outputs))
        parts = parts.to_event(len(parts.batch_shape) - 1)
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts)
        return mixture.expand(posterior.batch_shape)

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.components}, shape={self.shape}"


#: What a user may give as the prior of activations.
PriorOfActivations = ActivationPrior | Distribution | Literal["standard", "learned"] | None


def as_activation_prior(
    spec: PriorOfActivations, family: ActivationDistribution, shape: tuple[int, ...] | None, layer: str
) -> ActivationPrior | None:
    """Convert what a user may give as the prior of activations.

    Args:
        spec: What was given.
        family: The family of the activations.
        shape: The shape of the parameters of a learned prior, one for each channel; `None` where it is not known.
        layer: Name of the layer's class, for messages.

    Raises:
        ValueError: The name is unknown, or the shape of a learned prior is not known.
        TypeError: It is something else.
    """
    prior: ActivationPrior
    if spec is None:
        return None
    if isinstance(spec, str):
        check_choice(f"{layer} prior", spec, ["standard", "learned"])
        if spec == "learned" and shape is None:
            raise ValueError(
                f"{layer} prior: 'learned' needs the shape of its parameters here: give "
                "prior=layers.activations.Learned(shape)"
                f"{see('how-to/stochastic_layers')}"
            )
        prior = Standard() if shape is None or spec == "standard" else Learned(shape)
    elif isinstance(spec, ActivationPrior):
        prior = spec
    elif isinstance(spec, Distribution) and hasattr(spec, "to_event"):
        trials, own = getattr(spec, "total_count", None), getattr(family, "n", None)
        if trials is not None and own is not None and bool((torch.as_tensor(trials) != own).any()):
            raise ValueError(
                f"{layer} prior: expected as many trials as the activations, {own}, got {trials}"
                f"{see('how-to/stochastic_layers')}"
            )
        prior = Fixed(spec)
    else:
        raise TypeError(
            f"{layer} prior: expected None, 'standard', 'learned', a Pyro distribution, or an ActivationPrior such as "
            f"layers.activations.Mixture, got {spec!r}; priors of pyrostoch.priors are those of weights"
            f"{see('how-to/stochastic_layers')}"
        )
    prior.bind(family)
    return prior


def _in_shape(distribution: Any) -> Distribution:
    """All axes but the first as event axes."""
    event: Distribution = distribution.to_event(len(distribution.batch_shape) - 1)
    return event


def _broadcasts(own: tuple[int, ...], example: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to that of an example; never over the batch, where priors would differ by example."""
    return all(size in (1, wanted) for size, wanted in zip(reversed(own), reversed(example), strict=False))


def _wrong_shape(name: str, own: tuple[int, ...], posterior: Distribution) -> ValueError:
    return ValueError(
        f"{name}: expected a shape that broadcasts against an example's activations {tuple(posterior.event_shape)}, "
        f"got {own}; give one number for each channel, such as (channels, 1, 1){see('how-to/stochastic_layers')}"
    )

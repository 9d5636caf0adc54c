"""A distribution of activations with more or less noise than it was trained with."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._manual import see
from pyrostoch.layers.activations.base import ActivationDistribution, Link

__all__ = ["Noisier"]


class Noisier(ActivationDistribution):
    r"""A family whose noise is scaled: scales times a factor, or logits divided by it.

    Logits are those of a choice under Gumbel or logistic noise of scale 1, so that dividing them by c is the same
    choice under c times the noise.

    Args:
        family: The family.
        factor: The factor.

    Raises:
        ValueError: The family has no parameter of this kind.

    Example:
        >>> import torch
        >>> from pyrostoch.layers.activations import Gaussian
        >>> Noisier(Gaussian("exp"), 2.0).distribution((torch.zeros(1), torch.zeros(1))).stddev
        tensor([2.])
    """

    def __init__(self, family: ActivationDistribution, factor: float) -> None:
        if family.noise is None:
            raise ValueError(
                f"noise_factor: {type(family).__name__} activations have no parameter that sets the size of their "
                f"noise, so that it cannot be scaled{see('how-to/stochastic_layers')}"
            )
        self.family, self.factor = family, factor
        self.gradients = family.gradients  # type: ignore[misc]  # those of the family
        self.event = family.event  # type: ignore[misc]
        self.noise = family.noise  # type: ignore[misc]

    @property
    def links(self) -> dict[str, Link]:
        """Those of the family, with that of the noise scaled."""
        links = self.family.links
        name = str(self.family.noise)
        link, factor = links[name], self.factor if name == "scale" else 1.0 / self.factor
        return {**links, name: lambda output: factor * link(output)}

    @property
    def standard(self) -> tuple[float, ...]:
        """Those of the family."""
        return self.family.standard

    def make(self, *parameters: Tensor) -> Distribution:
        """The family's distribution."""
        return self.family.make(*parameters)

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """The family's activation without noise."""
        return self.family.noise_free(*parameters)

    def relaxed(self, temperature: float, *parameters: Tensor) -> Tensor:
        """The family's relaxed draw."""
        return self.family.relaxed(temperature, *parameters)

    def sample(self, distribution: Distribution) -> Tensor:
        """The family's draw without a gradient."""
        return self.family.sample(distribution)

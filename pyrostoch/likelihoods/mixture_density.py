"""Likelihood of real targets with several modes: a mixture of Gaussians whose parameters the network gives."""

from __future__ import annotations

from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch.likelihoods.base import Likelihood, positive

__all__ = ["GaussianMixture"]


class GaussianMixture(Likelihood):
    r"""Real targets from one of K Gaussians, whose probabilities, means and scales depend on the input.

    $$ p(y \mid x) = \sum_k \pi_k(x)\, N(y;\, \mu_k(x), \mathrm{diag}\,\sigma_k(x)^2). $$

    For targets `(batch, d)` the network's output `(batch, K (1 + 2 d))` holds K logits, then K times d means, then K
    times d raw scales, whose softplus is the standard deviation. The d entries of a target are of the same Gaussian.

    Args:
        components: Number K of Gaussians.
        output: Which part of the network's output it reads; see `Likelihood`.

    Example:
        >>> import torch
        >>> GaussianMixture(2)(torch.zeros(5, 6)).event_shape
        torch.Size([1])

    References:
        Bishop, "Mixture density networks", 1994.
    """

    def __init__(self, components: int, *, output: str | int | None = None) -> None:
        super().__init__(output=output)
        self.components = check_count("likelihood GaussianMixture components", components)

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """The mixture for each example."""
        width, rest = divmod(output.shape[-1] - self.components, 2 * self.components)
        if output.dim() != 2 or rest or width < 1:
            raise ValueError(
                f"likelihood GaussianMixture: expected a network output of shape (batch, K (1 + 2 d)) for "
                f"{self.components} components and targets (batch, d), got {tuple(output.shape)}"
                f"{see('how-to/write_a_likelihood')}"
            )
        logits, others = output[:, : self.components], output[:, self.components :]
        means, raw = (part.unflatten(1, (self.components, width)) for part in others.chunk(2, 1))
        parts = dist.Normal(means, positive(raw)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)

    def extra_repr(self) -> str:
        """The number of components."""
        return f"{self.components}"

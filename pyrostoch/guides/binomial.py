"""Weights that count successes: a binomial distribution for every weight, and one scale per site."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_count
from pyrostoch.distributions import BinomialLevels, matching_scale
from pyrostoch.guides.base import Guide
from pyrostoch.guides.export import most_probable
from pyrostoch.guides.plain import with_weights
from pyrostoch.guides.starts import weights_with_a_scale
from pyrostoch.sites import Site

__all__ = ["BinomialWeights"]

# The largest mean at the start, in units of the scale: nearer to 1, a logit has hardly any gradient.
_LARGEST_MEAN = 0.95


class BinomialWeights(Guide):
    r"""Every weight counts the successes of n trials: $w = s\,(2K/n - 1)$ with $K \sim \mathrm{Binomial}(n, p)$.

    A weight has one logit, $\log(p / (1 - p))$, and a site one scale s. The mean of a weight is anywhere between -s and
    s, its variance at most $s^2/n$; unlike in `CategoricalWeights`, the logit sets both. The guide starts with the
    network's own weights as means; those that are larger than the scale start at its edge.

    It is trained like `CategoricalWeights`: with local reparameterization or moment propagation, which need only the
    mean and the variance; with the `"shared"` estimator a draw's backward pass is that of its mean (straight-through).
    The logits are trained with `fit`'s `lr_alpha`.

    The prior is `priors.SymmetricBinomial()`, Binomial(n, 1/2), with the KL of n coins to fair coins, or
    `priors.Grid()`, under which all n + 1 levels are equally likely. The KL to a prior with a density is infinite.

    Args:
        model: A `BayesianModel`.
        n: Number of trials of each weight; n + 1 is that of its levels. With 1, weights are binary. Many trials make
            little noise.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: `n` is no whole number of at least 1, or all of the network's weights at a site are 0.

    References:
        Peters, Welling, "Probabilistic binary neural networks", 2018 (arXiv 1809.03368), for n = 1.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.SymmetricBinomial(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = BinomialWeights(model, n=4)
        >>> distribution = guide.site_distribution("weight").base_dist
        >>> set((distribution.sample() / distribution.scale).flatten().tolist()) <= {-1.0, -0.5, 0.0, 0.5, 1.0}
        True
    """

    alpha_parameters = ("logits",)

    def __init__(self, model: nn.Module, *, n: int = 8, sites: Iterable[str] | None = None) -> None:
        self.n = check_count("BinomialWeights n", n)
        super().__init__(model, sites=sites)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`logits` in the shape of the weight, whose means are the network's weights; scalar `log_scale`."""
        weights = weights_with_a_scale(site, "BinomialWeights")
        scale = matching_scale(weights, torch.linspace(-1, 1, self.n + 1, dtype=weights.dtype, device=weights.device))
        means = (weights / scale).clamp(-_LARGEST_MEAN, _LARGEST_MEAN)
        return {"logits": 2 * means.atanh(), "log_scale": scale.log()}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The binomial distribution over the scaled levels."""
        return BinomialLevels(parameters["logits"], self.n, parameters["log_scale"].exp())

    def export(self, model: nn.Module, *, draw: int | None = None) -> nn.Module:
        """A copy of the network, an ordinary module, whose weights are their most probable levels, or a draw of them.

        Args:
            model: The `BayesianModel`, or, without a draw, the network itself.
            draw: Seed of the draw.

        Returns:
            The copy, in evaluation mode, with nothing random in it.
        """
        if draw is not None:
            return super().export(model, draw=draw)
        return with_weights(model, most_probable(self))

    def extra_repr(self) -> str:
        """The number of trials."""
        return f"n={self.n}"

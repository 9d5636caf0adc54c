"""Weights on a grid: a categorical distribution over a few levels for every weight, and one scale per site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_positive, is_rising
from pyrostoch.distributions import Levels, matching_scale
from pyrostoch.guides.base import Guide
from pyrostoch.guides.export import most_probable
from pyrostoch.guides.plain import with_weights
from pyrostoch.guides.starts import weights_with_a_scale
from pyrostoch.sites import Site

__all__ = ["CategoricalWeights"]


class CategoricalWeights(Guide):
    r"""Every weight is one of a few levels times its site's scale: $w = s\,\ell_j$ with probability $p_j$.

    Train it with local reparameterization (a layer's output is drawn from a Gaussian with the exact mean and variance)
    or with moment propagation. With the `"shared"` estimator a draw's backward pass is that of its mean
    (straight-through). `site_distribution(name).base_dist.states()` holds the index of the most probable level of each
    weight.

    The logits are trained with `fit`'s `lr_alpha`. Choose it well above the learning rate of other parameters, since
    logits move far during training. Start from a network trained without a grid rather than from a random one.

    The prior is `priors.Grid()`, which favors no level: KL = log k - H for k levels and the entropy H; or
    `priors.SymmetricBinomial()`, which favors those in the middle. The KL to a prior with a density is infinite.

    Args:
        model: A `BayesianModel`.
        levels: The levels in increasing order; three by default.
        width: Standard deviation, in units of the spacing of the levels, of the initial probabilities around the
            network's own weight; a small value starts close to one level.
        sites: Names of the sites covered; all by default.

    References:
        Shayer, Levi, Fetaya, "Learning discrete weights using the local reparameterization trick", 2018.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.Grid(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = CategoricalWeights(model)
        >>> guide.site_distribution("weight").base_dist.states().dtype
        torch.int8
    """

    alpha_parameters = ("logits",)

    def __init__(
        self,
        model: nn.Module,
        *,
        levels: Sequence[float] = (-1.0, 0.0, 1.0),
        width: float = 0.5,
        sites: Iterable[str] | None = None,
    ) -> None:
        self.levels = tuple(float(level) for level in levels)
        if len(self.levels) < 2 or not is_rising(self.levels):
            raise ValueError(f"CategoricalWeights levels: expected at least two increasing numbers, got {self.levels}")
        self.width = check_positive("CategoricalWeights width", width)
        super().__init__(model, sites=sites)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`logits`, (k, *weight shape), largest for the level nearest to the network's weight; scalar `log_scale`."""
        weights = weights_with_a_scale(site, "CategoricalWeights")
        levels = torch.tensor(self.levels, dtype=weights.dtype, device=weights.device)
        scale = matching_scale(weights, levels)
        step = (levels[-1] - levels[0]) / (len(levels) - 1)
        # The levels are the first axis, as inside `Levels`, whose softmax is fast over it.
        distance = (weights / scale - levels.reshape(-1, *[1] * weights.dim())) / (self.width * step)
        return {"logits": -0.5 * distance.square(), "log_scale": scale.log()}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The categorical distribution over the scaled levels."""
        return Levels(parameters["logits"].movedim(0, -1), self.levels, parameters["log_scale"].exp())

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
        """The levels."""
        return f"levels={self.levels}"

"""Weights on a grid: a categorical distribution over a few levels for every weight, with a scale for each site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_positive, is_rising
from pyrostoch.distributions import Levels, matching_scale
from pyrostoch.effects import base_distribution
from pyrostoch.guides.base import Guide
from pyrostoch.guides.export import with_weights
from pyrostoch.model import Site

__all__ = ["CategoricalWeights"]


class CategoricalWeights(Guide):
    r"""Every weight is one of a few levels times its layer's scale: $w = s\,\ell_j$ with probability $p_j$.

    Trained by local reparameterization (a layer's output is Gaussian by its exact mean and variance) or by moments;
    under `"shared"` a draw passes back the derivative of its mean. `site_distribution(name).base_dist.states()` are the
    most probable levels.

    The logits are logarithms of ratios, and take `fit`'s `lr_alpha`: well above the rate of other parameters, since
    they have a way to go. A network that was trained without a grid is a better start than a fresh one.

    The prior is `priors.Grid()` (no level is favored: KL = log k - H), or none of a density: a grid has none.

    Args:
        model: A `BayesianModel`.
        levels: The levels, rising; three by default.
        width: How far the start spreads over levels around the network's own weight, in units of the distance of
            levels: small values start close to one level.
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
            raise ValueError(f"CategoricalWeights levels: expected at least two rising numbers, got {self.levels}")
        self.width = check_positive("CategoricalWeights width", width)
        super().__init__(model, sites=sites)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`logits`, (k, ...), nearest to the network's own weights, and `log_scale`, one for the site."""
        weights = site.init.detach()
        if not weights.any():
            raise ValueError(
                f"CategoricalWeights: the network's own weights of site {site.name!r} are 0 throughout, and have no "
                "size to take a scale from; start it at random, or from a trained network"
            )
        levels = torch.tensor(self.levels, dtype=weights.dtype, device=weights.device)
        scale = matching_scale(weights, levels)
        step = (levels[-1] - levels[0]) / (len(levels) - 1)
        # Levels in front, as the distribution works.
        apart = (weights / scale - levels.reshape(-1, *[1] * weights.dim())) / (self.width * step)
        return {"logits": -0.5 * apart.square(), "log_scale": scale.log()}

    def distribution(self, site: str, **parameters: Tensor) -> Any:
        """The categorical distribution."""
        return Levels(parameters["logits"].movedim(0, -1), self.levels, parameters["log_scale"].exp())

    def export(self, model: nn.Module) -> nn.Module:
        """A copy of the network with the most probable level of every weight: an ordinary module, nothing in it random.

        Args:
            model: The `BayesianModel`, or the network itself.
        """
        weights = {}
        for name in self.weight_names:
            distribution: Any = base_distribution(self.site_distribution(name))
            levels = distribution.scale.new_tensor(self.levels)
            weights[name] = distribution.scale * levels[distribution.states().long()]
        return with_weights(model, weights)

    def extra_repr(self) -> str:
        """The levels."""
        return f"levels={self.levels}"

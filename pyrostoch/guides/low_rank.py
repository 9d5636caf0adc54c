"""A normal guide with a covariance of low rank, over all weights together or site by site."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_choice, check_count
from pyrostoch._manual import see
from pyrostoch.distributions import LowRankDraw, LowRankNormal
from pyrostoch.guides.base import Guide
from pyrostoch.guides.joint import draw_tied, refuse_constants
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.guides.starts import Start
from pyrostoch.sites import Site

__all__ = ["LowRank"]

# The vectors of the low-rank part start with entries of this size, in units of the standard deviation.
_START = 0.1


class LowRank(NormalStart):
    r"""A variance for each weight and a covariance of rank K: $w \sim N(\mu, \mathrm{diag}(\sigma^2) + F F^\top)$.

    The K columns of F are directions in which weights move together. With `scope="all"` they run over the weights of
    all sites, so that layers depend on each other; with `scope="site"` each site has K of its own. The KL divergence to
    a normal prior is exact in both cases: only determinants of K x K matrices are needed.

    Local reparameterization draws the output of linear layers and convolutions; the noise of the low-rank part is drawn
    for each example, the same for all layers, where all sites of the guide can be treated so, and else once for the
    batch. With more than 100,000 weights each half of the batch shares a draw of it, since K products for each layer
    would take most of the time. The distribution of each example's output is exact in all of these cases. Moment
    propagation treats `scope="site"`, and refuses weights that depend on those of other layers.

    Args:
        model: A `BayesianModel`.
        rank: K, at least 1.
        scope: `"all"`, or `"site"`.
        init_loc: Initial means: a number, a function of the site, or a trained guide; by default the network's values.
        init_scale: Initial standard deviations of the independent part: a number, a function of the site, or a guide.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: The rank is larger than a site, or with `scope="all"` than all of them together, or some entries of
            a site are constant.

    References:
        Ong, Nott, Smith, "Gaussian variational approximation with a factor covariance structure", 2018; Tomczak,
        Swaroop, Turner, "Efficient low rank Gaussian variational inference for neural networks", 2020.

    Example:
        >>> import pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.1),
        ...                          num_data=10)
        >>> guide = LowRank(model, rank=2)
        >>> guide.parameters_for("0.weight")["factor"].shape
        torch.Size([2, 4, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int = 5,
        *,
        scope: Literal["all", "site"] = "all",
        init_loc: Start | Guide | None = None,
        init_scale: Start | Guide = 1e-2,
        sites: Iterable[str] | None = None,
    ) -> None:
        self.rank, self.scope = check_count("LowRank rank", rank), check_choice("scope", scope, ("all", "site"))
        super().__init__(model, init_loc=init_loc, init_scale=init_scale, sites=sites)
        total = sum(self.parameters_for(name)["loc"].numel() for name in self._tied)
        if self._tied and self.rank > total:
            raise ValueError(
                f"guide LowRank: expected a rank of at most {total}, the number of weights, got {rank}"
                f"{see('how-to/choose_guide')}"
            )

    @property
    def _tied(self) -> tuple[str, ...]:
        """The sites that share the low-rank part."""
        return self._real_sites if self.scope == "all" else ()

    @property
    def ties_sites(self) -> bool:
        """Whether the draw of one site depends on that of another."""
        return len(self._tied) > 1

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc` and `log_scale`, in the weight's shape, and `factor`, (rank, *shape)."""
        refuse_constants(site, "LowRank")
        start = self.normal_start(site)
        if self.scope == "site" and self.rank > site.init.numel():
            raise ValueError(
                f"guide LowRank: expected a rank of at most {site.init.numel()}, the number of weights of site "
                f"{site.name!r}, got {self.rank}; give the site another guide by PerSite, such as FullCovariance, or "
                f"take scope='all'{see('how-to/choose_guide')}"
            )
        noise = torch.randn((self.rank, *site.init.shape), dtype=site.init.dtype, device=site.init.device)
        return start | {"factor": _START * start["log_scale"].exp() * noise}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The low-rank normal distribution of the site alone, an event of the weight's shape."""
        return self._distribution(None, **parameters)

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name; those of `scope="all"` share the low-rank part."""
        if not self._tied:
            return self._draw_sites(marked=True)
        shared = LowRankDraw(self.rank, self._tied)
        return draw_tied(self, shared, lambda name: self._distribution(shared, **self.parameters_for(name)))

    def _distribution(self, shared: LowRankDraw | None, **parameters: Tensor) -> LowRankNormal:
        loc, scale, factor = parameters["loc"], parameters["log_scale"].exp(), parameters["factor"]
        return LowRankNormal(loc, scale, factor, shared=shared)

    def extra_repr(self) -> str:
        """The rank and its scope."""
        return f"rank={self.rank}, scope={self.scope!r}"

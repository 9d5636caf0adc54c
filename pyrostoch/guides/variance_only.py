"""The guide of variance networks: symmetric distributions of mean zero, which carry information by their width."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_choice
from pyrostoch.distributions import CenteredNormal, SymmetricUniform, TwoPoint
from pyrostoch.guides.base import Guide
from pyrostoch.guides.starts import Start, nudge_from_zero, start_value
from pyrostoch.sites import Site

__all__ = ["VarianceOnly"]

_FAMILIES: dict[str, Callable[[Tensor], Distribution]] = {
    "gaussian": CenteredNormal,
    "bernoulli": TwoPoint,
    "uniform": SymmetricUniform,
}


class VarianceOnly(Guide):
    r"""A symmetric distribution of mean zero for every weight: $w_{ij} = \phi_{ij}\,\varepsilon_{ij}$.

    $\varepsilon$ is N(0, 1) (`"gaussian"`), $\pm 1$ with equal probability (`"bernoulli"`) or U(-1, 1) (`"uniform"`).
    The mean is always zero, so predict by averaging over draws; mean propagation cannot work. The parameter is $\phi$
    itself, whose sign does not affect the distribution.

    Args:
        model: A `BayesianModel`.
        family: The distribution of epsilon.
        init_scale: Initial phi, a number or a function of the site. By default the network's own weights, whose signs
            do not matter, with zeros replaced by small values; this keeps the output's variance about where the
            network's initialization puts it.
        sites: Names of the sites covered; all by default.

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations",
        2018 (arXiv 1803.03764).

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> bool((VarianceOnly(model).site_distribution("weight").mean == 0).all())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        family: Literal["gaussian", "bernoulli", "uniform"] = "gaussian",
        init_scale: Start | None = None,
        sites: Iterable[str] | None = None,
    ) -> None:
        self.family = check_choice("VarianceOnly family", family, _FAMILIES)
        self._init_scale = init_scale
        super().__init__(model, sites=sites)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`scale`, in the weight's shape."""
        if self._init_scale is None:
            return {"scale": nudge_from_zero(site.init)}
        return {"scale": start_value(self._init_scale, site, site.init.shape, "init_scale")}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The family's distribution of width |scale|."""
        # A width of exactly zero gives no valid distribution; the minimum is far below any weight that matters.
        return _FAMILIES[self.family](parameters["scale"].abs().clamp_min(1e-12))

    def extra_repr(self) -> str:
        """The family."""
        return f"family={self.family!r}"

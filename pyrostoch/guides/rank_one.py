"""Random factors of rank one on fixed weights, in several components: an ensemble at the cost of one network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_count
from pyrostoch.distributions import ComponentDraw, RankOneWeights
from pyrostoch.guides.joint import draw_tied, refuse_constants
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.guides.starts import Start
from pyrostoch.sites import Site

__all__ = ["RankOne"]


class RankOne(NormalStart):
    r"""$w_{oi} = W_{oi}\,r_o\,s_i$: the weights W are fitted, normal factors r and s of outputs and inputs are random.

    Each of C components has means and standard deviations of its own for r and s, so that the guide is an ensemble
    whose members share W. A draw takes one component, the same in all layers. A parameter with one axis, such as a
    bias, has r alone.

    The prior must be `priors.RankOne()`: factors are $N(1, \lambda^2)$. The KL is that of the factors, the mean over
    the components, which exceeds that of their mixture by at most log C nats, plus the negative log density of W. There
    is no density of the weights, so that Pyro's own ELBOs and NUTS cannot be used.

    Local reparameterization gives each example factors of its own, and a component of its own where all sites can be
    treated so. Moment propagation has no rule.

    Args:
        model: A `BayesianModel`.
        components: C, at least 1.
        init_loc: Initial W, a number or a function of the site; by default the network's own values.
        init_scale: Initial standard deviations of the factors.
        init_spread: Standard deviation of the components' initial means about 1; without it they would stay alike.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: `components` is no whole number of at least 1, or some entries of a site are constant.

    References:
        Dusenberry, Jerfel, Wen, Ma, Snoek, Heller, Lakshminarayanan, Tran, "Efficient and scalable Bayesian neural nets
        with rank-1 factors", 2020.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.RankOne(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = RankOne(model, components=4)
        >>> {name: tuple(value.shape) for name, value in guide.parameters_for("weight").items() if "loc" in name}
        {'inputs_loc': (4, 3), 'loc': (2, 3), 'outputs_loc': (4, 2)}
    """

    def __init__(
        self,
        model: nn.Module,
        components: int = 1,
        *,
        init_loc: Start | None = None,
        init_scale: float = 0.05,
        init_spread: float = 0.1,
        sites: Iterable[str] | None = None,
    ) -> None:
        self.components = check_count("RankOne components", components)
        self._init_spread = init_spread
        super().__init__(model, init_loc=init_loc, init_scale=init_scale, sites=sites)

    @property
    def _tied(self) -> tuple[str, ...]:
        """The sites that share the component."""
        return self._real_sites if self.components > 1 else ()

    @property
    def ties_sites(self) -> bool:
        """Whether the draw of one site depends on that of another."""
        return len(self._tied) > 1

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc`, in the weight's shape; `outputs_loc`, `outputs_log_scale`, (C, out), and those of inputs, (C, in)."""
        refuse_constants(site, "RankOne")
        start = self.normal_start(site)
        scale = start["log_scale"].flatten()[0]
        parameters = {"loc": start["loc"]}
        axes = {"outputs": site.out_axis, "inputs": 1 if site.out_axis == 0 else 0}
        for name, axis in axes.items():
            if axis < max(site.init.dim(), 1):
                shape = (self.components, site.init.shape[axis] if site.init.dim() else 1)
                spread = self._init_spread if self.components > 1 else 0.0
                parameters[f"{name}_loc"] = 1.0 + spread * torch.randn(shape).to(site.init)
                parameters[f"{name}_log_scale"] = scale.expand(shape)
        return parameters

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The distribution of the site alone, an event of the weight's shape."""
        return self._distribution(site, None, **parameters)

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name, all of one component."""
        if not self._tied:
            return self._draw_sites(marked=True)
        shared = ComponentDraw(self.components, self._tied)
        return draw_tied(self, shared, lambda name: self._distribution(name, shared, **self.parameters_for(name)))

    def _distribution(self, site: str, shared: ComponentDraw | None, **parameters: Tensor) -> RankOneWeights:
        outputs = parameters["outputs_loc"], parameters["outputs_log_scale"].exp()
        inputs = None
        if "inputs_loc" in parameters:
            inputs = parameters["inputs_loc"], parameters["inputs_log_scale"].exp()
        return RankOneWeights(parameters["loc"], outputs, inputs, out_axis=self._out_axes[site], shared=shared)

    def extra_repr(self) -> str:
        """The number of components."""
        return f"components={self.components}"

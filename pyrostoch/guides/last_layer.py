"""A Bayesian last layer: a full covariance of each output's weights and its bias, on deterministic features."""

from __future__ import annotations

from collections.abc import Iterable

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.distributions import RowsBias, RowsDraw, RowsNormal
from pyrostoch.effects import independent
from pyrostoch.guides.base import Guide, sites_of
from pyrostoch.guides.joint import check_memory, positive_tril, raw_tril, refuse_constants
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.guides.starts import Start
from pyrostoch.priors import clean_name
from pyrostoch.sites import Site, site_key

__all__ = ["LastLayer", "sites_of_layer"]


class LastLayer(NormalStart):
    r"""One linear layer is random: $(w_o, b_o) \sim N(m_o, S_o)$, with a full covariance $S_o$ for each output o.

    Only the weight of that layer, and its bias if it is to be random, may have priors; the rest of the network gives
    deterministic features $\varphi(x)$, which are trained along or frozen (`requires_grad=False`). An output is normal,

    $$ h_o \sim N(m_o^\top \varphi,\; \varphi^\top S_o\,\varphi), $$

    and outputs are independent of each other. So nothing has to be drawn:

    - With `fit(estimator="moments:bound")` the data term is a closed lower bound: for `likelihoods.Categorical`
      $m_y^\top\varphi - \log \sum_c \exp(m_c^\top \varphi + \varphi^\top S_c\,\varphi / 2)$; for `likelihoods.Gaussian`
      and `HeteroscedasticGaussian(link="exp")` it is the term itself.
    - With `likelihoods.Gaussian` noise of known scale `fit_last_layer` sets the exact posterior given the features, in
      one pass.
    - `predict(mode="moments")` gives mean and variance of the output in one pass.

    Args:
        model: A `BayesianModel`, whose priors are those of one `nn.Linear`, such as
            `prior={"head.weight": priors.Normal(), "head.bias": priors.Normal()}`.
        init_loc: Initial means: a number, a function of the site, or a trained guide; by default the network's values.
        init_scale: Initial standard deviations: a number, a function of the site, or a trained guide.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: The sites are not a weight with two axes, alone or with a bias, or the covariances do not fit into
            memory.

    References:
        Harrison, Willes, Snoek, "Variational Bayesian last layers", 2024; Snoek et al., "Scalable Bayesian optimization
        using deep neural networks", 2015.

    Example:
        >>> import pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> model = ps.BayesianModel(net, prior={"2.*": ps.priors.Normal()},
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=100)
        >>> guide = LastLayer(model)
        >>> guide.parameters_for("2.weight")["tril"].shape  # weights and bias
        torch.Size([1, 17, 17])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        init_loc: Start | Guide | None = None,
        init_scale: Start | Guide = 1e-2,
        sites: Iterable[str] | None = None,
    ) -> None:
        known = sites_of(model, "LastLayer")
        chosen = list(known) if sites is None else list(sites)
        self._weight, self._bias = sites_of_layer(known, chosen, "LastLayer")
        self._biases = [] if self._bias is None else [known[self._bias]]
        super().__init__(model, init_loc=init_loc, init_scale=init_scale, sites=chosen)
        self._biases = []  # the site holds the network's values

    @property
    def ties_sites(self) -> bool:
        """Whether the draw of one site depends on that of another."""
        return self._bias is not None

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc`, (out, in), and `tril`, (out, n, n), of the weight; `loc`, (out,), of the bias."""
        refuse_constants(site, "LastLayer")
        start = self.normal_start(site)
        if site.name == self._bias:
            return {"loc": start["loc"]}
        outputs, inputs = site.init.shape
        size = inputs + (self._bias is not None)
        check_memory(site, outputs * size**2, "LastLayer")
        scales = [start["log_scale"].exp(), *(self._bias_scale(bias) for bias in self._biases)]
        return {"loc": start["loc"], "tril": raw_tril(torch.cat(scales, 1))}

    def _bias_scale(self, bias: Site) -> Tensor:
        return self.normal_start(bias)["log_scale"].exp().unsqueeze(1)

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The distribution of the site alone, an event of its shape."""
        tril = self._tril()
        if site == self._bias:
            return RowsBias(parameters["loc"], tril)
        size = parameters["loc"].shape[1]
        return RowsNormal(parameters["loc"], positive_tril(parameters["tril"])[:, :size, :size])

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name: the weight, then the bias given the weight."""
        if self._bias is None:
            return self._draw_sites(marked=True)
        weight, bias = (self.parameters_for(name)["loc"] for name in (self._weight, self._bias))
        shared = RowsDraw(weight, bias, self._tril(), (self._weight, self._bias))
        draws = {self._weight: pyro.sample(self._weight, shared.weight, infer=independent())}
        shared.record(draws[self._weight])
        draws[self._bias] = pyro.sample(self._bias, shared.bias, infer=independent())
        for name in self.site_names:
            if name not in draws:
                draws[name] = pyro.sample(name, self.site_distribution(name))  # type: ignore[arg-type]
        return {name: draws[name] for name in self.site_names}

    @property
    def layer_sites(self) -> tuple[str, ...]:
        """The sites of the layer's weight and, where it is random, of its bias."""
        return (self._weight,) if self._bias is None else (self._weight, self._bias)

    def layer_of(self, net: nn.Module) -> nn.Module:
        """The layer in a network.

        Args:
            net: The network.
        """
        modules = {clean_name(name): module for name, module in net.named_modules()}
        return modules[self._weight.rpartition(".")[0]]

    def restricted_to(self, sites: Iterable[str]) -> Guide:
        """A copy of the guide that covers only some of its sites; the weight without its bias has its marginal.

        Args:
            sites: Names of the sites to keep.

        Raises:
            ValueError: The guide has no such site, or the weight is not among them.
        """
        kept = set(sites)
        if self._bias in kept and self._weight not in kept:
            raise ValueError(
                f"guide LastLayer: expected the weight {self._weight!r} among the sites to keep, got "
                f"{name_list(kept)}: the bias has no covariance of its own"
            )
        restricted = super().restricted_to(kept)
        if self._bias is not None and self._bias not in kept and isinstance(restricted, LastLayer):
            restricted._bias = None
            own = restricted.parameters_of[site_key(self._weight)]
            size = own["loc"].shape[1]  # type: ignore[index]
            own["tril"] = nn.Parameter(own["tril"].detach()[:, :size, :size].clone())  # type: ignore[index, operator]
        return restricted

    def set_posterior(self, loc: Tensor, covariance: Tensor) -> None:
        """Set means and covariances.

        Args:
            loc: Means, (out, n): of an output's weights, then of its bias where that is random.
            covariance: Covariances, (out, n, n).
        """
        tril = torch.linalg.cholesky(covariance.double())
        parameters = self.parameters_for(self._weight)
        size = parameters["loc"].shape[1]
        diagonal = tril.diagonal(dim1=1, dim2=2)
        raw = tril / diagonal.unsqueeze(2)
        with torch.no_grad():
            parameters["loc"].copy_(loc[:, :size])
            parameters["tril"].copy_(raw.tril(-1) + torch.diag_embed(diagonal.log()))
            if self._bias is not None:
                self.parameters_for(self._bias)["loc"].copy_(loc[:, size])

    def _tril(self) -> Tensor:
        return positive_tril(self.parameters_for(self._weight)["tril"])


def sites_of_layer(known: dict[str, Site], chosen: Iterable[str], guide: str) -> tuple[str, str | None]:
    """The sites of the weight of a linear layer, and of its bias or `None`, which are to be all that is random.

    Args:
        known: The model's sites, by name.
        chosen: Names of those that the guide covers.
        guide: Name of the guide.

    Raises:
        ValueError: They are others.
    """
    weights = [known[name] for name in chosen if name in known and known[name].role != "scale"]
    matrix = [site for site in weights if site.init.dim() == 2]
    biases = [site for site in weights if site.init.dim() == 1]
    if len(matrix) != 1 or len(biases) > 1 or len(weights) != 1 + len(biases) or not _belong(matrix[0], biases):
        raise ValueError(
            f"guide {guide}: expected the weight of one linear layer as the model's random weight, alone or with "
            f"its bias, got {name_list(site.name for site in weights) or 'none'}; give priors to the last layer "
            "only, such as prior={'head.weight': priors.Normal(), 'head.bias': priors.Normal()}, or cover the "
            f"others by other guides by PerSite{see('how-to/choose_guide')}"
        )
    return matrix[0].name, biases[0].name if biases else None


def _belong(weight: Site, biases: list[Site]) -> bool:
    """Whether the bias is that of the weight's layer, by its module's name and its length."""
    prefix = weight.name.rpartition(".")[0]
    return all(
        bias.name.rpartition(".")[0] == prefix and len(bias.init) == len(weight.init) and weight.out_axis == 0
        for bias in biases
    )

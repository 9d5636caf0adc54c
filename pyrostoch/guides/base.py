"""The base class of guides: variational parameters for each site, and the distribution they give it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyrostoch._checks import name_list
from pyrostoch._fixed_entries import FixedEntries
from pyrostoch._manual import see
from pyrostoch.distributions import PartlyFixed
from pyrostoch.effects import independent
from pyrostoch.guides.gap import ZeroMeanGap, zero_mean_gap
from pyrostoch.guides.plain import Exportable
from pyrostoch.guides.starts import nudge_from_zero
from pyrostoch.guides.statistics import announce_buffers_of, layers_with_statistics
from pyrostoch.sites import Site, announce_parameters, site_key

__all__ = ["Guide", "sites_of"]


def sites_of(model: nn.Module, guide: str) -> dict[str, Site]:
    """The latent variables of a model, by name.

    Args:
        model: A `BayesianModel`, or any module with a dictionary `sites`.
        guide: Class of the guide that asks, for the error.

    Raises:
        TypeError: The model has no such dictionary.
    """
    sites = getattr(model, "sites", None)
    if not isinstance(sites, dict):
        raise TypeError(
            f"guide {guide}: expected a BayesianModel (or a module with a `sites` dictionary), got "
            f"{type(model).__name__}"
        )
    return sites


class Guide(Exportable, nn.Module):
    """A mean-field guide: an independent distribution for each site of a model.

    This is the base class for a guide of your own. Any Pyro distribution on the weights takes two methods, as in the
    example below:

    - `initial_parameters(site)` returns the initial variational parameters of a site, by name. It is called once for
      each site when the guide is made, and each tensor becomes an `nn.Parameter`. The optimizer sees these values as
      they are, so a positive quantity is best stored as its logarithm. `site.init` is the network's own weight.
    - `distribution(site, **parameters)` returns the distribution that the present parameters give, one independent
      entry per weight. It is called at every draw.

    The base class does the rest: `site_distribution(site)` returns the present distribution of a site, and
    `parameters_for(site)` its parameters by name. A guide with settings of its own assigns them before it calls
    `super().__init__`, which calls `initial_parameters`. Parameters whose names are in the class attribute
    `alpha_parameters` are trained with `fit`'s `lr_alpha`.

    Entries that torch holds constant (the padding row of an embedding, what `torch.nn.utils.prune` cut) stay constants
    in every guide: they are not drawn, cost no KL, and their parameters are never trained.

    The two methods are called for sites of real support, the usual one of weights and biases. A site of positive
    support, such as the random scale of a prior or of a likelihood's noise, has a log-normal distribution in every
    guide.

    Args:
        model: A `BayesianModel`, or any module with a `sites` property that maps names to `Site`s.
        sites: Names of the sites this guide covers; all by default (see `PerSite`).

    Raises:
        TypeError: `model` has no `sites`.
        ValueError: A named site does not exist, or a site's support is neither real nor positive.

    Example:
        >>> import pyrostoch as ps
        >>> class LaplaceGuide(Guide):
        ...     def initial_parameters(self, site):
        ...         return {"loc": site.init, "log_scale": torch.full_like(site.init, -5.0)}
        ...     def distribution(self, site, loc, log_scale):
        ...         return dist.Laplace(loc, log_scale.exp())
        >>> model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = LaplaceGuide(model)
        >>> {name: value.shape for name, value in guide().items()}
        {'weight': torch.Size([1, 2])}
        >>> guide.site_distribution("weight").base_dist
        Laplace(loc: torch.Size([1, 2]), scale: torch.Size([1, 2]))
        >>> list(guide.parameters_for("weight"))
        ['loc', 'log_scale']
    """

    #: Names of parameters that are logarithms of ratios, such as log alpha: trained with `fit`'s `lr_alpha`.
    alpha_parameters: tuple[str, ...] = ("log_alpha",)
    #: Whether draws have a density, without which there is no ELBO.
    has_density = True

    def __init__(self, model: nn.Module, *, sites: Iterable[str] | None = None) -> None:
        super().__init__()
        model_sites = sites_of(model, type(self).__name__)
        chosen = list(model_sites) if sites is None else list(sites)
        unknown = [name for name in chosen if name not in model_sites]
        if unknown:
            raise ValueError(
                f"guide {type(self).__name__}: no site(s) {name_list(unknown)} in the model, which has "
                f"{name_list(model_sites)}"
            )
        self.site_names = tuple(chosen)
        #: The sites that are weights of the network, without random scales of priors and likelihoods.
        self.weight_names = tuple(name for name in chosen if model_sites[name].role != "scale")
        # Strings and not torch's constraints: those are compared by identity, which a deep copy does not keep.
        self._kinds = {name: _kind(model_sites[name]) for name in chosen}
        self._out_axes = {name: model_sites[name].out_axis for name in chosen}
        # Layers of the network whose buffers training changes.
        self._layers_with_statistics = tuple(layers_with_statistics(getattr(model, "net", None)))
        #: The shape of each site.
        self.site_shapes = {name: model_sites[name].init.shape for name in chosen}
        self.parameters_of = nn.ModuleDict()
        self.constants = nn.ModuleDict()
        for name in chosen:
            site = model_sites[name]
            initial = self.initial_parameters(site) if self._kinds[name] == "real" else _initial_scale(site)
            self.parameters_of[site_key(name)] = nn.ParameterDict(
                {key: nn.Parameter(value.detach().clone()) for key, value in initial.items()}
            )
            if site.fixed is not None:
                self.constants[site_key(name)] = _Constants(site.fixed)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """The initial variational parameters of a site, by name.

        Args:
            site: The site; `site.init` is the network's own value.

        Returns:
            Tensors, which are copied into `nn.Parameter`s.
        """
        raise TypeError(f"{type(self).__name__} must implement initial_parameters(site){see('how-to/write_a_guide')}")

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The elementwise distribution of a site, from its parameters by name.

        Args:
            site: The site's name.
            parameters: The present values of the parameters that `initial_parameters` named.

        Returns:
            A Pyro distribution whose batch shape is the site's shape.
        """
        raise TypeError(f"{type(self).__name__} must implement distribution(site, ...){see('how-to/write_a_guide')}")

    def site_distribution(self, site: str) -> Distribution:
        """The present distribution of one site, with all its axes declared as one event.

        Args:
            site: The site's name.

        Returns:
            A Pyro distribution whose event shape is the site's shape.

        Raises:
            ValueError: The guide has no such site.
        """
        parameters = self.parameters_for(site)
        distribution: Any = (
            self.distribution(site, **parameters) if self._kinds[site] == "real" else _scale_distribution(**parameters)
        )
        key = site_key(site)
        if key in self.constants:
            constants: Any = self.constants[key]
            distribution = PartlyFixed(distribution, constants.entries)
        event: Distribution = distribution.to_event(len(distribution.batch_shape))
        return event

    def parameters_for(self, site: str) -> dict[str, nn.Parameter]:
        """The variational parameters of one site, by name.

        Args:
            site: The site's name.

        Returns:
            The parameters themselves, not copies.

        Raises:
            ValueError: The guide has no such site.
        """
        if site not in self._kinds:
            raise ValueError(f"guide {type(self).__name__}: no site {site!r}; it has {name_list(self._kinds)}")
        return dict(self.parameters_of[site_key(site)].items())  # type: ignore[operator]

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide: draws every site, whatever the data.

        Args:
            args: The model's arguments, ignored.
            kwargs: The same.

        Returns:
            The draws by site name.
        """
        announce_parameters(self, "guide")
        self.announce_statistics()
        return self.draw()

    def announce_statistics(self) -> None:
        """Announce the running statistics that belong to the guide's draws, where it has some of its own.

        Raises:
            ValueError: They were never computed.
        """
        announce_buffers_of(self)

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name."""
        # In a subclass with its own drawing, one site's distribution may depend on another site's draw: not marked.
        return self._draw_sites(marked=type(self).forward is Guide.forward and type(self).draw is Guide.draw)

    def _draw_sites(self, *, marked: bool) -> dict[str, Tensor]:
        """Draw every site, by name, the weights marked as independent of each other or not."""
        draws: dict[str, Tensor] = {}
        for name in self.site_names:
            distribution: Any = self.site_distribution(name)
            infer: Any = independent() if marked and self._kinds[name] == "real" else {}
            draws[name] = pyro.sample(name, distribution, infer=infer)
        return draws

    @property
    def _real_sites(self) -> tuple[str, ...]:
        """The sites of real support, without random scales."""
        return tuple(name for name in self.site_names if self._kinds[name] == "real")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The guide's parameters by learning rate: `"alpha"` for those named in `alpha_parameters`, else `"main"`."""
        groups: dict[str, list[nn.Parameter]] = {"main": [], "alpha": []}
        for name, parameter in self.named_parameters():
            groups["alpha" if name.rpartition(".")[2] in self.alpha_parameters else "main"].append(parameter)
        return groups

    def zero_mean_gap(self) -> ZeroMeanGap:
        """The cost in nats of setting all means to zero, and the bound it gives; see `ZeroMeanGap`.

        Returns:
            The gap, site by site.

        Raises:
            TypeError: A weight's distribution is neither normal nor of zero mean; its site is named.
        """
        return zero_mean_gap(self)

    def restricted_to(self, sites: Iterable[str]) -> Guide:
        """A copy of the guide that covers only some of its sites.

        Args:
            sites: Names of the sites to keep.

        Returns:
            A guide of the same class that shares no tensor with this one.

        Raises:
            ValueError: The guide has no such site.
        """
        kept = set(sites)
        unknown = sorted(kept - set(self.site_names))
        if unknown:
            raise ValueError(
                f"guide {type(self).__name__}: no site(s) {name_list(unknown)}; it has {name_list(self.site_names)}"
            )
        restricted = copy.deepcopy(self)
        for name in self.site_names:
            if name not in kept:
                for part in restricted.children():
                    if isinstance(part, nn.ModuleDict) and site_key(name) in part:
                        del part[site_key(name)]
        restricted._kinds = {name: kind for name, kind in self._kinds.items() if name in kept}
        restricted.site_names = tuple(name for name in self.site_names if name in kept)
        restricted.site_shapes = {name: self.site_shapes[name] for name in restricted.site_names}
        restricted.weight_names = tuple(name for name in self.weight_names if name in kept)
        return restricted


class _Constants(nn.Module):
    """The constant entries of a site as buffers, which move and are saved with the guide."""

    mask: Tensor
    value: Tensor

    def __init__(self, fixed: FixedEntries) -> None:
        super().__init__()
        self.register_buffer("mask", fixed.mask.clone())
        self.register_buffer("value", fixed.value.clone())

    @property
    def entries(self) -> FixedEntries:
        return FixedEntries(self.mask, self.value)


def _kind(site: Site) -> str:
    if site.support is constraints.real:
        return "real"
    if site.support in (constraints.positive, constraints.nonnegative):
        return "positive"
    raise ValueError(
        f"site {site.name!r}: guides of this library cover real and positive sites, but its support is {site.support}; "
        "give it another prior, or write the guide in Pyro"
        f"{see('how-to/write_a_guide')}"
    )


def _initial_scale(site: Site) -> dict[str, Tensor]:
    return {"loc": nudge_from_zero(site.init).abs().log(), "log_scale": torch.full_like(site.init, math.log(0.1))}


def _scale_distribution(loc: Tensor, log_scale: Tensor) -> Distribution:
    return dist.LogNormal(loc, log_scale.exp())

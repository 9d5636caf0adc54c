"""What a guide is: parameters that exist from the start, and the distribution they give each site."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from pyrostoch._checks import name_list
from pyrostoch.effects import independent
from pyrostoch.guides.gap import ZeroMeanGap, zero_mean_gap
from pyrostoch.guides.starts import nudge_from_zero
from pyrostoch.model import Site, announce_parameters, site_key

__all__ = ["Guide"]


class Guide(nn.Module):
    """A mean-field guide: an independent distribution for each site of a model.

    To put any Pyro distribution on the weights, subclass it and say which parameters a site has and what distribution
    they give:

        class LaplaceGuide(Guide):
            def initial_parameters(self, site):
                return {"loc": site.init, "log_scale": torch.full_like(site.init, -5.0)}

            def distribution(self, site, loc, log_scale):
                return dist.Laplace(loc, log_scale.exp())

    Positive scalars (a random prior scale, a random noise) get a log-normal distribution of their own, whatever the
    guide.

    Args:
        model: A `BayesianModel`, or any module with a `sites` property that maps names to `Site`s.
        sites: Names of the sites this guide covers; all by default (see `PerSite`).

    Raises:
        TypeError: `model` has no `sites`.
        ValueError: A named site does not exist.

    Example:
        >>> import pyrostoch as ps
        >>> class LaplaceGuide(Guide):
        ...     def initial_parameters(self, site):
        ...         return {"loc": site.init, "log_scale": torch.full_like(site.init, -5.0)}
        ...     def distribution(self, site, loc, log_scale):
        ...         return dist.Laplace(loc, log_scale.exp())
        >>> model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> {name: value.shape for name, value in LaplaceGuide(model)().items()}
        {'weight': torch.Size([1, 2])}
    """

    #: Names of parameters that live on a logarithmic scale of ratios and take a learning rate of their own.
    alpha_parameters: tuple[str, ...] = ("log_alpha",)

    def __init__(self, model: nn.Module, *, sites: Iterable[str] | None = None) -> None:
        super().__init__()
        described = getattr(model, "sites", None)
        if not isinstance(described, dict):
            raise TypeError(
                f"guide {type(self).__name__}: expected a BayesianModel (or a module with a `sites` dictionary), got "
                f"{type(model).__name__}"
            )
        chosen = list(described) if sites is None else list(sites)
        unknown = [name for name in chosen if name not in described]
        if unknown:
            raise ValueError(
                f"guide {type(self).__name__}: no site(s) {name_list(unknown)} in the model, which has "
                f"{name_list(described)}"
            )
        self.site_names = tuple(chosen)
        #: The sites that are weights of the network, without random scales of priors and likelihoods.
        self.weight_names = tuple(name for name in chosen if described[name].role != "scale")
        # Kinds and not the constraints themselves, whose identity a copy would lose.
        self._kinds = {name: _kind(described[name]) for name in chosen}
        self.parameters_of = nn.ModuleDict()
        for name in chosen:
            site = described[name]
            initial = self.initial_parameters(site) if self._kinds[name] == "real" else _initial_scale(site)
            self.parameters_of[site_key(name)] = nn.ParameterDict(
                {key: nn.Parameter(value.detach().clone()) for key, value in initial.items()}
            )

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """The site's variational parameters as they start, by name.

        Args:
            site: The site; `site.init` is the network's own value.

        Returns:
            Tensors, which become `nn.Parameter`s.
        """
        raise TypeError(f"{type(self).__name__} must implement initial_parameters(site)")

    def distribution(self, site: str, **parameters: Tensor) -> Any:
        """The elementwise distribution of a site, from its parameters by name.

        Args:
            site: The site's name.
            parameters: What `initial_parameters` returned, as it stands now.

        Returns:
            A Pyro distribution of the site's shape.
        """
        raise TypeError(f"{type(self).__name__} must implement distribution(site, ...)")

    def site_distribution(self, site: str) -> Any:
        """The distribution of one site as it stands now, its axes declared as one event.

        Args:
            site: The site's name.

        Returns:
            A Pyro distribution.

        Raises:
            ValueError: The guide has no such site.
        """
        parameters = self.parameters_for(site)
        distribution = (
            self.distribution(site, **parameters) if self._kinds[site] == "real" else _scale_distribution(**parameters)
        )
        return distribution.to_event(len(distribution.batch_shape))

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
        """The Pyro guide: draws every site; the data are ignored."""
        announce_parameters(self, "guide")
        return self.draw()

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name."""
        # A subclass that draws in its own way may let one site's distribution depend on another's draw.
        own = type(self).forward is Guide.forward and type(self).draw is Guide.draw
        marks: dict[str, Any] = {n: independent() if own and kind == "real" else {} for n, kind in self._kinds.items()}
        return {name: pyro.sample(name, self.site_distribution(name), infer=marks[name]) for name in self.site_names}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The guide's parameters by the learning rate they take: `"main"`, and `"alpha"` for logarithms of ratios."""
        groups: dict[str, list[nn.Parameter]] = {"main": [], "alpha": []}
        for name, parameter in self.named_parameters():
            groups["alpha" if name.rpartition(".")[2] in self.alpha_parameters else "main"].append(parameter)
        return groups

    def zero_mean_gap(self) -> ZeroMeanGap:
        """What setting all means to zero costs, in nats, and what that bounds; see `ZeroMeanGap`.

        Returns:
            The gap, site by site.

        Raises:
            TypeError: A weight's distribution is neither normal nor of zero mean; its site is named.
        """
        return zero_mean_gap(self)

    def restricted_to(self, sites: Iterable[str]) -> Guide:
        """A copy of the guide, as it stands, that covers some of its sites only.

        Args:
            sites: Names of the sites to keep.

        Returns:
            A guide of the same class that shares nothing with this one.

        Raises:
            ValueError: The guide has no such site.
        """
        kept = set(sites)
        unknown = sorted(kept - set(self.site_names))
        if unknown:
            raise ValueError(
                f"guide {type(self).__name__}: no site(s) {name_list(unknown)}; it has {name_list(self.site_names)}"
            )
        twin = copy.deepcopy(self)
        for name in self.site_names:
            if name not in kept:
                del twin.parameters_of[site_key(name)]
        twin._kinds = {name: kind for name, kind in self._kinds.items() if name in kept}
        twin.site_names = tuple(name for name in self.site_names if name in kept)
        twin.weight_names = tuple(name for name in self.weight_names if name in kept)
        return twin


def _kind(site: Site) -> str:
    if site.support is constraints.real:
        return "real"
    if site.support in (constraints.positive, constraints.nonnegative):
        return "positive"
    raise ValueError(
        f"site {site.name!r}: guides of this library cover real and positive sites, its support is {site.support}; "
        "give it another prior, or write the guide in Pyro"
    )


def _initial_scale(site: Site) -> dict[str, Tensor]:
    return {"loc": nudge_from_zero(site.init).abs().log(), "log_scale": torch.full_like(site.init, math.log(0.1))}


def _scale_distribution(loc: Tensor, log_scale: Tensor) -> Any:
    return dist.LogNormal(loc, log_scale.exp())

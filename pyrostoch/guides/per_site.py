"""Different guides for different sites."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.guides.base import Guide, sites_of
from pyrostoch.guides.gap import ZeroMeanGap, zero_mean_gap
from pyrostoch.guides.plain import Exportable
from pyrostoch.guides.statistics import announce_buffers_of, statistics_of
from pyrostoch.sites import announce_parameters

__all__ = ["PerSite"]


class PerSite(Exportable, nn.Module):
    """A guide composed of guides: each covers the sites whose names its pattern matches.

    Args:
        model: A `BayesianModel`.
        rules: Guide classes (or `functools.partial`s of them) by name pattern with shell wildcards. A site takes the
            guide of the last pattern that matches its name.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: A site is matched by no pattern, or a pattern covers no site.

    Example:
        >>> import functools, pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> model = ps.BayesianModel(net, prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = PerSite(model, {"*": ps.guides.Additive,
        ...                         "0.*": functools.partial(ps.guides.VarianceOnly, family="uniform")})
        >>> type(guide.site_distribution("0.weight").base_dist).__name__
        'SymmetricUniform'
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Callable[..., Guide]],
        *,
        sites: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        names = list(sites_of(model, "PerSite") if sites is None else sites)
        matches = {name: [p for p in rules if fnmatch.fnmatchcase(name, p)] for name in names}
        uncovered = [name for name, patterns in matches.items() if not patterns]
        if uncovered:
            raise ValueError(
                f"PerSite: no pattern of {name_list(rules)} matches site(s) {name_list(uncovered)}; add a pattern '*'"
                f"{see('how-to/choose_guide')}"
            )
        covered = {pattern: [name for name in names if matches[name][-1] == pattern] for pattern in rules}
        unused = [pattern for pattern, names in covered.items() if not names]
        if unused:
            raise ValueError(
                f"PerSite: pattern(s) {name_list(unused)} cover no site of {name_list(names)}"
                f"{see('how-to/choose_guide')}"
            )
        self._join([make(model, sites=covered[pattern]) for pattern, make in rules.items()], names)

    @classmethod
    def of(cls, parts: Iterable[Guide], *, sites: Iterable[str]) -> PerSite:
        """A guide composed of existing guides.

        Args:
            parts: The guides, which cover disjoint sets of sites.
            sites: Names of all sites, in the order in which a draw lists them.

        Returns:
            A guide that holds the parts themselves, not copies.

        Raises:
            ValueError: A site is covered by no part or by two, or a part covers a site that is not in `sites`.
        """
        guide = cls.__new__(cls)
        nn.Module.__init__(guide)
        guide._join(list(parts), list(sites))
        return guide

    def _join(self, parts: list[Guide], names: list[str]) -> None:
        covered = [name for part in parts for name in part.site_names]
        if sorted(covered) != sorted(names):
            raise ValueError(
                f"PerSite: expected parts that cover each of {name_list(names)} once, got {name_list(covered)}"
            )
        self.site_names = tuple(names)
        own = [found for part in parts if (found := statistics_of(part)) is not None]
        for part in parts:
            if statistics_of(part) is not None:
                del part.own_statistics
        if own:  # of one network, as they come from one trained guide
            self.own_statistics = own[0]
        self.parts = nn.ModuleList(parts)
        self._part_of = {name: index for index, part in enumerate(parts) for name in part.site_names}

    @property
    def _layers_with_statistics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part._layers_with_statistics))  # type: ignore[union-attr]

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The sites that are weights of the network, without random scales of priors and likelihoods."""
        weights = {name for part in self.parts for name in part.weight_names}  # type: ignore[union-attr]
        return tuple(name for name in self.site_names if name in weights)

    @property
    def site_shapes(self) -> dict[str, torch.Size]:
        """The shape of each site."""
        return {name: self._part(name).site_shapes[name] for name in self.site_names}

    def site_distribution(self, site: str) -> Distribution:
        """The present distribution of one site, with all its axes declared as one event.

        Args:
            site: The site's name.

        Returns:
            A Pyro distribution whose event shape is the site's shape.

        Raises:
            ValueError: The guide has no such site.
        """
        return self._part(site).site_distribution(site)

    def parameters_for(self, site: str) -> dict[str, nn.Parameter]:
        """The variational parameters of one site, by name.

        Args:
            site: The site's name.

        Returns:
            The parameters themselves, not copies.

        Raises:
            ValueError: The guide has no such site.
        """
        return self._part(site).parameters_for(site)

    def _part(self, site: str) -> Guide:
        if site not in self._part_of:
            raise ValueError(f"guide PerSite: no site {site!r}; it has {name_list(self._part_of)}")
        part: Guide = self.parts[self._part_of[site]]  # type: ignore[assignment]
        return part

    @property
    def has_density(self) -> bool:
        """Whether draws have a density, without which there is no ELBO."""
        return all(part.has_density for part in self.parts)

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
            ValueError: They were never computed, or a part has other ones at each draw.
        """
        announce_buffers_of(self)
        for part in self.parts:
            part.announce_statistics()  # type: ignore[operator]

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name."""
        drawn: dict[str, Tensor] = {}
        for part in self.parts:
            drawn.update(part.draw())  # type: ignore[operator]
        return {name: drawn[name] for name in self.site_names}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parts' parameters by learning rate, `"main"` and `"alpha"`; see `Guide.parameter_groups`."""
        groups: dict[str, list[nn.Parameter]] = {"main": [], "alpha": []}
        for part in self.parts:
            for key, parameters in part.parameter_groups().items():  # type: ignore[operator]
                groups[key].extend(parameters)
        return groups

    def zero_mean_gap(self) -> ZeroMeanGap:
        """The cost in nats of setting all means to zero, over all parts; see `ZeroMeanGap`.

        Returns:
            The gap, site by site.

        Raises:
            TypeError: A weight's distribution is neither normal nor of zero mean; its site is named.
        """
        return zero_mean_gap(self)

"""A set of weight draws of any origin as a guide: those of MCMC, or of somebody else's sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count, check_finite, name_list
from pyrostoch._manual import see
from pyrostoch.guides.base import Guide, sites_of
from pyrostoch.guides.collecting import Collecting
from pyrostoch.guides.delta import Delta
from pyrostoch.guides.per_site import PerSite
from pyrostoch.guides.sets import GuideSet
from pyrostoch.guides.starts import Start
from pyrostoch.guides.statistics import (
    Statistics,
    announce_buffers_of,
    layers_with_statistics,
    running_buffers,
    statistics_of,
)
from pyrostoch.guides.temperature import carry_temperatures
from pyrostoch.sites import Site, announce_parameters, site_key

__all__ = ["Samples"]


class Samples(Collecting, GuideSet):
    """Draws of the weights, whatever made them, as a guide: each draw of the guide is one of them.

    The draws have no density, so that there is no ELBO: `decompose` gives the mean log joint density, and says so.

    A network with batch normalization has other running statistics with each draw: `fit_statistics` computes them, and
    without them draws are refused. Draws that were made with the statistics as they are, with the network in evaluation
    mode, share them.

    Args:
        model: The model.
        values: Draws of every site, (K, *shape), by the site's name.

    Raises:
        ValueError: A site is missing or unknown, its shape is another one, the numbers of draws differ, or a value is
            not finite or outside of the site's support.

    Example:
        >>> import torch, pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = Samples(model, {"weight": torch.randn(100, 1, 2)})
        >>> len(guide), guide()["weight"].shape
        (100, torch.Size([1, 2]))
    """

    #: Draws have no density, and therefore no ELBO.
    has_density = False

    count: Tensor

    def __init__(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        sites = sites_of(model, "Samples")
        if set(values) != set(sites):
            missing, unknown = sorted(set(sites) - set(values)), sorted(set(values) - set(sites))
            raise ValueError(
                f"guide Samples: expected draws of {name_list(sites)}; missing {name_list(missing) or 'none'}, unknown "
                f"{name_list(unknown) or 'none'}{see('how-to/ensembles')}"
            )
        counts = {len(value) if value.dim() else 0 for value in values.values()}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"guide Samples: expected as many draws of each site, got {sorted(counts)}")
        for name, site in sites.items():
            value = values[name]
            if value.shape[1:] != site.init.shape:
                raise ValueError(
                    f"guide Samples: site {name!r}: expected draws of shape (K, *{tuple(site.init.shape)}), got "
                    f"{tuple(value.shape)}"
                )
            check_finite(f"guide Samples: site {name!r}", value)
            if not bool(site.support.check(value).all()):
                raise ValueError(f"guide Samples: site {name!r}: expected values within {site.support}")
        size = counts.pop()
        self._hold(sites, {name: values[name].detach().to(site.init).clone() for name, site in sites.items()}, size)
        net = getattr(model, "net", None)
        if any(module.training for module in layers_with_statistics(net).values()):
            self.make_statistics(net)

    def _hold(self, sites: Mapping[str, Site], values: Mapping[str, Tensor], count: int) -> None:
        self.site_names = tuple(sites)
        self.weight_names = tuple(name for name, site in sites.items() if site.role != "scale")
        self.point: Delta | None = None
        self.register_buffer("count", torch.tensor(count))
        self._values = nn.Module()
        for name, value in values.items():
            self._values.register_buffer(site_key(name), value)

    def make_statistics(self, net: object) -> None:
        """Make room for the running statistics of all draws, unless there is some; `fit_statistics` fills it.

        Args:
            net: The network.
        """
        buffers = running_buffers(net)
        if buffers and statistics_of(self) is None:
            values = {name: value.expand(self.size, *value.shape) for name, value in buffers.items()}
            self.own_statistics = Statistics(values, layers_with_statistics(net))

    @classmethod
    def chain(cls, model: nn.Module, size: int, *, init_loc: Start | Guide | None = None) -> Samples:
        """A guide that keeps the draws of a Markov chain, which `fit(sampler=)` runs; empty until then.

        Args:
            model: The model.
            size: Number of draws that it will have.
            init_loc: Where the chain starts, as for `Delta`.

        Raises:
            ValueError: As `Delta`.
        """
        guide, sites = cls.__new__(cls), sites_of(model, "Samples")
        GuideSet.__init__(guide)
        size = check_count("Samples size", size)
        point = Delta(model, init_loc=init_loc)
        guide._hold(sites, {name: site.init.new_zeros((size, *site.init.shape)) for name, site in sites.items()}, 0)
        guide.point = point
        guide.make_statistics(getattr(model, "net", None))
        return guide

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, guide: nn.Module, size: int) -> Samples:
        """Keep some draws of another guide; of an ensemble, as many of each member.

        `fit_statistics` then computes running statistics for each, which SWAG needs with batch normalization.

        Args:
            model: The model.
            guide: The guide: `Swag`, an `Ensemble`, or any other whose draws do not depend on the data.
            size: Number of draws.

        Raises:
            TypeError: The guide is of another kind.

        Example:
            >>> import pyrostoch as ps
            >>> model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(),
            ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
            >>> len(Samples.of(model, ps.guides.Additive(model), 30))
            30
        """
        size = check_count("Samples size", size)
        parts: list[Any] = list(getattr(guide, "members", [guide]))
        if not all(isinstance(part, (Guide, PerSite)) for part in parts):
            raise TypeError(
                f"guide Samples.of: expected a guide of this library whose draws do not depend on the data, such as "
                f"Swag or Ensemble, got {type(guide).__name__}{see('how-to/ensembles')}"
            )
        drawn = [parts[number % len(parts)].draw() for number in range(size)]
        found = cls(model, {name: torch.stack([draw[name] for draw in drawn]) for name in drawn[0]})
        found.make_statistics(getattr(model, "net", None))
        carry_temperatures(found, guide)
        return found

    @classmethod
    def from_mcmc(cls, mcmc: Any, model: nn.Module) -> Samples:
        """The draws of a finished run of `pyro.infer.MCMC`, all chains together.

        Args:
            mcmc: The run.
            model: The model that it was run on.

        Raises:
            ValueError: The run has not drawn all sites of the model.
        """
        drawn = mcmc.get_samples()
        return cls(model, {name: drawn[name] for name in sites_of(model, "Samples") if name in drawn})

    @property
    def size(self) -> int:
        """Number of draws that the guide has room for."""
        return len(self._values.get_buffer(site_key(self.site_names[0]))) if self.site_names else 1

    def values(self, site: str) -> Tensor:
        """All draws of a site, (K, *shape).

        Args:
            site: Name of the site.
        """
        if site not in self.site_names:
            raise ValueError(f"guide Samples: no site {site!r}; it has {name_list(self.site_names)}")
        return self._values.get_buffer(site_key(site))[: len(self)]

    def __len__(self) -> int:
        return int(self.count)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide: one of the draws; while `fit` runs the chain, the point where it is.

        Args:
            args: The model's arguments, ignored.
            kwargs: The same.
        """
        if self._collecting and self.point is not None:
            announce_parameters(self, "guide")
            return self.point.draw()
        if not len(self):
            raise ValueError(
                "guide Samples: expected draws, got none yet; run the chain by fit(model, guide, data, "
                f"sampler=SGHMC()){see('how-to/ensembles')}"
            )
        return super().forward(*args, **kwargs)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the point where the chain is to the draws."""
        if self.point is None or len(self) == self.size:
            raise ValueError(f"guide Samples: there is no room for more than {self.size} draws")
        for name in self.site_names:
            self._values.get_buffer(site_key(name))[len(self)] = self.point.parameters_for(name)["loc"]
        self.count += 1

    def draw_member(self, index: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One of the draws, as Pyro sites.

        Args:
            index: Its number.
            args: The model's arguments, ignored.
            kwargs: The same.
        """
        announce_buffers_of(self, index)
        drawn = {}
        for name in self.site_names:
            value = self.values(name)[index]
            drawn[name] = pyro.sample(name, dist.Delta(value).to_event(value.dim()))
        return drawn

    def extra_repr(self) -> str:
        """The number of draws that it has room for."""
        return f"size={self.size}"

"""The start of guides of normal weights: a mean and a standard deviation for each weight."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from pyrostoch._manual import see
from pyrostoch.guides.base import Guide
from pyrostoch.guides.collecting import Collecting
from pyrostoch.guides.starts import Start, start_value
from pyrostoch.guides.statistics import Statistics, statistics_of
from pyrostoch.guides.temperature import carry_temperatures
from pyrostoch.sites import Site

__all__ = ["NormalStart"]


class NormalStart(Guide):
    """Base class of guides whose weights start as independent normal ones; see `Guide` for what a subclass adds.

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means: a number, a function of the site, or a trained guide, which gives its own; by default
            the network's values, which are its initialization or its trained weights. Running statistics that
            belong to a guide are copied with its means.
        init_scale: Initial standard deviations: a number, a function of the site, or a trained guide.
        sites: Names of the sites covered; all by default.

    Example:
        >>> import pyrostoch as ps
        >>> issubclass(ps.guides.Additive, NormalStart)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        init_loc: Start | Guide | None = None,
        init_scale: Start | Guide = 1e-2,
        sites: Iterable[str] | None = None,
    ) -> None:
        self._starts = {"init_loc": _start(init_loc, "mean"), "init_scale": _start(init_scale, "stddev")}
        super().__init__(model, sites=sites)
        self._starts.clear()  # they may hold another guide, or functions that cannot be pickled
        carry_temperatures(self, init_loc, init_scale)
        own = statistics_of(init_loc)
        if own is not None:
            self.own_statistics = copy.deepcopy(own)
        elif isinstance(init_loc, Collecting) and self._layers_with_statistics:
            self.own_statistics = Statistics({}, self._layers_with_statistics)  # those of a mean of iterates

    def normal_start(self, site: Site) -> dict[str, Tensor]:
        """`loc` and `log_scale` of independent normal weights, in the site's shape.

        Args:
            site: The site.

        Raises:
            ValueError: A standard deviation is not positive, or a shape does not fit.
        """
        shape = site.init.shape
        scale = start_value(self._starts["init_scale"], site, shape, "init_scale")
        if not bool((scale > 0).all()):
            raise ValueError(
                f"init_scale at site {site.name!r}: expected positive standard deviations, got {scale.min().item():g}"
            )
        start = self._starts["init_loc"]
        loc = site.init if start is None else start_value(start, site, shape, "init_loc")
        return {"loc": loc, "log_scale": scale.log()}


def _start(start: Any, statistic: str) -> Any:
    """A start as it is, or as a function of the site where it is a guide."""
    return partial(_of_guide, start, statistic) if hasattr(start, "site_distribution") else start


def _of_guide(guide: Any, statistic: str, site: Site) -> Tensor:
    try:
        value: Tensor = getattr(guide.site_distribution(site.name), statistic)
    except NotImplementedError as error:
        raise ValueError(
            f"site {site.name!r}: expected a guide whose distributions have a mean and a standard deviation to start "
            f"from, got {type(guide).__name__}{see('how-to/choose_guide')}"
        ) from error
    return value.detach()

"""The start of guides of normal weights: a mean and a standard deviation for each weight."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from pyrostoch.guides.base import Guide
from pyrostoch.guides.starts import Start, start_value
from pyrostoch.sites import Site

__all__ = ["NormalStart"]


class NormalStart(Guide):
    """Base class of guides whose weights start as independent normal ones; see `Guide` for what a subclass adds.

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means, a number or a function of the site; by default the network's own values, which are its
            initialization or its trained weights.
        init_scale: Initial standard deviations, a number or a function of the site.
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
        init_loc: Start | None = None,
        init_scale: Start = 1e-2,
        sites: Iterable[str] | None = None,
    ) -> None:
        self._init_loc, self._init_scale = init_loc, init_scale
        super().__init__(model, sites=sites)

    def normal_start(self, site: Site) -> dict[str, Tensor]:
        """`loc` and `log_scale` of independent normal weights, in the site's shape.

        Args:
            site: The site.

        Raises:
            ValueError: A standard deviation is not positive, or a shape does not fit.
        """
        shape = site.init.shape
        scale = start_value(self._init_scale, site, shape, "init_scale")
        if not bool((scale > 0).all()):
            raise ValueError(
                f"init_scale at site {site.name!r}: expected positive standard deviations, got {scale.min().item():g}"
            )
        loc = site.init if self._init_loc is None else start_value(self._init_loc, site, shape, "init_loc")
        return {"loc": loc, "log_scale": scale.log()}

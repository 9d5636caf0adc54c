"""The mean-field Gaussian guide: a mean and a standard deviation for every weight."""

from __future__ import annotations

from collections.abc import Iterable

from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch.guides.base import Guide
from pyrostoch.guides.starts import Start, start_value
from pyrostoch.sites import Site

__all__ = ["Additive"]


class Additive(Guide):
    r"""$w_{ij} \sim N(\mu_{ij}, \sigma_{ij}^2)$: a mean-field Gaussian posterior, "Bayes by backprop".

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means, a number or a function of the site; by default the network's own values, which are its
            initialization or its trained weights.
        init_scale: Initial standard deviations, a number or a function of the site.
        sites: Names of the sites covered; all by default.

    References:
        Graves, "Practical variational inference for neural networks", 2011; Blundell, Cornebise, Kavukcuoglu,
        Wierstra, "Weight uncertainty in neural networks", 2015.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> Additive(model, init_scale=0.01).site_distribution("weight").base_dist.stddev[0]
        tensor([0.0100, 0.0100, 0.0100], grad_fn=<SelectBackward0>)
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

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc` and `log_scale`, in the weight's shape."""
        shape = site.init.shape
        scale = start_value(self._init_scale, site, shape, "init_scale")
        if not bool((scale > 0).all()):
            raise ValueError(
                f"init_scale at site {site.name!r}: expected positive standard deviations, got {scale.min().item():g}"
            )
        loc = site.init if self._init_loc is None else start_value(self._init_loc, site, shape, "init_loc")
        return {"loc": loc, "log_scale": scale.log()}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The normal distribution N(loc, exp(log_scale)^2)."""
        return dist.Normal(parameters["loc"], parameters["log_scale"].exp())

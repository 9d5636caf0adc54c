"""Guides of variational dropout: the standard deviation is a multiple of the mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.distributions import MultiplicativeNormal
from pyrostoch.guides.base import Guide
from pyrostoch.guides.starts import Start, nudge_from_zero, start_value
from pyrostoch.model import Site

__all__ = ["LayerwiseAlpha", "NeuronwiseAlpha", "WeightwiseAlpha"]


#: Log alpha counts only within these bounds, as in the published codes. Where nothing but the KL acts on it (weights of
#: an input that is always zero) Adam would drive it on until the variance overflows; beyond them it changes no KL.
BOUND = 20.0


class _Alpha(Guide):
    """N(mu, alpha mu^2) with some sharing of alpha."""

    def __init__(
        self,
        model: nn.Module,
        *,
        init_loc: Start | None = None,
        init_log_alpha: Start = -5.0,
        sites: Iterable[str] | None = None,
    ) -> None:
        self._init_loc, self._init_log_alpha = init_loc, init_log_alpha
        super().__init__(model, sites=sites)

    def alpha_shape(self, site: Site) -> torch.Size:
        """Shape of log alpha, broadcasting to the weight's."""
        raise TypeError(f"{type(self).__name__} must implement alpha_shape(site)")

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc` in the weight's shape and `log_alpha` in its own."""
        log_alpha = start_value(self._init_log_alpha, site, self.alpha_shape(site), "init_log_alpha")
        if bool((log_alpha.abs() > BOUND).any()):
            raise ValueError(
                f"init_log_alpha at site {site.name!r}: expected values from {-BOUND:g} to {BOUND:g}, between which "
                f"log alpha is held, got {float(log_alpha[log_alpha.abs() > BOUND].flatten()[0]):g}"
            )
        loc = site.init if self._init_loc is None else start_value(self._init_loc, site, site.init.shape, "init_loc")
        return {
            "loc": nudge_from_zero(loc),
            "log_alpha": log_alpha,
        }

    def distribution(self, site: str, **parameters: Tensor) -> Any:
        """N(loc, alpha loc^2), log alpha held within its bounds."""
        return MultiplicativeNormal(parameters["loc"], parameters["log_alpha"].clamp(-BOUND, BOUND))


class WeightwiseAlpha(_Alpha):
    r"""$w_{ij} \sim N(\mu_{ij}, \alpha_{ij}\mu_{ij}^2)$: an alpha for every weight, sparse variational dropout.

    Args:
        model: A `BayesianModel`.
        init_loc: Starting means; the network's own values by default.
        init_log_alpha: Starting log alpha: a number, or a function of the site; from -20 to 20, where it is held.
        sites: Names of the sites covered; all by default.

    References:
        Kingma, Salimans, Welling 2015; Molchanov, Ashukha, Vetrov 2017.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> [tuple(p.shape) for p in WeightwiseAlpha(model).parameters()]
        [(2, 3), (2, 3)]
    """

    def alpha_shape(self, site: Site) -> torch.Size:
        """The weight's own shape."""
        return site.init.shape


class NeuronwiseAlpha(_Alpha):
    r"""$w_{ij} \sim N(\mu_{ij}, \alpha_i \mu_{ij}^2)$: an alpha for every output neuron (of a convolution: channel).

    Args:
        model: A `BayesianModel`.
        init_loc: Starting means; the network's own values by default.
        init_log_alpha: Starting log alpha: a number, or a function of the site; from -20 to 20, where it is held.
        sites: Names of the sites covered; all by default.

    References:
        Kingma, Salimans, Welling 2015; Neklyudov, Molchanov, Ashukha, Vetrov 2018 (arXiv 1803.03764).

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Conv2d(3, 8, 5), prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> [tuple(p.shape) for p in NeuronwiseAlpha(model).parameters()]
        [(8, 3, 5, 5), (8, 1, 1, 1)]
    """

    def alpha_shape(self, site: Site) -> torch.Size:
        """One entry along the output axis."""
        shape = [1] * site.init.dim()
        if shape:
            shape[site.out_axis] = site.init.shape[site.out_axis]
        return torch.Size(shape)


class LayerwiseAlpha(_Alpha):
    r"""$w_{ij} \sim N(\mu_{ij}, \alpha\mu_{ij}^2)$: one alpha a weight tensor.

    The least flexible of the family, and the one that turns into a variance network most readily.

    Args:
        model: A `BayesianModel`.
        init_loc: Starting means; the network's own values by default.
        init_log_alpha: Starting log alpha: a number, or a function of the site; from -20 to 20, where it is held.
        sites: Names of the sites covered; all by default.

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks", 2018 (arXiv 1803.03764).

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> [tuple(p.shape) for p in LayerwiseAlpha(model).parameters()]
        [(2, 3), (1, 1)]
    """

    def alpha_shape(self, site: Site) -> torch.Size:
        """A single entry."""
        return torch.Size([1] * site.init.dim())

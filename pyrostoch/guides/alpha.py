"""Guides of variational dropout: the variance of a weight is alpha times its squared mean."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch.distributions import MultiplicativeNormal
from pyrostoch.guides.base import Guide
from pyrostoch.guides.starts import Start, nudge_from_zero, start_value
from pyrostoch.sites import Site

__all__ = ["LayerwiseAlpha", "NeuronwiseAlpha", "WeightwiseAlpha"]

#: Log alpha is clamped to [-BOUND, BOUND], as in the published code. Where only the KL acts on log alpha (weights of an
#: input that is always zero), Adam would increase it until the variance overflows; beyond the bounds the KL does not
#: change.
BOUND = 20.0


class _Alpha(Guide):
    """N(mu, alpha mu^2); subclasses choose by `alpha_shape` which weights share an alpha."""

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
        """Shape of log alpha, which broadcasts to the weight's."""
        raise TypeError(f"{type(self).__name__} must implement alpha_shape(site)")

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc` in the weight's shape, `log_alpha` in the shape that `alpha_shape` gives."""
        log_alpha = start_value(self._init_log_alpha, site, self.alpha_shape(site), "init_log_alpha")
        if bool((log_alpha.abs() > BOUND).any()):
            raise ValueError(
                f"init_log_alpha at site {site.name!r}: expected values from {-BOUND:g} to {BOUND:g}, to which "
                f"log alpha is clamped, got {float(log_alpha[log_alpha.abs() > BOUND].flatten()[0]):g}"
            )
        loc = site.init if self._init_loc is None else start_value(self._init_loc, site, site.init.shape, "init_loc")
        return {"loc": nudge_from_zero(loc), "log_alpha": log_alpha}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The normal distribution N(loc, alpha loc^2), with log alpha clamped to [-20, 20]."""
        return MultiplicativeNormal(parameters["loc"], parameters["log_alpha"].clamp(-BOUND, BOUND))


class WeightwiseAlpha(_Alpha):
    r"""$w_{ij} \sim N(\mu_{ij}, \alpha_{ij}\mu_{ij}^2)$: one alpha per weight, sparse variational dropout.

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means, a number or a function of the site; the network's own values by default.
        init_log_alpha: Initial log alpha: a number, or a function of the site. It is clamped to [-20, 20] at all times.
        sites: Names of the sites covered; all by default.

    References:
        Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", 2015; Molchanov,
        Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", 2017.

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
    r"""$w_{ij} \sim N(\mu_{ij}, \alpha_i \mu_{ij}^2)$: one alpha per output neuron or channel.

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means, a number or a function of the site; the network's own values by default.
        init_log_alpha: Initial log alpha: a number, or a function of the site. It is clamped to [-20, 20] at all times.
        sites: Names of the sites covered; all by default.

    References:
        Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", 2015; Neklyudov,
        Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations", 2018 (arXiv
        1803.03764).

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
    r"""$w_{ij} \sim N(\mu_{ij}, \alpha\mu_{ij}^2)$: one alpha per weight tensor.

    The least flexible of the alpha guides, and the one that most readily becomes a variance network (large alpha).

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means, a number or a function of the site; the network's own values by default.
        init_log_alpha: Initial log alpha: a number, or a function of the site. It is clamped to [-20, 20] at all times.
        sites: Names of the sites covered; all by default.

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations",
        2018 (arXiv 1803.03764).

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

"""The mean-field Gaussian guide: a mean and a standard deviation for every weight."""

from __future__ import annotations

from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.sites import Site

__all__ = ["Additive"]


class Additive(NormalStart):
    r"""$w_{ij} \sim N(\mu_{ij}, \sigma_{ij}^2)$: a mean-field Gaussian posterior, "Bayes by backprop".

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means: a number, a function of the site, or a trained guide; by default the network's own
            values, which are its initialization or its trained weights.
        init_scale: Initial standard deviations: a number, a function of the site, or a trained guide.
        sites: Names of the sites covered; all by default.

    References:
        Graves, "Practical variational inference for neural networks", 2011; Blundell, Cornebise, Kavukcuoglu,
        Wierstra, "Weight uncertainty in neural networks", 2015.

    Example:
        >>> import torch, pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(3, 2), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> Additive(model, init_scale=0.01).site_distribution("weight").base_dist.stddev[0]
        tensor([0.0100, 0.0100, 0.0100], grad_fn=<SelectBackward0>)
    """

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc` and `log_scale`, in the weight's shape."""
        return self.normal_start(site)

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The normal distribution N(loc, exp(log_scale)^2)."""
        return dist.Normal(parameters["loc"], parameters["log_scale"].exp())

"""A normal guide with a full covariance of the entries of each weight, for small ones."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from pyrostoch.distributions import FullNormal
from pyrostoch.guides.joint import check_memory, positive_tril, refuse_constants
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.sites import Site

__all__ = ["FullCovariance"]


class FullCovariance(NormalStart):
    r"""All entries of a site have a normal distribution with a full covariance $L L^\top$; sites are independent.

    A site of n weights has n^2 numbers for its covariance, so that this is for small ones: at 1,000 weights it takes
    4 MB, at 100,000 it takes 40 GB, and what does not fit into memory is refused before it is made.

    Local reparameterization draws a weight for each example in linear layers, exactly; in convolutions all examples
    share a draw. Moments of linear layers are exact. The KL divergence to a normal prior is exact.

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means: a number, a function of the site, or a trained guide; by default the network's values.
        init_scale: Initial standard deviations: a number, a function of the site, or a trained guide.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: A covariance does not fit into memory, or some entries of a site are constant.

    References:
        Barber, Bishop, "Ensemble learning in Bayesian neural networks", 1998.

    Example:
        >>> import torch, pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(3, 2), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = FullCovariance(model)
        >>> guide.site_distribution("weight").covariance.shape
        torch.Size([6, 6])
    """

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc`, in the weight's shape, and `tril`, (n, n), of which the entries above the diagonal have no effect."""
        refuse_constants(site, "FullCovariance")
        check_memory(site, site.init.numel() ** 2, "FullCovariance")
        start = self.normal_start(site)
        return {"loc": start["loc"], "tril": start["log_scale"].flatten().diag_embed()}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The normal distribution of the site's entries, an event of the weight's shape."""
        return FullNormal(parameters["loc"], positive_tril(parameters["tril"]))

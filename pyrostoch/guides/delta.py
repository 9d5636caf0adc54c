"""A guide that is a point: maximum a posteriori estimation."""

from __future__ import annotations

from collections.abc import Iterable

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.guides.base import Guide
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.guides.starts import Start
from pyrostoch.sites import Site, site_key

__all__ = ["Delta", "check_maximum", "point"]


class Delta(NormalStart):
    r"""All weights at one point: training it finds the maximum a posteriori (MAP) estimate.

    $$ \max_w \log p(y \mid x, w) + \log p(w). $$

    It is the plain network with the prior as weight decay, in the form of a guide. A point has no density, so that
    there is no ELBO: `fit` and `decompose` give this log joint density, and say so.

    Args:
        model: A `BayesianModel`.
        init_loc: Initial weights: a number, a function of the site, or a trained guide, which gives its means; by
            default the network's own values.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: The scale of a prior is random or fitted, so that the density grows without bound, or a prior is
            improper.

    References:
        MacKay, "A practical Bayesian framework for backpropagation networks", 1992.

    Example:
        >>> import torch, pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> model = ps.BayesianModel(nn.Linear(1, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> x = torch.linspace(-1, 1, 10)[:, None]
        >>> guide = Delta(model)
        >>> found = ps.fit(model, guide, (x, 2 * x), epochs=50, lr=0.1, seed=0, progress=False)
        >>> ps.decompose(model, guide, (x, 2 * x)).log_joint > 0
        True
    """

    #: A point has no density, and therefore no ELBO.
    has_density = False

    def __init__(
        self, model: nn.Module, *, init_loc: Start | Guide | None = None, sites: Iterable[str] | None = None
    ) -> None:
        super().__init__(model, init_loc=init_loc, sites=sites)
        check_maximum(self, model)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc`, in the weight's shape."""
        return {"loc": point(self, site)}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The point, an elementwise distribution."""
        return dist.Delta(parameters["loc"])


def check_maximum(guide: Guide, model: nn.Module) -> None:
    """Raise an error for a model whose joint density has no maximum.

    Args:
        guide: The guide that looks for it.
        model: The model.

    Raises:
        ValueError: The scale of a prior is random or fitted.
    """
    random = [name for name in guide.site_names if guide._kinds[name] != "real"]
    priors = getattr(model, "priors", {})
    fitted = [
        name
        for name in guide.site_names
        if site_key(name) in priors and any(p.requires_grad for p in priors[site_key(name)].parameters())
    ]
    if random or fitted:
        raise ValueError(
            f"guide {type(guide).__name__}: expected priors of fixed scale, but that of "
            f"{name_list([*random, *fitted])} is {'random' if random else 'fitted'}: as a scale shrinks together with "
            "what it scales, the joint density grows without bound, and there is no maximum. Give the prior a fixed "
            "scale (which fit_laplace(prior_precision='marginal') finds), or take another guide by PerSite"
            f"{see('how-to/ensembles')}"
        )


def point(guide: NormalStart, site: Site) -> Tensor:
    """Where a guide that looks for a maximum starts at a site.

    Args:
        guide: The guide.
        site: The site.

    Raises:
        ValueError: The prior is improper.
    """
    if site.improper:
        raise ValueError(
            f"guide {type(guide).__name__}: expected a prior whose density has a maximum at site {site.name!r}, got "
            f"{site.prior}, which is improper; give it a proper one, such as Normal{see('how-to/ensembles')}"
        )
    return guide.normal_start(site)["loc"]

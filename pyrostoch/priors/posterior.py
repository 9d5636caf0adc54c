"""A posterior as the prior of what comes next: the present values of a guide, site by site."""

from __future__ import annotations

from typing import Any, cast

import torch
from pyro.distributions import Delta
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.distributions import PartlyFixed
from pyrostoch.priors.base import Prior, tensors_of
from pyrostoch.priors.by_name import PriorsByName, SitePrior
from pyrostoch.protocols import SiteGuide

__all__ = ["from_guide"]


def from_guide(guide: SiteGuide) -> PriorsByName:
    r"""The present posterior of each weight as the prior of the parameter of the same name.

    $$ p_{t}(w) = q_{t-1}(w), \qquad q_t = \arg\min_q \; KL(q \,\|\, q_{t-1}) - E_q[\log p(y_t \mid x_t, w)] $$

    is variational continual learning: the posterior after t - 1 parts of the data is the prior for part t. The values
    are taken now and copied: training the guide further, or moving it, changes nothing. `prior=guide` means the same.

    Given alone it is for all weights of the guide, biases among them where it has any. The network must have these
    parameters in the same shapes, and no weights besides; a new head needs a rule of its own:
    `{"head.*": priors.Normal(), "body.*": priors.from_guide(guide)}`.

    A random scale of a prior (`Hierarchical`) or of a likelihood's noise is no weight and is not taken over: the prior
    of a weight is its own posterior, whatever the scale was. The posterior of the noise may be given to the likelihood:
    `likelihoods.Gaussian(guide.site_distribution("likelihood.scale"))`.

    Entries that torch holds constant (a padding row) stay constant, and must be so in the new network.

    Args:
        guide: A guide with `site_distribution` and `weight_names`: any of `pyrostoch.guides`, or one with the same
            methods.

    Returns:
        A rule for `BayesianModel(prior=)`, alone or in a dictionary.

    Raises:
        TypeError: It is no such guide.
        ValueError: The guide has no weights, or its posterior joins sites. Where the posterior of a weight is discrete,
            a single point, bounded or not finite, the error comes when the model is made, and only for a weight that
            the rule is for.

    Example:
        >>> import pyrostoch as ps
        >>> def model(prior):
        ...     return ps.BayesianModel(nn.Linear(3, 1), prior=prior, likelihood=ps.likelihoods.Gaussian(), num_data=9)
        >>> guide = ps.guides.Additive(model(ps.priors.Normal()))
        >>> later = model(from_guide(guide))
        >>> later.sites["weight"].prior
        'from_guide(Normal)'
        >>> ps.decompose(later, guide, (torch.zeros(9, 3), torch.zeros(9, 1))).kl
        0.0

    References:
        Nguyen, Li, Bui, Turner, "Variational continual learning", 2018; Opper, Winther, "A Bayesian approach to on-line
        learning", 1998.
    """
    kind = type(guide).__name__
    if isinstance(guide, type):
        raise TypeError(f"prior: expected a guide, got the class {guide.__name__}; use a trained instance")
    if not callable(getattr(guide, "site_distribution", None)) or not hasattr(guide, "weight_names"):
        raise TypeError(
            f"prior: expected a prior or a guide with site_distribution(site) and weight_names, got {kind}. Give the "
            "values of other guides by name, such as {'0.weight': priors.Normal(loc, scale)}"
            f"{see('how-to/continue_training')}"
        )
    parts = list(guide.modules()) if isinstance(guide, nn.Module) else [guide]
    joined = [type(part).__name__ for part in parts if getattr(part, "ties_sites", False)]
    if joined:
        raise ValueError(
            f"prior: the posterior of the guide {joined[0]} joins sites {name_list(guide.weight_names)}: a draw of one "
            "depends on another's; a prior draws each site apart, so what joins them would be lost. Use a guide whose "
            f"sites are independent, such as Additive{see('how-to/continue_training')}"
        )
    if not guide.weight_names:
        raise ValueError(f"prior: the guide {kind} has no weights, and so no posterior that could be a prior")
    priors: dict[str, Prior | str] = {}
    shapes: dict[str, torch.Size] = {}
    with torch.no_grad():
        for site in guide.weight_names:
            distribution, constant = _elementwise(guide.site_distribution(site))
            shapes[site] = distribution.batch_shape + distribution.event_shape
            priors[site] = _fault(distribution, constant) or SitePrior(distribution, constant)
    return PriorsByName(f"guide {kind}", priors, shapes, all_named=True)


def _elementwise(distribution: Any) -> tuple[Distribution, Tensor | None]:
    """A site's distribution without declared events, and which of its entries are constant, if any are."""
    constant: Tensor | None = None
    while isinstance(distribution, (Independent, PartlyFixed)):
        if isinstance(distribution, PartlyFixed):
            constant = distribution.fixed.mask
        distribution = distribution.base_dist
    return distribution, constant


def _fault(distribution: Distribution, constant: Tensor | None) -> str | None:
    """Why a distribution cannot be the prior of what comes next, and what to do; `None` if it can."""
    has, other = f"has a posterior {type(distribution).__name__} that", "give it another prior by a rule of its own"
    try:
        support = cast(Any, distribution.support)
    except NotImplementedError:
        return f"{has} does not say on which values it lies: give its class a `support`, such as constraints.real"
    if support.is_discrete or _says_discrete(distribution):
        return (
            f"{has} is discrete: another posterior has no finite KL to it, unless it has the same few values. Use "
            "priors.Grid, SymmetricBinomial or UniformMultinomial for such a guide again, or a continuous guide"
        )
    if not getattr(distribution, "has_density", True):
        return f"{has} has no density of values that it has not drawn; {other}"
    if isinstance(distribution, Delta):
        return f"{has} is a single point, to which every other has an infinite KL; {other}, or priors.around(net, 0.1)"
    values = tensors_of(distribution)
    wrong = [value for value in values if not bool(torch.isfinite(value).all())]
    if wrong:
        return f"{has} is not finite, in a tensor of shape {tuple(wrong[0].shape)}; train the guide again"
    far = torch.full(distribution.batch_shape + distribution.event_shape, 1e6)
    if not bool(support.check(far if not values else far.to(values[0])).all()):
        return f"{has} is bounded: no later posterior could leave its interval; {other}"
    if isinstance(distribution, Normal):
        points = distribution.scale == 0
        points = points if constant is None else points & ~constant
        if bool(points.any()):
            return (
                f"{has} has a standard deviation of 0 at {int(points.sum())} of {points.numel()} entries, to which "
                f"every other has an infinite KL; {other}"
            )
    return None


def _says_discrete(distribution: Distribution) -> bool:
    """Whether the class says that it is discrete, while the support of its values is that of real weights."""
    declared = getattr(type(distribution), "support", None)
    return getattr(declared, "_is_discrete", False) is True

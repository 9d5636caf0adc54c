"""The variance network of a posterior: the same variances with means of zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributions import Normal, constraints

from pyrostoch._checks import name_list
from pyrostoch.effects import base_distribution
from pyrostoch.guides.base import Guide
from pyrostoch.guides.per_site import PerSite
from pyrostoch.guides.ratio import free_entries, is_zero_mean, weight_distributions
from pyrostoch.guides.temperature import carry_temperatures
from pyrostoch.guides.variance_only import VarianceOnly
from pyrostoch.sites import Site

__all__ = ["to_variance_only"]


def to_variance_only(guide: Guide | PerSite, sites: str | Iterable[str] | None = None) -> Guide | PerSite:
    r"""The variance network of a guide: every normal distribution $N(\mu, \sigma^2)$ becomes $N(0, \sigma^2)$.

    `guide.zero_mean_gap()` measures what this costs. The given guide is not changed and shares no tensor with the new
    one, which is on the same device and in the same dtype. Distributions of mean zero and random scales of priors are
    copied.

    Without `sites`, every weight of a plain guide must be normal or of mean zero; in a `PerSite`, every normal weight
    is converted and the others are copied. A last layer of mean zero cannot classify: where the guide covers the last
    layer, name the `sites` to convert without it.

    Args:
        guide: A guide of `pyrostoch.guides`.
        sites: Names of the sites to convert, or one name; the distributions of the others are copied.

    Returns:
        A `VarianceOnly` (gaussian) guide; a `PerSite` where other distributions remain or a `PerSite` was given.

    Raises:
        TypeError: The distribution of a site to convert is neither normal nor of mean zero (the site is named), or the
            guide is not one of `pyrostoch.guides`.
        ValueError: A named site is not a weight of the guide.

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations",
        2018 (arXiv 1803.03764).

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = ps.guides.LayerwiseAlpha(model, init_log_alpha=9.0)
        >>> round(guide.zero_mean_gap().total, 5)  # six weights: 6 / (2 exp(9))
        0.00037
        >>> limit = to_variance_only(guide)
        >>> bool(torch.allclose(limit.site_distribution("weight").variance, guide.site_distribution("weight").variance))
        True
    """
    weights = weight_distributions(guide, "to_variance_only")
    distributions = {site: free_entries(distribution)[0] for site, distribution in weights.items()}
    chosen = set(distributions) if sites is None else {sites} if isinstance(sites, str) else set(sites)
    unknown = sorted(chosen - set(distributions))
    if unknown:
        raise ValueError(
            f"to_variance_only: no site {name_list(unknown)} among the guide's weights {name_list(distributions)}"
        )
    strict = sites is not None or not isinstance(guide, PerSite)
    other = [n for n in sorted(chosen) if not (isinstance(distributions[n], Normal) or is_zero_mean(distributions[n]))]
    if strict and other:
        raise TypeError(
            f"to_variance_only: expected a normal distribution (or one of mean zero) at site {other[0]!r}, got "
            f"{type(distributions[other[0]]).__name__}; give the sites to convert as sites="
        )
    normal = {name for name in chosen if isinstance(distributions[name], Normal)}
    parts = guide.parts if isinstance(guide, PerSite) else [guide]
    converted = [new for part in parts for new in _convert(part, normal)]  # type: ignore[arg-type]
    single = not isinstance(guide, PerSite) and len(converted) == 1
    found = converted[0] if single else PerSite.of(converted, sites=guide.site_names)
    carry_temperatures(found, guide)
    return found


def _convert(part: Guide, sites: set[str]) -> Iterator[Guide]:
    """Copies of a guide's sites: one guide for those that keep their distribution, one for those to convert."""
    converted = [name for name in part.weight_names if name in sites]
    if not converted:
        yield copy.deepcopy(part)
        return
    if len(converted) == len(part.weight_names):
        yield _variance_network(part, part.site_names)
        return
    yield part.restricted_to([name for name in part.site_names if name not in sites])
    yield _variance_network(part, converted)


def _variance_network(part: Guide, names: Iterable[str]) -> VarianceOnly:
    """A guide whose weights at the named sites have the same variances and mean zero; scales are copied."""
    sites, scales = {}, []
    with torch.no_grad():
        for name in names:
            distribution, fixed = free_entries(base_distribution(part.site_distribution(name)))
            if name in part.weight_names:
                sites[name] = Site(name, distribution.stddev.clone(), constraints.real, "weight", "", fixed=fixed)
            else:
                sites[name] = Site(name, distribution.mean.clone(), constraints.positive, "scale", "")
                scales.append(name)
        guide = VarianceOnly(_SitesOnly(sites), init_scale=_site_value)
        for name in scales:
            for key, parameter in guide.parameters_for(name).items():
                parameter.copy_(part.parameters_for(name)[key])
    return guide


def _site_value(site: Site) -> torch.Tensor:
    return site.init


class _SitesOnly(nn.Module):
    """The sites of a model without the model; a guide reads nothing else."""

    def __init__(self, sites: dict[str, Site]) -> None:
        super().__init__()
        self.sites = sites

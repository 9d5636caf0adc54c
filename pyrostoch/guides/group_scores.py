"""How much the neurons and channels of a layer matter, by the posterior of their weights and scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrostoch._manual import see
from pyrostoch.effects import base_distribution
from pyrostoch.guides.ratio import free_entries, is_zero_mean, weight_distributions
from pyrostoch.guides.units import Wires
from pyrostoch.model import BayesianModel
from pyrostoch.priors.groups import GroupedPrior
from pyrostoch.protocols import SiteGuide

__all__ = ["scores_by_layer", "weight_means"]


def weight_means(guide: SiteGuide) -> dict[str, Tensor]:
    """The mean of each random weight, with the constants in their places, by site.

    Args:
        guide: A guide with normal distributions.

    Raises:
        TypeError: A weight's distribution is not normal; its site is named.
        ValueError: It has mean zero by construction, or is not finite.
    """
    return {name: _moments(name, whole)[0] for name, whole in weight_distributions(guide, "prune_groups").items()}


def scores_by_layer(model: BayesianModel, guide: SiteGuide, wires: Mapping[str, Wires], by: str) -> dict[str, Tensor]:
    """What is compared of the units of each layer, in float64, by the layer's name.

    Args:
        model: The model.
        guide: Its guide.
        wires: The wires of the network's layers.
        by: `"log_alpha"`, `"scale"` or `"norm"`.

    Returns:
        Tensors `(units,)`, without the layers of which there is nothing to compare.
    """
    scores = {}
    if by == "scale":
        return _scales(model, guide, wires)
    for name, whole in weight_distributions(guide, "prune_groups").items():
        layer, _, last = name.rpartition(".")
        if layer not in wires or last != "weight":
            continue
        mean, variance = (value.double().flatten(1) for value in _moments(name, whole))
        signal = mean.square().sum(1)
        ratio = torch.where(signal == 0, torch.inf, variance.sum(1).log() - signal.log())
        scores[layer] = (ratio if by == "log_alpha" else signal.sqrt()).cpu()
    return scores


def _scales(model: BayesianModel, guide: SiteGuide, wires: Mapping[str, Wires]) -> dict[str, Tensor]:
    scores = {}
    for layer, found in wires.items():
        own = _scale_along(model, guide, layer, 0)
        cut = [reader for reader in found.readers if reader in wires]
        outgoing = _scale_along(model, guide, cut[0], 1) if len(cut) == 1 else None
        if outgoing is not None:  # of several features that a unit feeds, the largest
            outgoing = outgoing[found.readers[cut[0]]].amax(1)
        given = [scale for scale in (own, outgoing) if scale is not None]
        if given:
            scores[layer] = torch.stack(given).prod(0)
    return scores


def _scale_along(model: BayesianModel, guide: SiteGuide, layer: str, axis: int) -> Tensor | None:
    """The posterior medians of the scales that a layer's prior gives the entries of an axis of its weight."""
    site = f"{layer}.weight" if layer else "weight"
    if site not in model.sites:
        return None
    prior = model.prior(site)
    if not isinstance(prior, GroupedPrior) or prior.axis != axis:
        return None
    shape = model.sites[site].init.shape
    with torch.no_grad(), poutine.block(), _Medians(guide, site):
        distribution: Any = prior.distribution(site, shape)
    scale: Tensor = distribution.scale.detach().double().movedim(axis, 0).flatten(1)[:, 0].cpu()
    return scale


class _Medians(poutine.messenger.Messenger):
    """Sets the scales of a prior to their posterior medians."""

    def __init__(self, guide: SiteGuide, site: str) -> None:
        super().__init__()
        self.guide, self.site = guide, site

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        try:
            distribution: Any = base_distribution(self.guide.site_distribution(name))
        except ValueError as error:
            raise ValueError(
                f"prune_groups: the guide does not cover {name!r}, a scale of the prior of {self.site!r}; make it of "
                f"the whole model{see('how-to/prune_and_export')}"
            ) from error
        msg["value"] = distribution.icdf(torch.full(distribution.batch_shape, 0.5).to(distribution.mean))
        msg["done"] = True


def _moments(site: str, whole: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and variance of the weights of a site, with the constants in their places."""
    distribution, fixed = free_entries(whole)
    if is_zero_mean(distribution):
        raise ValueError(
            f"prune_groups: the distribution at site {site!r} has mean zero by construction: its weights act through "
            f"their variances only, so that no network of fixed weights can replace it{see('how-to/prune_and_export')}"
        )
    if not isinstance(distribution, Normal):
        raise TypeError(
            f"prune_groups: expected a normal distribution at site {site!r}, got {type(distribution).__name__}"
            f"{see('how-to/prune_and_export')}"
        )
    mean, variance = distribution.mean.detach().clone(), distribution.variance.detach().clone()
    if not bool(torch.isfinite(mean).all()) or not bool(torch.isfinite(variance).all()):
        raise ValueError(f"prune_groups: the guide's parameters at site {site!r} are not finite")
    if fixed is not None:
        mean, variance = fixed.put_into(mean), torch.where(fixed.mask, 0.0, variance)
    return mean, variance

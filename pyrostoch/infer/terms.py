"""One draw of model and guide, split into the terms of the ELBO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrostoch.distributions import has_closed_form, kl_sum
from pyrostoch.effects import Interpretation, MomentPropagation
from pyrostoch.effects.independent import is_independent
from pyrostoch.model import latent_sites
from pyrostoch.moments.predictive import OutputDistribution

__all__ = ["SiteTerm", "Terms", "draw_terms", "draw_traces", "expected_log_prob"]


@dataclass(frozen=True)
class SiteTerm:
    """The KL of one latent site.

    Args:
        kl: KL(q || p) in nats, summed over the site's weights and scaled by the handlers around it; a draw's estimate
            where it is not exact.
        exact: Whether it is a closed form.
        improper: Whether the prior is improper.
        size: Number of weights.
    """

    kl: Tensor
    exact: bool
    improper: bool
    size: int


@dataclass(frozen=True)
class Terms:
    """The terms of one particle: ELBO = data - KL - penalty, in nats for the whole data set.

    Args:
        data: Sum of log-likelihoods, scaled to the whole data set.
        sites: KL of each latent site.
        penalty: The user's penalties (and other `pyro.factor`s, with their sign turned).
        treatments: The way each site took through the network.
    """

    data: Tensor | float
    sites: dict[str, SiteTerm]
    penalty: Tensor | float
    treatments: dict[str, str]

    @property
    def kl(self) -> Tensor | float:
        """Sum of the sites' KLs."""
        return sum((term.kl for term in self.sites.values()), 0.0)


def draw_traces(model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: Interpretation) -> Any:
    """Traces of the model and of the guide, the model run on the guide's draw under an interpretation."""
    with how:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        try:
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        except (ValueError, RuntimeError):
            # A site that the guide leaves out, or draws in another shape, fails somewhere: name the cause.
            known = getattr(model, "sites", None)
            if isinstance(known, dict):
                draws = dict(latent_sites(guide_trace))
                _check_covered(known, draws)
                for name, site in known.items():
                    _check_shape(name, site.init.shape, draws[name]["value"].shape)
            raise
    return model_trace, guide_trace


def draw_terms(model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], how: Interpretation) -> Terms:
    """Draw once from the guide, run the model on it, and split the ELBO into its terms.

    Nothing here reads a tensor's value, so a step does not synchronize a GPU.

    Args:
        model: A Pyro model.
        guide: A Pyro guide.
        args: Arguments of both.
        kwargs: Keyword arguments of both.
        how: The interpretation, used for this draw only.

    Returns:
        The terms.

    Raises:
        ValueError: Sites of model and guide do not match, or a guide site cannot be reparameterized.
    """
    model_trace, guide_trace = draw_traces(model, guide, args, kwargs, how)
    latents = dict(latent_sites(model_trace))
    draws = dict(latent_sites(guide_trace))
    _check_match(latents, draws)
    data: Tensor | float = 0.0
    penalty: Tensor | float = 0.0
    for node in model_trace.nodes.values():
        if node["type"] == "sample" and node["is_observed"]:
            moments = isinstance(node["fn"], OutputDistribution)
            term = _scaled(node, expected_log_prob(node["fn"], node["value"]) if moments else _log_prob(node))
            if type(node["fn"]).__name__ == "Unit":
                penalty = penalty - term
            else:
                data = data + term
    for node in guide_trace.nodes.values():
        if node["type"] == "sample" and node["is_observed"]:  # a factor in the guide counts against the ELBO
            penalty = penalty + _scaled(node, _log_prob(node))
    sites = {name: _site_term(name, node, draws[name], how) for name, node in latents.items()}
    for name, node in draws.items():
        if name not in latents:  # an auxiliary draw of a hierarchical or transformed guide
            _check_gradient(name, node["fn"])
            sites[name] = SiteTerm(_scaled(node, _log_prob(node)), False, False, node["value"].numel())
    return Terms(data, sites, penalty, dict(how.treatments))


def _site_term(name: str, model_node: Any, guide_node: Any, how: Interpretation) -> SiteTerm:
    prior, distribution = model_node["fn"], guide_node["fn"]
    base = prior
    while hasattr(base, "base_dist"):
        base = base.base_dist
    improper = bool(getattr(base, "improper", False))
    size = guide_node["value"].numel()
    _check_gradient(name, distribution)
    if has_closed_form(distribution, prior):
        kl = kl_sum(distribution, prior)
        if guide_node["mask"] is not None:
            raise ValueError(
                f"site {name!r}: poutine.mask on a latent site is not supported; select sites by prior rules"
            )
        return SiteTerm(kl * guide_node["scale"], True, improper, size)
    drawn = is_independent(guide_node["infer"]) or isinstance(how, MomentPropagation)
    value = how.draw(name) if drawn else guide_node["value"]
    log_q = _scaled(guide_node, distribution.log_prob(value))
    log_p = _scaled(model_node, prior.log_prob(value))
    return SiteTerm(log_q - log_p, False, improper, size)


def _check_gradient(name: str, distribution: Any) -> None:
    if not distribution.has_rsample:
        raise ValueError(
            f"guide site {name!r}: {_short(distribution)} cannot be reparameterized, so its gradient would be lost; "
            "use a guide distribution with rsample, or pyro.infer.TraceGraph_ELBO with its score-function gradient"
        )


def _log_prob(node: Any) -> Tensor:
    log_prob: Tensor = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return log_prob


def expected_log_prob(distribution: Any, value: Tensor) -> Tensor:
    """The log density of what was observed; its mean over the output, where that is known by its moments.

    Args:
        distribution: The distribution of the observations.
        value: The observations.
    """
    found: Tensor = (
        distribution.expected_log_prob(value)
        if isinstance(distribution, OutputDistribution)
        else distribution.log_prob(value)
    )
    return found


def _scaled(node: Any, log_prob: Tensor) -> Tensor:
    mask = node["mask"]
    if mask is not None and mask is not True:
        log_prob = torch.zeros_like(log_prob) if mask is False else torch.where(mask, log_prob, 0.0)
    return (log_prob * node["scale"]).sum()


def _check_covered(latents: dict[str, Any], draws: dict[str, Any]) -> None:
    missing = [name for name in latents if name not in draws]
    if missing:
        raise ValueError(
            f"guide: no draw for the model's site(s) {', '.join(map(repr, missing))}; the guide has "
            f"{', '.join(map(repr, draws)) or 'none'}. Build the guide from this model, or exclude the sites by a "
            "prior rule {name: None}"
        )


def _check_shape(name: str, expected: Any, drawn: Any) -> None:
    if tuple(drawn) != tuple(expected):
        raise ValueError(
            f"site {name!r}: the model expects shape {tuple(expected)}, the guide drew {tuple(drawn)}; was the guide "
            "built from another model?"
        )


def _check_match(latents: dict[str, Any], draws: dict[str, Any]) -> None:
    _check_covered(latents, draws)
    extra = [name for name, node in draws.items() if name not in latents and not node["infer"].get("is_auxiliary")]
    if extra:
        raise ValueError(
            f"guide: site(s) {', '.join(map(repr, extra))} do not exist in the model; it has "
            f"{', '.join(map(repr, latents)) or 'none'}. Was the guide built from another model?"
        )
    if pyro.settings.get("validate_poutine"):
        for name, node in latents.items():
            _check_shape(name, node["fn"].shape(), draws[name]["value"].shape)


def _short(distribution: Any) -> str:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return type(distribution).__name__

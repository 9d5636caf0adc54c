r"""The rate of random activations, $\mathrm{KL}(q(h \mid x) \| p(h))$, and gradients by the score function.

Summed over the data, the rate is a term of the ELBO. Averaged over examples it is an upper bound of the mutual
information of input and activations, $I(x; h) \le E_x\,\mathrm{KL}(q(h \mid x) \| p(h))$.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.distributions import has_closed_form
from pyrostoch.effects import Interpretation
from pyrostoch.effects.activation_sites import ActivationSite, activation_of
from pyrostoch.effects.frozen import noise_is_frozen

__all__ = ["RateTerm", "ScoreTerm", "check_rates_known", "masked", "rate_term", "score_terms", "surrogate_of"]

_POSITIVE = {type(constraints.positive), type(constraints.nonnegative)}


@dataclass(frozen=True)
class RateTerm:
    """The rate of one layer's activations.

    Args:
        rate: KL(q(h | x) || p(h)) in nats, summed over the examples and scaled by Pyro's handlers.
        by_example: The same without the scale, along the first axis of the activations.
        exact: Whether it was computed in closed form, given what the activations depend on.
        size: Number of activations of an example.
    """

    rate: Tensor
    by_example: Tensor
    exact: bool
    size: int


def rate_term(name: str, node: Any) -> RateTerm:
    """The rate of one activation site of a model's trace.

    Args:
        name: Name of the site.
        node: Its message in the trace.

    Raises:
        ValueError: The rate is infinite, or its gradient would be wrong.
    """
    site = activation_of(node)
    if site is None:
        raise TypeError(f"site {name!r}: expected a random activation")
    prior, posterior, value = site.prior, site.posterior, node["value"]
    size = posterior.event_shape.numel()
    if site.layer.prior is None:
        zero = value.new_zeros(value.shape[:1])
        return RateTerm(zero.sum(), zero, True, size)
    _check_supports(name, posterior, prior)
    exact = has_closed_form(posterior, prior)
    if exact:
        by_example = kl_divergence(posterior, prior)
    else:
        _check_estimate(name, site)
        by_example = posterior.log_prob(value) - prior.log_prob(value)
    return RateTerm(_scaled_sum(node, by_example), by_example, exact, size)


def check_rates_known(interpretation: Interpretation) -> None:
    """Raise an error where activations with a prior were not drawn, so that their rate is not known.

    Args:
        interpretation: The interpretation under which the network ran.

    Raises:
        ValueError: There are such layers; they are named.
    """
    if interpretation.without_rate:
        raise ValueError(
            f"layer(s) {name_list(sorted(interpretation.without_rate))}: their activations have a prior, and the rate "
            f"is known for drawn activations only, not for {interpretation.name!r}; use estimator='local'"
            f"{see('how-to/stochastic_layers')}"
        )


def _check_estimate(name: str, site: ActivationSite) -> None:
    """Raise an error where the gradient of an estimate from the draw would be wrong, for discrete activations."""
    if site.layer.gradient in ("straight-through", "relaxed") and torch.is_grad_enabled():
        kind = _name(site.posterior)
        other = "" if kind == "MixtureSameFamily" else ", or a prior of the same family ('standard', 'learned')"
        raise ValueError(
            f"layer {name!r}: the rate of {kind} activations under this prior has no closed form, and "
            f"gradient={site.layer.gradient!r} does not differentiate its estimate; use gradient='score'{other}"
            f"{see('how-to/stochastic_layers')}"
        )


def _check_supports(name: str, posterior: Distribution, prior: Distribution) -> None:
    """Raise an error where the prior gives no probability, or only a density, to what the posterior draws."""
    q, p = _support(posterior), _support(prior)
    same = type(q) is type(p) or {type(q), type(p)} <= _POSITIVE
    if q.is_discrete != p.is_discrete or not (same or (not p.is_discrete and p is constraints.real)):
        raise ValueError(
            f"layer {name!r}: the rate of {_name(posterior)} activations under the prior {_name(prior)} is infinite or "
            "has no meaning, since they take other values; use 'standard', 'learned', or a distribution of the same "
            f"kind{see('how-to/stochastic_layers')}"
        )


def _support(distribution: Distribution) -> Any:
    support: Any = distribution.support
    while isinstance(support, (constraints.independent, constraints.MixtureSameFamilyConstraint)):
        support = support.base_constraint
    return support


def masked(node: Any, values: Tensor) -> Tensor:
    """Values by example, 0 where Pyro's `poutine.mask` leaves a site out.

    Args:
        node: The site's message in a trace.
        values: The values.
    """
    mask = node["mask"]
    if mask is None or mask is True:
        return values
    return torch.zeros_like(values) if mask is False else torch.where(mask, values, 0.0)


def _scaled_sum(node: Any, by_example: Tensor) -> Tensor:
    by_example = masked(node, by_example)
    total = (by_example.to(torch.float64) * node["scale"]).sum()
    return total.to(torch.promote_types(by_example.dtype, torch.float32))


@dataclass(frozen=True)
class ScoreTerm:
    """What the gradient by the score function of one layer's draws needs.

    Args:
        site: The activation.
        log_prob: log q(h | x) of the draw, by example, or in all where examples meet in the network.
        cost: Negative log-likelihood of the observations, in the same way, scaled to the data set.
        rates: Of the rates that depend on the draw, in the same way and scaled, for the layer itself and later ones.
    """

    site: ActivationSite
    log_prob: Tensor
    cost: Tensor
    rates: Tensor


def score_terms(
    sites: Sequence[tuple[Any, RateTerm]], cost: Tensor, factors: Tensor | float = 0.0
) -> tuple[ScoreTerm, ...]:
    """What the gradients by the score function need, for the layers that ask for it.

    Args:
        sites: Message and rate of each activation site, in the order in which they were drawn.
        cost: Negative log-likelihood by example, scaled to the data set.
        factors: The negative of factors of the model, which may depend on every draw.
    """
    terms = []
    for index, (node, term) in enumerate(sites):
        site = activation_of(node)
        if site is None or site.layer.gradient != "score":
            continue
        log_prob = site.posterior.log_prob(node["value"])
        later = [(n, t) for n, t in sites[index:] if t is not term or not t.exact]
        rows = all(len(t.by_example) == len(cost) for _, t in [*later, (node, term)])
        separate = site.separate and rows and not isinstance(factors, Tensor)
        rates = [masked(n, t.by_example) * n["scale"] for n, t in later]
        if separate:
            own, total = cost, sum(rates, torch.zeros_like(cost))
        else:
            log_prob, own = log_prob.sum(), cost.sum() + factors
            total = sum((rate.sum() for rate in rates), torch.zeros_like(own))
        terms.append(ScoreTerm(site, log_prob, own.detach(), total.detach()))
    return tuple(terms)


def surrogate_of(terms: Sequence[ScoreTerm], rate_weight: float | Tensor) -> Tensor | float:
    r"""A term of value 0 whose gradient is that of the score function, $\sum_i (c_i - b) \nabla \log q(h_i \mid x_i)$.

    The baseline b is the running mean of the cost in earlier steps, which does not depend on the draws: a layer that is
    called several times has the same one in all calls. It is updated where gradients are computed, and kept as the cost
    of the whole data set, so that batches may have any size.

    Args:
        terms: The result of `score_terms`.
        rate_weight: The weight of the rate in the loss.

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.
    """
    layers: list[Any] = [term.site.layer for term in terms]
    costs = [term.cost + rate_weight * term.rates for term in terms]
    # All before the first update: a cost of this step depends on the draws of other calls of the layer.
    baselines = {id(layer): layer.average_cost / layer.cost_steps.clamp_min(1e-9) for layer in layers}
    total: Any = 0.0
    for term, layer, cost in zip(terms, layers, costs, strict=True):
        baseline = (baselines[id(layer)] / cost.numel()).to(cost.dtype)
        total = total + ((cost - baseline) * (term.log_prob - term.log_prob.detach())).sum()
    # With frozen noise the loss, and so its gradient, is a fixed function of the parameters.
    if torch.is_grad_enabled() and not noise_is_frozen():
        with torch.no_grad():
            for layer, cost in zip(layers, costs, strict=True):
                step = 1.0 - layer.baseline_decay
                layer.average_cost.lerp_(cost.sum().to(layer.average_cost.dtype), step)
                layer.cost_steps.lerp_(torch.ones_like(layer.cost_steps), step)
    return total


def _name(distribution: Distribution) -> str:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return type(distribution).__name__

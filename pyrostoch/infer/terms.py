"""The terms of the ELBO from one draw of model and guide."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.distributions import has_closed_form, kl_sum
from pyrostoch.effects import Interpretation, MomentPropagation
from pyrostoch.effects.independent import is_independent
from pyrostoch.effects.noise_size import NoiseSizes
from pyrostoch.infer.rates import RateTerm, ScoreTerm, check_rates_known, masked, rate_term, score_terms, surrogate_of
from pyrostoch.moments.predictive import OutputDistribution
from pyrostoch.protocols import Guide, PyroCallable
from pyrostoch.sites import activation_sites, latent_sites, trace_of

__all__ = ["SiteTerm", "Terms", "draw_terms", "draw_traces"]


@dataclass(frozen=True)
class SiteTerm:
    """The KL of one latent site.

    Args:
        kl: KL(q || p) in nats, summed over the site's weights and scaled by Pyro's handlers (`poutine.scale`); the
            estimate from one draw where it is not exact.
        exact: Whether it was computed in closed form.
        improper: Whether the prior is improper.
        size: Number of weights.
    """

    kl: Tensor
    exact: bool
    improper: bool
    size: int


@dataclass(frozen=True)
class Terms:
    """The terms of one particle: ELBO = data - KL - rate - penalty, in nats for the whole data set.

    Args:
        data: Sum of log-likelihoods, scaled to the whole data set.
        sites: KL of each latent site.
        penalty: The user's penalties, and the negative of any other `pyro.factor`.
        treatments: How the network treated each site, in words: `Interpretation.treatments`.
        rates: Rate of each layer of random activations with a prior.
        scores: What gradients by the score function need.
        noise: The mean of log sigma over the activations of each layer, summed over layers, times the number of
            examples of the data set; 0 where it was not asked for.
    """

    data: Tensor | float
    sites: dict[str, SiteTerm]
    penalty: Tensor | float
    treatments: dict[str, str]
    rates: dict[str, RateTerm] = field(default_factory=dict)
    scores: tuple[ScoreTerm, ...] = ()
    noise: Tensor | float = 0.0

    @property
    def kl(self) -> Tensor | float:
        """Sum of the KLs of all sites."""
        return sum((term.kl for term in self.sites.values()), 0.0)

    @property
    def rate(self) -> Tensor | float:
        """Sum of the rates of all layers of random activations."""
        return sum((term.rate for term in self.rates.values()), 0.0)

    def loss(
        self,
        kl_weight: float | Tensor = 1.0,
        rate_weight: float | Tensor = 1.0,
        data_weight: float | None = None,
        noise_weight: float | Tensor = 0.0,
    ) -> Tensor | float:
        """What is minimized, differentiable: the negative ELBO, with weights of its terms.

        Args:
            kl_weight: Weight of the KL of weights and other latent sites.
            rate_weight: Weight of the rate of random activations.
            data_weight: A further factor of everything that is summed over examples, for a part of a batch.
            noise_weight: Weight of the size of the noise, which is enlarged.
        """
        by_example: Any = -self.data
        if isinstance(self.noise, Tensor):
            by_example = by_example - noise_weight * self.noise
        if self.rates:
            by_example = by_example + rate_weight * self.rate
        if self.scores:
            by_example = by_example + surrogate_of(self.scores, rate_weight)
        return self.kl * kl_weight + self.penalty + (by_example if data_weight is None else by_example * data_weight)


def draw_traces(
    model: PyroCallable, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], interpretation: Interpretation
) -> tuple[Trace, Trace]:
    """Run the guide, then the model on the guide's draw, both under an interpretation.

    Args:
        model: A Pyro model.
        guide: A Pyro guide.
        args: Arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        interpretation: The interpretation.

    Returns:
        The traces of model and guide.
    """
    with interpretation:
        guide_trace = trace_of(guide, *args, **kwargs)
        try:
            model_trace = trace_of(poutine.replay(model, trace=guide_trace), *args, **kwargs)
        except (ValueError, RuntimeError):
            # Perhaps the guide lacks a site, or drew it in another shape: then raise an error that names it.
            sites = getattr(model, "sites", None)
            if isinstance(sites, dict):
                draws = dict(latent_sites(guide_trace))
                _check_covered(sites, draws)
                for name, site in sites.items():
                    _check_shape(name, site.init.shape, draws[name]["value"].shape)
            raise
    return model_trace, guide_trace


def draw_terms(
    model: PyroCallable,
    guide: Guide,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    interpretation: Interpretation,
    *,
    with_noise: bool = False,
) -> Terms:
    """Draw once from the guide, run the model on the draw, and split the ELBO into its terms.

    No tensor's value is read into Python, so a step does not synchronize with a GPU.

    Args:
        model: A Pyro model.
        guide: A Pyro guide.
        args: Arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        interpretation: The interpretation, used for this draw only.
        with_noise: Whether to measure the size of the noise of random activations.

    Returns:
        The terms.

    Raises:
        ValueError: Sites of model and guide do not match, or a guide site cannot be reparameterized.
    """
    with NoiseSizes() if with_noise else contextlib.nullcontext() as sizes:
        model_trace, guide_trace = draw_traces(model, guide, args, kwargs, interpretation)
    latents = dict(latent_sites(model_trace))
    draws = dict(latent_sites(guide_trace))
    _check_match(latents, draws)
    data: Tensor | float = 0.0
    penalty: Tensor | float = 0.0
    costs = []
    factors: Tensor | float = 0.0
    for node in model_trace.nodes.values():
        if node["type"] == "sample" and node["is_observed"]:
            log_prob = _log_prob(node)
            term = _scaled(node, log_prob)
            if type(node["fn"]).__name__ == "Unit":
                penalty = penalty - term
                factors = factors - (term if node["name"] != "penalty" else 0.0)  # may depend on activations
            else:
                data = data + term
                costs.append(-masked(node, log_prob) * node["scale"])
    for node in guide_trace.nodes.values():
        if node["type"] == "sample" and node["is_observed"]:  # a factor in the guide is subtracted from the ELBO
            penalty = penalty + _scaled(node, _log_prob(node))
    sites = {name: _site_term(name, node, draws[name], interpretation) for name, node in latents.items()}
    for name, node in draws.items():
        if name not in latents:  # an auxiliary draw of a hierarchical or transformed guide
            _check_gradient(name, node["fn"])
            sites[name] = SiteTerm(_scaled(node, _log_prob(node)), False, False, node["value"].numel())
    check_rates_known(interpretation)
    activations = [(name, node, rate_term(name, node)) for name, node in activation_sites(model_trace)]
    rates = {name: term for name, _, term in activations}
    sites_and_rates = [(node, term) for _, node, term in activations]
    scores = score_terms(sites_and_rates, _total_cost(costs), factors) if activations else ()
    noise = 0.0 if sizes is None else _noise_of(model, sizes)
    return Terms(data, sites, penalty, dict(interpretation.treatments), rates, scores, noise)


def _noise_of(model: PyroCallable, sizes: NoiseSizes) -> Tensor:
    count = getattr(model, "num_data", None)
    if not sizes.by_layer or count is None:
        raise ValueError(
            "noise_weight: expected a BayesianModel with a layer whose activations have noise with a scale, such as "
            f"StochasticLinear; there is none{see('how-to/stochastic_layers')}"
        )
    return count * torch.stack(sizes.by_layer).sum()


def _total_cost(costs: list[Tensor]) -> Tensor:
    """The cost of each example, or of all of them where observations differ in shape."""
    if len({cost.shape for cost in costs}) == 1 and costs[0].dim() == 1:
        return torch.stack(costs).sum(0)
    return sum((cost.sum() for cost in costs), torch.zeros(())).reshape(1)


def _site_term(name: str, model_node: Any, guide_node: Any, interpretation: Interpretation) -> SiteTerm:
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
    # The interpretation may have left the site undrawn, or replaced it by its distribution: it then draws now.
    by_interpretation = is_independent(guide_node["infer"]) or isinstance(interpretation, MomentPropagation)
    value = interpretation.draw(name) if by_interpretation else guide_node["value"]
    log_q = _scaled(guide_node, distribution.log_prob(value))
    log_p = _scaled(model_node, prior.log_prob(value))
    return SiteTerm(log_q - log_p, False, improper, size)


def _check_gradient(name: str, distribution: Any) -> None:
    if not distribution.has_rsample:
        raise ValueError(
            f"guide site {name!r}: {_base_name(distribution)} cannot be reparameterized, so its gradient would be "
            "lost; use a guide distribution with rsample, or pyro.infer.TraceGraph_ELBO, which uses a score-function "
            "gradient"
            f"{see('how-to/write_a_guide')}"
        )


def _log_prob(node: Any) -> Tensor:
    if isinstance(node["fn"], OutputDistribution):
        return node["fn"].expected_log_prob(node["value"])
    log_prob: Tensor = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return log_prob


def _scaled(node: Any, log_prob: Tensor) -> Tensor:
    return (masked(node, log_prob) * node["scale"]).sum()


def _check_covered(latents: dict[str, Any], draws: dict[str, Any]) -> None:
    missing = [name for name in latents if name not in draws]
    if missing:
        raise ValueError(
            f"guide: no draw for the model's site(s) {', '.join(map(repr, missing))}; the guide has "
            f"{', '.join(map(repr, draws)) or 'none'}. Build the guide from this model, or exclude the sites by a "
            "prior rule {name: None}"
            f"{see('how-to/write_a_guide')}"
        )


def _check_shape(name: str, expected: Any, drawn: Any) -> None:
    if tuple(drawn) != tuple(expected):
        raise ValueError(
            f"site {name!r}: the model expects shape {tuple(expected)}, the guide drew {tuple(drawn)}; was the guide "
            "built from another model?"
            f"{see('how-to/write_a_guide')}"
        )


def _check_match(latents: dict[str, Any], draws: dict[str, Any]) -> None:
    _check_covered(latents, draws)
    extra = [name for name, node in draws.items() if name not in latents and not node["infer"].get("is_auxiliary")]
    if extra:
        raise ValueError(
            f"guide: site(s) {', '.join(map(repr, extra))} do not exist in the model; it has "
            f"{', '.join(map(repr, latents)) or 'none'}. Was the guide built from another model?"
            f"{see('how-to/write_a_guide')}"
        )
    if pyro.settings.get("validate_poutine"):
        for name, node in latents.items():
            _check_shape(name, node["fn"].shape(), draws[name]["value"].shape)


def _base_name(distribution: Any) -> str:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return type(distribution).__name__

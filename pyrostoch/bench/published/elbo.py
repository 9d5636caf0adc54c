"""The bench `elbo`: the ELBO of guides that differ in flexibility, from a cold or warm start, term by term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyrostoch.bench.case import Bench, Case, MakeGuide
from pyrostoch.bench.published.variance import lenet5
from pyrostoch.bench.recipe import Recipe
from pyrostoch.effects import base_distribution
from pyrostoch.guides import Additive, Guide, LayerwiseAlpha, NeuronwiseAlpha, WeightwiseAlpha
from pyrostoch.model import BayesianModel
from pyrostoch.priors import EmpiricalBayes, LogUniform, Prior
from pyrostoch.sites import Site

__all__ = ["ELBO_TABLE"]

_ALPHA = {"layer-wise": LayerwiseAlpha, "neuron-wise": NeuronwiseAlpha, "weight-wise": WeightwiseAlpha}
_DISTRIBUTION = {
    "layer-wise": "N(μ, αμ²), one α",
    "neuron-wise": "N(μ, αμ²), one α per neuron",
    "weight-wise": "N(μ, αμ²), one α per weight",
    "additive": "N(μ, σ²)",
}

# Draws for the data term; a few images contribute most of it, and their contribution varies from draw to draw.
_DRAWS = 20

# Chosen on 10,000 held-out training images. The full recipe is the published one, except for the learning rate of log
# alpha: with the weights' rate, log alpha is still rising when the rate reaches 0.
_COLD = {
    "quick": Recipe(epochs=2, lr=2e-3, lr_alpha=0.3, init_log_alpha=4.0, examples=2000),
    "cpu": Recipe(epochs=60, lr=4e-3, lr_alpha=0.5, init_log_alpha=4.0),
    "full": Recipe(epochs=200, lr=1e-3, lr_alpha=1e-2),
}
_WARM = {
    "quick": Recipe(epochs=1, lr=1e-3, lr_alpha=1e-2, examples=2000),
    "cpu": Recipe(epochs=15, lr=1e-3, lr_alpha=1e-2),
    "full": Recipe(epochs=50, lr=1e-3),
}


def _guide(kind: str) -> MakeGuide:
    """A function that makes a guide, initialized by the recipe or with the distributions of a trained guide."""

    def make(model: BayesianModel, recipe: Recipe, origin: Guide | None) -> Guide:
        if kind == "additive":
            initial: dict[str, Any] = {"init_scale": recipe.init_scale}
            if origin is not None:
                initial = {"init_loc": _value_of(origin, "mean"), "init_scale": _value_of(origin, "stddev")}
            return Additive(model, **initial)
        initial = {"init_log_alpha": recipe.init_log_alpha}
        if origin is not None:
            log_alpha = _value_of(origin, "unexpanded_log_alpha")
            initial = {"init_loc": _value_of(origin, "mean"), "init_log_alpha": log_alpha}
        return _ALPHA[kind](model, **initial)

    return make


def _value_of(guide: Guide, attribute: str) -> Callable[[Site], Tensor]:
    """A function of a site: an attribute of the distribution that a trained guide has for it."""
    return lambda site: getattr(base_distribution(guide.site_distribution(site.name)), attribute).detach()


def _case(kind: str, variant: str = "", prior: Prior | None = None) -> Case:
    warm = variant in ("warm", "continued")
    suffixes = {
        "": "",
        "warm": ", started from the layer-wise solution",
        "continued": ", trained further",
        "proper": ", N(0, s²) prior",
    }
    return Case(
        name=f"lenet5/dense1/{kind}{f'/{variant}' if variant else ''}",
        title=f"{kind}: {_DISTRIBUTION[kind]}{suffixes[variant]}",
        data="mnist",
        network=lenet5,
        guide=_guide(kind),
        recipes=_WARM if warm else _COLD,
        random={"dense1.weight": prior or LogUniform()},
        start="lenet5/dense1/layer-wise" if warm else None,
        needs_gpu=() if (kind, variant) == ("layer-wise", "") else ("full",),
        curve=not warm,
        elbo_draws=_DRAWS,
    )


#: The bench.
ELBO_TABLE = Bench(
    name="elbo",
    title="The ELBO of more and less flexible posteriors",
    cases=(
        _case("layer-wise"),
        _case("neuron-wise"),
        _case("weight-wise"),
        _case("additive"),
        _case("layer-wise", "continued"),
        _case("neuron-wise", "warm"),
        _case("weight-wise", "warm"),
        _case("additive", "warm"),
        _case("additive", "proper", EmpiricalBayes(0.05)),
    ),
    columns=(
        ("elbo", "ELBO"),
        ("data", "data term"),
        ("data/monte-carlo-error", "its Monte-Carlo error"),
        ("kl", "KL"),
        ("accuracy/mean", "mean weights, %"),
        ("accuracy/mc:1", "1 sample, %"),
        ("accuracy/mc:20", "20 samples, %"),
    ),
    published={
        f"lenet5/dense1/{kind}": dict(
            zip(("elbo", "data", "kl", "accuracy/mean", "accuracy/mc:20"), values, strict=True)
        )
        for kind, values in {
            "layer-wise": (-9.4, -9.04, 0.36, 0.113, 0.993),
            "neuron-wise": (-11.0, -8.34, 2.66, 0.113, 0.992),
            "weight-wise": (-287.4, -21.13, 266.25, 0.966, 0.994),
            "additive": (-227.9, -31.2, 196.74, 0.992, 0.992),
        }.items()
    },
    notes=(
        "ELBO = data term - KL, in nats, over all training images. The KL is a sum over the 400,000 weights of dense1, "
        f"the only random ones. The data term is a mean over {_DRAWS} draws with the network in evaluation mode; its "
        "Monte-Carlo error is the standard error of this mean.",
        "The log-uniform prior is improper: KL and ELBO are defined up to a constant for each weight, here chosen so "
        "that the KL goes to 0 as alpha goes to infinity. The prior N(0, s²) with fitted s is proper and has no such "
        "constant; the ELBO of its row cannot be compared with the others.",
        "The layer-wise family is contained in the neuron-wise and the weight-wise one, and the additive family equals "
        "the weight-wise one wherever the mean is not 0. So the more flexible families, started from the layer-wise "
        "solution, must reach at least its ELBO; if they end lower from a cold start, that is an artifact of "
        "optimization. 'Trained further' is the layer-wise solution with the same additional epochs.",
    ),
    source="Neklyudov et al. 2018 (arXiv 1803.03764); which layers were random is not stated there",
)

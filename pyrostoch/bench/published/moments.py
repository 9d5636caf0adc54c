"""Moments beside Monte Carlo: trained networks, binary neurons, random networks, single units, a sampling network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pyrostoch.bench.case import Bench, Case, Own, Trained
from pyrostoch.bench.published.binary import binary_cnn, binary_mlp
from pyrostoch.bench.published.gaps import random_network, time_of_moments, unit_covariances
from pyrostoch.bench.published.posterior import fit_posteriors
from pyrostoch.bench.published.variance import VARIANCE, nothing_random
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

__all__ = ["MOMENTS"]

_TIMED = 2000
_MODES = ("mean", "mc:1", "mc:20", "mc:100", "moments", "moments:closed")

# Epochs and rates were chosen on 10,000 held-out training images.
_BINARY = {
    "quick": Recipe(epochs=2, lr=4e-3, estimator="moments:closed", examples=2000),
    "cpu": Recipe(epochs=20, lr=4e-3, estimator="moments:closed"),
}
_PSEUDO = {name: recipe.changed({"estimator": "local"}) for name, recipe in _BINARY.items()}
# Covariances of a layer cost its width squared: a narrow network, with variances and with covariances.
_NARROW = {name: replace(recipe, epochs=min(recipe.epochs, 10)) for name, recipe in _BINARY.items()}
_FULL = {name: recipe.changed({"estimator": "moments:full:closed"}) for name, recipe in _NARROW.items()}
_WITH_COVARIANCES = (*_MODES, "moments:full")
_CONV = {**_BINARY, "cpu": Recipe(epochs=10, lr=4e-3, estimator="moments:closed")}
_ALONE = {"quick": Recipe(epochs=1), "cpu": Recipe(epochs=20)}
# Random networks: hidden layers, their width, and whether covariances are carried.
_RANDOM = [(depth, width, False) for depth in (1, 2, 4) for width in (50, 200, 800)]
_RANDOM += [(depth, width, True) for depth in (1, 2, 4) for width in (50, 200)]
_SAMPLER = {"quick": Recipe(epochs=1, lr=2e-2), "cpu": Recipe(epochs=80, lr=2e-2)}


def _times(trained: Trained) -> dict[str, float]:
    return {"time/moments": time_of_moments(trained.model, trained.guide, trained.test[0][:_TIMED])}


def _figure(scores: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Errors of the random networks."""
    from pyrostoch.report.moments import gaps

    sizes = [(depth, width, full) for depth, width, full in _RANDOM if _random_name(depth, width, full) in scores]
    return gaps([(*size, scores[_random_name(*size)]) for size in sizes]) if sizes else None


def _trained(name: str) -> Case:
    """A network of the bench `variance`, read by moments too."""
    case = VARIANCE.case(name)
    recipes = {preset: recipe for preset, recipe in case.recipes.items() if preset in ("quick", "cpu")}
    return replace(case, recipes=recipes, modes=_MODES, measure=_times)


def _binary(
    name: str,
    title: str,
    network: Callable[[DataSplit], nn.Module],
    recipes: Mapping[str, Recipe],
    modes: tuple[str, ...] = _MODES,
) -> Case:
    return Case(
        name=f"binary/{name}",
        title=f"Binary neurons, {title}, MNIST",
        data="mnist",
        network=network,
        guide=nothing_random,
        recipes=recipes,
        modes=modes,
        measure=_times,
    )


def _narrow() -> tuple[Case, ...]:
    """784-50-50-10 with independent and correlated noise, trained with variances and with covariances."""
    return tuple(
        _binary(
            f"narrow/{noise}/{way}",
            f"784-50-50-10, noise {words}, trained by moments with {what}",
            partial(binary_mlp, widths=(50, 50), correlation=correlation),
            recipes,
            _WITH_COVARIANCES,
        )
        for noise, words, correlation in (("independent", "independent", 0.0), ("correlated", "correlated by 0.5", 0.5))
        for way, what, recipes in (("diagonal", "variances", _NARROW), ("full", "covariances", _FULL))
    )


def _posterior(own: Own) -> dict[str, float]:
    found = fit_posteriors(epochs=own.recipe.epochs, lr=own.recipe.lr, seed=own.seed).to_dict()
    return {f"posterior/{name.replace('_', '-')}": value for name, value in found.items()}


def _random_name(depth: int, width: int, full: bool) -> str:
    return f"random/{depth}x{width}/{'full' if full else 'diagonal'}"


def _random(depth: int, width: int, full: bool) -> Case:
    carried = "full covariance" if full else "variances"
    return Case(
        name=_random_name(depth, width, full),
        title=f"Random ReLU network, {depth} hidden layer{'s' if depth > 1 else ''} of {width}, {carried}",
        data=None,
        recipes=_ALONE,
        alone=random_network(depth, width, full),
        cpu_only=True,
    )


#: The benchmark.
MOMENTS = Bench(
    name="moments",
    title="Moments beside Monte Carlo",
    cases=(
        _trained("lenet5/dense1/gaussian"),
        _trained("lenet5/conv2+dense1/gaussian"),
        _binary("dense/moments", "784-500-500-10, trained by moments", binary_mlp, _BINARY),
        _binary(
            "dense/correlated",
            "784-500-500-10, noise correlated by 0.2, trained by moments",
            partial(binary_mlp, correlation=0.2),
            _BINARY,
        ),
        _binary("dense/pseudogradient", "784-500-500-10, trained by a soft threshold's gradient", binary_mlp, _PSEUDO),
        *_narrow(),
        _binary("conv/moments", "two convolutions and a dense layer, trained by moments", binary_cnn, _CONV),
        *(_random(*size) for size in _RANDOM),
        *(
            Case(
                f"covariance/{kind}",
                f"Covariance of two {words}",
                None,
                _ALONE,
                alone=unit_covariances(kind),
                cpu_only=True,
            )
            for kind, words in (("threshold", "threshold units"), ("relu", "ReLUs"))
        ),
        Case(
            "posterior/rates",
            "Recurrent rates that sample from posteriors",
            None,
            _SAMPLER,
            alone=_posterior,
            cpu_only=True,
        ),
    ),
    columns=(
        ("accuracy/mean", "mean, %"),
        ("accuracy/mc:1", "1 sample, %"),
        ("accuracy/mc:20", "20 samples, %"),
        ("accuracy/mc:100", "100 samples, %"),
        ("accuracy/moments", "moments, %"),
        ("accuracy/moments:full", "moments with covariances, %"),
        ("nll/mc:100", "NLL, 100 samples"),
        ("nll/moments", "NLL, moments"),
        ("nll/moments:full", "NLL, moments with covariances"),
        ("nll/moments:closed", "NLL, closed reading"),
        ("time/moments", "time / one sample's"),
        ("gap/variance", "output variance, relative error"),
        ("gap/mean", "output mean, error in deviations"),
        ("gap/draws", "draws of equal error"),
        ("covariance/exact", "largest error"),
        ("covariance/wu", "Wu et al., median relative error"),
        ("covariance/linear", "linearized, median relative error"),
        ("posterior/mean-error", "means, error"),
        ("posterior/covariance-error", "covariances, error"),
    ),
    published={},
    notes=(
        "A pass by moments carries variances unless a row says that it carries the full covariance; class "
        "probabilities are means over 64 fixed points of the logits' Gaussian, or the closed reading.",
        "Networks of binary neurons are sampled at test: every neuron is drawn, the scores' softmax averaged. 'Mean' "
        "puts each neuron's mean state in its place.",
        "Random networks: He weights, those of the first layer half noise, 20 inputs; errors of the ten outputs' "
        "moments against Monte Carlo. Monte Carlo's mean has the error of the last column's number of draws.",
        "Two units: 2,000 pairs, means within 2.5 deviations, correlations within 0.98, against nested quadrature.",
        "The sampling network is trained on frozen noise and judged on fresh noise; errors are norms over those of the "
        "posteriors (means: of their distance from the prior's).",
    ),
    source="",
    figure=_figure,
)

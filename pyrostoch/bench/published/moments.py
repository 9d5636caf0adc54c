"""The bench `moments`: propagated moments compared with Monte Carlo, for networks and for single units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from pyrostoch.bench.case import Bench, Case, Trained, TrialContext
from pyrostoch.bench.published.binary import binary_cnn, binary_mlp
from pyrostoch.bench.published.gaps import moments_time_ratio, random_network, unit_covariances
from pyrostoch.bench.published.posterior import fit_posteriors
from pyrostoch.bench.published.variance import VARIANCE, nothing_random
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MOMENTS"]

# Test images on which a pass is timed.
_TIMED = 2000
_MODES = ("mean", "mc:1", "mc:20", "mc:100", "moments", "moments:closed")

# Epochs and learning rates were chosen on 10,000 held-out training images.
_BINARY = {
    "quick": Recipe(epochs=2, lr=4e-3, estimator="moments:closed", examples=2000),
    "cpu": Recipe(epochs=20, lr=4e-3, estimator="moments:closed"),
}
_PSEUDOGRADIENT = {name: recipe.changed({"estimator": "local"}) for name, recipe in _BINARY.items()}
# Covariances cost the square of a layer's width, so the network trained with them is narrow; it is also trained with
# variances, for comparison.
_NARROW = {name: replace(recipe, epochs=min(recipe.epochs, 10)) for name, recipe in _BINARY.items()}
_FULL = {name: recipe.changed({"estimator": "moments:full:closed"}) for name, recipe in _NARROW.items()}
_WITH_COVARIANCES = (*_MODES, "moments:full")
_CONV = {**_BINARY, "cpu": Recipe(epochs=10, lr=4e-3, estimator="moments:closed")}
_NO_TRAINING = {"quick": Recipe(epochs=1), "cpu": Recipe(epochs=20)}
# Random networks: number of hidden layers, their width, and whether covariances are propagated.
_RANDOM = [(depth, width, False) for depth in (1, 2, 4) for width in (50, 200, 800)]
_RANDOM += [(depth, width, True) for depth in (1, 2, 4) for width in (50, 200)]
_SAMPLER = {"quick": Recipe(epochs=1, lr=2e-2), "cpu": Recipe(epochs=80, lr=2e-2)}


def _times(trained: Trained) -> dict[str, float]:
    return {"time/moments": moments_time_ratio(trained.model, trained.guide, trained.test[0][:_TIMED])}


def _figure(scores: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Errors of the random networks, by depth and width."""
    from pyrostoch.report.moments import moments_errors

    sizes = [(depth, width, full) for depth, width, full in _RANDOM if _random_name(depth, width, full) in scores]
    return moments_errors([(*size, scores[_random_name(*size)]) for size in sizes]) if sizes else None


def _trained(name: str) -> Case:
    """A case of the bench `variance`, with predictions by moments too."""
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
            f"narrow/{noise}/{kind}",
            f"784-50-50-10, noise {words}, trained by moments with {propagated}",
            partial(binary_mlp, widths=(50, 50), correlation=correlation),
            recipes,
            _WITH_COVARIANCES,
        )
        for noise, words, correlation in (("independent", "independent", 0.0), ("correlated", "correlated by 0.5", 0.5))
        for kind, propagated, recipes in (("diagonal", "variances", _NARROW), ("full", "covariances", _FULL))
    )


def _posterior(context: TrialContext) -> dict[str, float]:
    errors = fit_posteriors(epochs=context.recipe.epochs, lr=context.recipe.lr, seed=context.seed).to_dict()
    return {f"posterior/{name.replace('_', '-')}": value for name, value in errors.items()}


def _random_name(depth: int, width: int, full: bool) -> str:
    return f"random/{depth}x{width}/{'full' if full else 'diagonal'}"


def _random(depth: int, width: int, full: bool) -> Case:
    propagated = "full covariance" if full else "variances"
    return Case(
        name=_random_name(depth, width, full),
        title=f"Random ReLU network, {depth} hidden layer{'s' if depth > 1 else ''} of {width}, {propagated}",
        data=None,
        recipes=_NO_TRAINING,
        custom_trial=random_network(depth, width, full),
        cpu_only=True,
    )


#: The bench.
MOMENTS = Bench(
    name="moments",
    title="Moments and Monte Carlo",
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
        _binary(
            "dense/pseudogradient",
            "784-500-500-10, trained by the gradient of a soft threshold",
            binary_mlp,
            _PSEUDOGRADIENT,
        ),
        *_narrow(),
        _binary("conv/moments", "two convolutions and a dense layer, trained by moments", binary_cnn, _CONV),
        *(_random(*size) for size in _RANDOM),
        *(
            Case(
                f"covariance/{kind}",
                f"Covariance of two {words}",
                None,
                _NO_TRAINING,
                custom_trial=unit_covariances(kind),
                cpu_only=True,
            )
            for kind, words in (("threshold", "threshold units"), ("relu", "ReLUs"))
        ),
        Case(
            "posterior/rates",
            "Recurrent rate network that samples from posteriors",
            None,
            _SAMPLER,
            custom_trial=_posterior,
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
        ("nll/moments:closed", "NLL, moments, closed form"),
        ("time/moments", "time / time of one sample"),
        ("gap/variance", "output variance, relative error"),
        ("gap/mean", "output mean, error in standard deviations"),
        ("gap/draws", "draws with an equal error"),
        ("covariance/exact", "pyrostoch, largest error"),
        ("covariance/wu", "Wu et al., median relative error"),
        ("covariance/linear", "linearized, median relative error"),
        ("posterior/mean-error", "means, relative error"),
        ("posterior/covariance-error", "covariances, relative error"),
    ),
    published={},
    notes=(
        "A pass by moments propagates variances, or the full covariance where the table says so. Class probabilities "
        "are averages over 64 fixed points of the logits' Gaussian, or a closed-form approximation ('closed form').",
        "Networks of binary neurons are sampled at test: the state of every neuron is drawn, and the softmax of the "
        "scores is averaged over samples. 'Mean' replaces each neuron's state by its mean.",
        "Random networks: weights with He initialization, those of the first layer random with half of their second "
        "moment as variance, 20 inputs; errors of the ten outputs' moments against Monte Carlo. The last column of "
        "errors is the number of draws with which the mean by Monte Carlo has the same error; it is missing (-) where "
        "the error is not above the noise of its estimate.",
        "Two units: 2,000 pairs, means within 2.5 standard deviations, correlations within 0.98, compared with "
        "quadrature.",
        "The sampling network is trained on frozen noise and tested on new noise. Its errors are norms, divided by the "
        "norm of the posterior covariances, or by that of the posterior means' distances from the prior mean.",
    ),
    source="",
    figure=_figure,
)

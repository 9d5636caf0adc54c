"""The bench `layers`: stochastic layers by architecture, embodiment and distribution, and an information bottleneck."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from pyrostoch.bench.case import Bench, Case, Trained
from pyrostoch.bench.published.layers_networks import (
    ARCHITECTURES,
    DISTRIBUTIONS,
    EMBODIMENTS,
    bottleneck,
    drawn_layer,
    embodied,
    stochastic_cnn,
)
from pyrostoch.bench.published.variance import nothing_random
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.layers import StochasticLayer
from pyrostoch.likelihoods import BayesianSVM, Categorical, Likelihood
from pyrostoch.prediction.compare import accuracy_by_samples

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LAYERS"]

_MODES = ("mean", "noise-free", "mc:1", "mc:20")
# One weight of the rate for all small networks: they compare layers, and none is tuned.
_SMALL = {
    "quick": Recipe(epochs=1, lr=2e-3, rate_weight=1e-3, examples=500),
    "cpu": Recipe(epochs=4, lr=2e-3, rate_weight=1e-3),
}
_BOTTLENECK = {
    "quick": Recipe(epochs=1, batch_size=100, rate_weight=5e-3, examples=500),
    "cpu": Recipe(epochs=40, batch_size=100, lr=1e-3, schedule="cosine", rate_weight=5e-3),
}
_CNN = {
    "quick": Recipe(epochs=1, batch_size=100, lr=3e-3, rate_weight=3e-3, examples=500),
    "cpu": Recipe(epochs=36, batch_size=100, lr=3e-3, schedule="cosine", rate_weight=3e-3),
}


def _more_noise(trained: Trained) -> dict[str, float]:
    """Scores with the noise doubled, in layers whose noise has a size."""
    layers = [part for part in trained.model.net.modules() if isinstance(part, StochasticLayer)]
    if any(layer.family.noise is None for layer in layers):
        return {}
    try:
        for layer in layers:
            layer.noise_factor = 2.0
        rows = accuracy_by_samples(trained.model, trained.guide, trained.test, [1, 20], seed=trained.seed).rows
    finally:
        for layer in layers:
            layer.noise_factor = 1.0
    return {f"accuracy/doubled/{row.mode}": float(row.accuracy or 0.0) for row in rows}


def _case(
    name: str,
    title: str,
    network: Callable[[DataSplit], nn.Module],
    recipes: Mapping[str, Recipe],
    likelihood: Callable[[], Likelihood] = Categorical,
) -> Case:
    return Case(
        name=name,
        title=title,
        data="mnist",
        network=network,
        guide=nothing_random,
        recipes=recipes,
        likelihood=likelihood,
        modes=_MODES,
        elbo_draws=1,
        measure=_more_noise,
    )


_NAMES = {"svm": "SVM", "lstm": "LSTM", "gru": "GRU", "conv2d": "convolution"}


def _cases() -> tuple[Case, ...]:
    cases: list[Any] = [
        _case("mnist/conv+dense", "Convolution and fully connected layer, learned priors", stochastic_cnn, _CNN),
        _case("mnist/bottleneck", "Information bottleneck, 256 activations", bottleneck, _BOTTLENECK),
    ]
    for architecture in ARCHITECTURES:
        for embodiment in EMBODIMENTS:
            title = f"{_NAMES.get(architecture, architecture)}, {embodiment.replace('_', ' ')}"
            likelihood = BayesianSVM if architecture == "svm" else Categorical
            cases.append(
                _case(f"{architecture}/{embodiment}", title, embodied(architecture, embodiment), _SMALL, likelihood)
            )
    for kind in ("linear", "conv2d"):
        for distribution in DISTRIBUTIONS:
            title = f"{_NAMES.get(kind, kind)}, {distribution} activations"
            cases.append(_case(f"{kind}/{distribution}", title, drawn_layer(kind, distribution), _SMALL))
    return tuple(cases)


LAYERS = Bench(
    name="layers",
    title="Stochastic layers",
    cases=_cases(),
    columns=(
        ("accuracy/mc:1", "1 sample, %"),
        ("accuracy/mc:20", "20 samples, %"),
        ("accuracy/mean", "mean, %"),
        ("accuracy/noise-free", "noise off, %"),
        ("accuracy/doubled/mc:1", "noise doubled, 1 sample, %"),
        ("accuracy/doubled/mc:20", "noise doubled, 20 samples, %"),
        ("ece/mc:20", "ECE, 20 samples"),
        ("nll/mc:20", "NLL, 20 samples"),
        ("rate", "rate, nats an image"),
        ("information", "bound of the information let through, nats"),
    ),
    published={"mnist/bottleneck": {"accuracy/mc:20": 0.9887}},
    notes=(
        "All networks are trained on MNIST and scored on its test images after the last epoch. Except in the first two "
        "rows they are small and trained for four epochs with one weight of the rate, to show how layers behave; "
        "they are not tuned, and no claim is made that stochastic layers raise accuracy. Recipes of the first two rows "
        "were chosen on 5,000 held-out training images.",
        "The rate is KL(q(h | x) || p(h)), the sum over all stochastic layers, on average over the training images. It "
        "bounds the information of the image that the network lets through where every path crosses drawn "
        "activations, which is tried by putting the draws back; it has no value in that column otherwise.",
        "Noise doubled: standard deviations times two, logits divided by two; distributions without such a parameter "
        "have no value there. Rows of images are the steps of recurrent layers and the tokens of the transformer.",
        "The information bottleneck of Alemi et al. has the same layers, and an error of 1.13 % without augmentation, "
        "with twelve samples; here images are shifted by up to two pixels in training.",
    ),
    source="Alemi, Fischer, Dillon, Murphy 2017 (arXiv 1612.00410)",
)

"""TriDeNT: ternary neurons, with discrete gradients and discrete weights; estimators of their gradients; noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrostoch.bench.case import Bench, Case, Own, Trained
from pyrostoch.bench.published.discrete import discrete_updates, integers
from pyrostoch.bench.published.ternary import BINARY, TERNARY, MakeGradient, ternary_cnn, ternary_mlp
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.estimators import gradient_quality
from pyrostoch.guides import Additive, CategoricalWeights
from pyrostoch.layers import Ternary
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import seeded
from pyrostoch.priors import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TRIDENT"]

_MODES = ("mc:1", "mc:20", "mean", "noise-free", "moments")
_RECIPES = {
    "quick": Recipe(epochs=2, lr=4e-3, examples=2000),
    "cpu": Recipe(epochs=15, lr=4e-3),
}
# From the trained network of full precision. The KL never rises from 0: against 60,000 images, evenly likely levels of
# 1.6 million weights would have the say.
_LEVELS = {
    "quick": Recipe(epochs=2, lr=1e-3, lr_alpha=0.1, kl_warmup=(2.0, 3.0), examples=2000),
    "cpu": Recipe(epochs=15, lr=1e-3, lr_alpha=0.1, kl_warmup=(15.0, 16.0)),
}
_ONCE = {"quick": Recipe(epochs=1), "cpu": Recipe(epochs=100)}
_NOISES = (0.05, 0.15, 0.3, 0.6, 1.2)
_RESAMPLES = 10_000


def _guide(
    levels: bool, gradient: MakeGradient | None
) -> Callable[[BayesianModel, Recipe, nn.Module | None], nn.Module]:
    def make(model: BayesianModel, recipe: Recipe, origin: nn.Module | None) -> nn.Module:
        guide = CategoricalWeights(model) if levels else Additive(model)
        if gradient is not None:
            gradient().attach(guide)
        return guide

    return make


def _interval(trained: Trained) -> dict[str, float]:
    """Bootstrap interval of the accuracy with 20 samples, over test images."""
    x, y = trained.test
    with seeded(trained.seed, x.device):
        found = predict(trained.model, trained.guide, x, mode="mc:20")
    correct = (found.probs.argmax(-1).cpu() == y.cpu()).double()
    generator = torch.Generator().manual_seed(trained.seed)
    # A mean over images drawn with replacement, of numbers 0 and 1, has a binomial distribution.
    counts = torch.binomial(
        torch.full((_RESAMPLES,), float(len(correct)), dtype=torch.float64),
        correct.mean().expand(_RESAMPLES),
        generator=generator,
    )
    low, high = torch.quantile(counts / len(correct), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"accuracy/low": low, "accuracy/high": high}


def _stage(
    name: str,
    title: str,
    *,
    gradient: MakeGradient | None = None,
    levels: bool = False,
    data: str = "mnist",
    network: Callable[[DataSplit], nn.Module] | None = None,
    start: str | None = None,
) -> Case:
    layers = ("fc1", "scores") if levels else ()
    return Case(
        name=name,
        title=title,
        data=data,
        network=network or partial(ternary_mlp, gradient=gradient),
        guide=_guide(levels, gradient),
        recipes=_LEVELS if levels else _RECIPES,
        start=start,
        random={f"net.{layer}.weight": Grid() for layer in layers},
        modes=_MODES,
        measure=_measured if levels else _interval,
    )


def _measured(trained: Trained) -> dict[str, float]:
    return _interval(trained) | integers(trained)


def _quality(estimator: str, samples: int) -> Callable[[Own], Mapping[str, float]]:
    """A trial on a network of two layers of ternary neurons, 3^7 configurations."""

    def trial(own: Own) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(own.seed)
            net = nn.Sequential(nn.Linear(6, 4), Ternary(), nn.Linear(4, 3), Ternary(), nn.Linear(3, 3)).double()
            x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
            with torch.no_grad():
                net[4].weight.mul_(4.0)  # type: ignore[operator]

            def loss(out: Tensor) -> Tensor:
                return F.cross_entropy(out, y, reduction="none")

            repeats = 80 * own.recipe.epochs
            found = gradient_quality(net, x, loss, estimator=estimator, samples=samples, repeats=repeats)
        return {"gradient/bias": found.bias, "gradient/deviation": found.deviation, "gradient/cosine": found.cosine}

    return trial


def _times(own: Own) -> dict[str, float]:
    """Forward and backward time of ternary neurons, and of their normal numbers alone, beside that of ReLUs."""
    with seeded(own.seed, torch.device("cpu")):
        x, back = torch.randn(100, 2000), torch.randn(100, 2000)

        def both(layer: nn.Module) -> None:
            layer(x.detach().requires_grad_()).backward(back)

        ways: dict[str, Callable[[], object]] = {
            "relu": partial(both, nn.ReLU()),
            "neurons": partial(both, Ternary()),
            "numbers": partial(torch.randn_like, x),
        }
        # In turns, and the least of many: what else the machine does makes times longer, never shorter.
        least = dict.fromkeys(ways, math.inf)
        for _ in range(10 * own.recipe.epochs):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                least[name] = min(least[name], time.perf_counter() - begin)
    return {f"time/{name}": least[name] / least["relu"] for name in ("neurons", "numbers")}


_ESTIMATORS = {
    "straight-through": ("expected state, straight through", 1),
    "score": ("score function, baseline of another draw", 2),
    "path-sample-analytic": ("path sample, analytic", 1),
    "arm": ("ARM for three states", 1),
    "log-mean-exp": ("20 draws, log of the mean probability, straight through", 20),
}


def _figure(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Forward and backward pass, and accuracy against noise where it was measured."""
    from pyrostoch.report.trident import passes

    known = [(noise, scores[f"noise/{noise:g}"]) for noise in _NOISES if f"noise/{noise:g}" in scores]
    words = {"accuracy/mc:20": "20 samples", "accuracy/mc:1": "1 sample", "accuracy/noise-free": "without noise"}
    return passes({word: [(n, found[name]) for n, found in known] for name, word in words.items()} if known else {})


#: The benchmark.
TRIDENT = Bench(
    name="trident",
    title="Neurons with three states",
    cases=(
        _stage("dense/full", "784-2000-10, weights and gradients in full precision"),
        _stage("dense/ternary-gradients", "784-2000-10, ternary gradients", gradient=TERNARY),
        _stage("dense/binary-gradients", "784-2000-10, binary gradients", gradient=BINARY),
        _stage("dense/ternary-weights", "784-2000-10, ternary weights", levels=True, start="dense/full"),
        _stage(
            "dense/all",
            "784-2000-10, ternary weights, neurons and gradients",
            gradient=TERNARY,
            levels=True,
            start="dense/ternary-gradients",
        ),
        Case(
            "dense/discrete-updates",
            "784-2000-10, all ternary, weights that never leave their grid",
            "mnist",
            _RECIPES,
            modes=_MODES,
            measure=_measured,
            alone=discrete_updates,
        ),
        _stage(
            "dense/plain",
            "784-2000-10 without normalization and dropout",
            network=partial(ternary_mlp, plain=True, shift=0),
        ),
        _stage("dense/unshifted", "784-2000-10, images as they are", network=partial(ternary_mlp, shift=0)),
        _stage("conv/full", "Two convolutions and a dense layer", network=ternary_cnn),
        _stage("fashion/dense/full", "784-2000-10, Fashion-MNIST", data="fashion-mnist"),
        _stage(
            "fashion/dense/ternary-gradients",
            "784-2000-10, ternary gradients, Fashion-MNIST",
            data="fashion-mnist",
            gradient=TERNARY,
        ),
        _stage(
            "fashion/dense/all",
            "784-2000-10, all ternary, Fashion-MNIST",
            data="fashion-mnist",
            gradient=TERNARY,
            levels=True,
            start="fashion/dense/ternary-gradients",
        ),
        *(
            _stage(f"noise/{noise:g}", f"784-2000-10, noise {noise:g}", network=partial(ternary_mlp, noise=noise))
            for noise in _NOISES
        ),
        *(
            Case(f"gradient/{name}", words, None, _ONCE, alone=_quality(name, samples), cpu_only=True)
            for name, (words, samples) in _ESTIMATORS.items()
        ),
        Case("time", "Ternary neurons on 100 x 2000 values", None, _ONCE, alone=_times, cpu_only=True),
    ),
    columns=(
        ("accuracy/mc:1", "1 sample, %"),
        ("accuracy/mc:20", "20 samples, %"),
        ("accuracy/low", "from, %"),
        ("accuracy/high", "to, %"),
        ("accuracy/mean", "expected states, %"),
        ("accuracy/noise-free", "without noise, %"),
        ("accuracy/moments", "moments, %"),
        ("accuracy/integers", "integers, without noise, %"),
        ("nll/mc:20", "NLL, 20 samples"),
        ("cost/weight-bits", "bits of the weights"),
        ("cost/float-bits", "in single precision"),
        ("cost/additions", "additions"),
        ("cost/active", "with a state that is not 0"),
        ("cost/multiplications", "multiplications"),
        ("gradient/bias", "bias / exact gradient"),
        ("gradient/deviation", "deviation / exact gradient"),
        ("gradient/cosine", "mean cosine with it"),
        ("time/neurons", "forward and backward / ReLU's"),
        ("time/numbers", "their normal numbers alone / ReLU's"),
    ),
    published={"dense/plain": {"accuracy/mc:1": 0.9622}},
    notes=(
        "Neurons of the states -1, 0 and 1, thresholds at -0.5 and 0.5, noise 0.3 where no other is named; in "
        "784-2000-10 behind a batch normalization, and a fifth of the pixels dropped. Training images are shifted at "
        "random by up to a pixel each way, but for the rows 'images as they are' and 'without normalization and "
        "dropout'. 'From' and 'to' are the 95 % bootstrap interval of the accuracy with 20 samples over the test "
        "images.",
        "Discrete gradients: the error signal that comes back to the neurons and the gradients of all parameters, "
        "each limited to 2.5 of its deviations (which brings a bias) and with the scale of its tensor.",
        "Ternary weights: a categorical distribution for each weight of both layers, trained by local "
        "reparameterization and without a KL, from the trained network above; where gradients are discrete, from the "
        "one trained by them. Weights that never leave their grid start on it, and are moved by Adam's steps, drawn as "
        "whole states.",
        "Integers: the most probable weights, batch normalization fitted to them, in thresholds. Costs are those of "
        "one image; multiplications that are left scale the scores.",
        "The published number is that of a note that calls it preliminary; it does not say how it was read.",
        "Times: the least of many, in turns with ReLUs; meant to be 2.5 at most, which on a CPU the drawing of normal "
        "numbers alone is above.",
        "Estimators: two layers of ternary neurons, 2,187 configurations, against the exact gradient by enumeration.",
    ),
    source='"TriDeNT" (note)',
    figure=_figure,
)

"""The bench `trident`: ternary neurons with discrete gradients and weights, gradient estimators, and noise levels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrostoch.bench.case import Bench, Case, MakeGuide, Trained, TrialContext
from pyrostoch.bench.published.discrete import discrete_updates, integers
from pyrostoch.bench.published.ternary import BINARY, TERNARY, MakeGradient, ternary_cnn, ternary_mlp
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.estimators import gradient_quality
from pyrostoch.guides import Additive, CategoricalWeights, Guide
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
# Recipes of ternary weights, which start from the trained network of full precision. The KL's weight stays 0, since the
# KL of 1.6 million weights from a uniform distribution over levels would outweigh the data term of 60,000 images.
_TERNARY_WEIGHTS = {
    "quick": Recipe(epochs=2, lr=1e-3, lr_alpha=0.1, kl_warmup=(2.0, 3.0), examples=2000),
    "cpu": Recipe(epochs=15, lr=1e-3, lr_alpha=0.1, kl_warmup=(15.0, 16.0)),
}
_NO_TRAINING = {"quick": Recipe(epochs=1), "cpu": Recipe(epochs=100)}
_NOISES = (0.05, 0.15, 0.3, 0.6, 1.2)
# Bootstrap samples.
_RESAMPLES = 10_000


def _guide(ternary_weights: bool, gradient: MakeGradient | None) -> MakeGuide:
    def make(model: BayesianModel, recipe: Recipe, origin: Guide | None) -> Guide:
        guide = CategoricalWeights(model) if ternary_weights else Additive(model)
        if gradient is not None:
            gradient().attach(guide)
        return guide

    return make


def _interval(trained: Trained) -> dict[str, float]:
    """The 95 % bootstrap interval of the accuracy with 20 samples, over test images."""
    x, y = trained.test
    with seeded(trained.seed, x.device):
        prediction = predict(trained.model, trained.guide, x, mode="mc:20")
    correct = (prediction.probs.argmax(-1).cpu() == y.cpu()).double()
    generator = torch.Generator().manual_seed(trained.seed)
    # Each image is right or wrong, so the number of right ones among images drawn with replacement is binomial.
    counts = torch.binomial(
        torch.full((_RESAMPLES,), float(len(correct)), dtype=torch.float64),
        correct.mean().expand(_RESAMPLES),
        generator=generator,
    )
    low, high = torch.quantile(counts / len(correct), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"accuracy/low": low, "accuracy/high": high}


def _case(
    name: str,
    title: str,
    *,
    gradient: MakeGradient | None = None,
    ternary_weights: bool = False,
    data: str = "mnist",
    network: Callable[[DataSplit], nn.Module] | None = None,
    start: str | None = None,
) -> Case:
    layers = ("fc1", "scores") if ternary_weights else ()
    return Case(
        name=name,
        title=title,
        data=data,
        network=network or partial(ternary_mlp, gradient=gradient),
        guide=_guide(ternary_weights, gradient),
        recipes=_TERNARY_WEIGHTS if ternary_weights else _RECIPES,
        start=start,
        random={f"net.{layer}.weight": Grid() for layer in layers},
        modes=_MODES,
        measure=_interval_and_integers if ternary_weights else _interval,
    )


def _interval_and_integers(trained: Trained) -> dict[str, float]:
    return _interval(trained) | integers(trained)


def _gradient_quality(estimator: str, samples: int) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial of a gradient estimator in a network of two layers of ternary neurons, which has 3^7 configurations."""

    def trial(context: TrialContext) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(context.seed)
            net = nn.Sequential(nn.Linear(6, 4), Ternary(), nn.Linear(4, 3), Ternary(), nn.Linear(3, 3)).double()
            x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
            with torch.no_grad():
                net[4].weight.mul_(4.0)  # type: ignore[operator]

            def loss(out: Tensor) -> Tensor:
                return F.cross_entropy(out, y, reduction="none")

            repeats = 80 * context.recipe.epochs
            quality = gradient_quality(net, x, loss, estimator=estimator, samples=samples, repeats=repeats)
        return {
            "gradient/bias": quality.bias,
            "gradient/deviation": quality.deviation,
            "gradient/cosine": quality.cosine,
        }

    return trial


def _times(context: TrialContext) -> dict[str, float]:
    """Time of a forward and backward pass of ternary neurons, and of drawing their noise, relative to ReLUs."""
    with seeded(context.seed, torch.device("cpu")):
        x, output_gradient = torch.randn(100, 2000), torch.randn(100, 2000)

        def forward_and_backward(layer: nn.Module) -> None:
            layer(x.detach().requires_grad_()).backward(output_gradient)

        functions: dict[str, Callable[[], object]] = {
            "relu": partial(forward_and_backward, nn.ReLU()),
            "neurons": partial(forward_and_backward, Ternary()),
            "numbers": partial(torch.randn_like, x),
        }
        # The shortest of many alternating runs, since other work of the machine only makes runs longer.
        shortest = dict.fromkeys(functions, math.inf)
        for _ in range(10 * context.recipe.epochs):
            for name, function in functions.items():
                begin = time.perf_counter()
                function()
                shortest[name] = min(shortest[name], time.perf_counter() - begin)
    return {f"time/{name}": shortest[name] / shortest["relu"] for name in ("neurons", "numbers")}


_ESTIMATORS = {
    "straight-through": ("expected state, straight through", 1),
    "score": ("score function, another draw as baseline", 2),
    "path-sample-analytic": ("path sample, analytic", 1),
    "arm": ("ARM for three states", 1),
    "log-mean-exp": ("20 draws, log of the mean probability, straight through", 20),
}


def _figure(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Forward and backward pass of the neurons, and accuracy as a function of noise if it was measured."""
    from pyrostoch.report.trident import ternary_neurons

    measured = [(noise, scores[f"noise/{noise:g}"]) for noise in _NOISES if f"noise/{noise:g}" in scores]
    if not measured:
        return ternary_neurons({})
    labels = {"accuracy/mc:20": "20 samples", "accuracy/mc:1": "1 sample", "accuracy/noise-free": "without noise"}
    return ternary_neurons(
        {label: [(noise, metrics[name]) for noise, metrics in measured] for name, label in labels.items()}
    )


#: The bench.
TRIDENT = Bench(
    name="trident",
    title="Neurons with three states",
    cases=(
        _case("dense/full", "784-2000-10, weights and gradients in full precision"),
        _case("dense/ternary-gradients", "784-2000-10, ternary gradients", gradient=TERNARY),
        _case("dense/binary-gradients", "784-2000-10, binary gradients", gradient=BINARY),
        _case("dense/ternary-weights", "784-2000-10, ternary weights", ternary_weights=True, start="dense/full"),
        _case(
            "dense/all",
            "784-2000-10, ternary weights, neurons and gradients",
            gradient=TERNARY,
            ternary_weights=True,
            start="dense/ternary-gradients",
        ),
        Case(
            "dense/discrete-updates",
            "784-2000-10, all ternary, weights that stay on their grid during training",
            "mnist",
            _RECIPES,
            modes=_MODES,
            measure=_interval_and_integers,
            custom_trial=discrete_updates,
        ),
        _case(
            "dense/plain",
            "784-2000-10, without batch normalization and dropout",
            network=partial(ternary_mlp, plain=True, shift=0),
        ),
        _case("dense/unshifted", "784-2000-10, images without random shifts", network=partial(ternary_mlp, shift=0)),
        _case("conv/full", "Two convolutions and a dense layer", network=ternary_cnn),
        _case("fashion/dense/full", "784-2000-10, Fashion-MNIST", data="fashion-mnist"),
        _case(
            "fashion/dense/ternary-gradients",
            "784-2000-10, ternary gradients, Fashion-MNIST",
            data="fashion-mnist",
            gradient=TERNARY,
        ),
        _case(
            "fashion/dense/all",
            "784-2000-10, all ternary, Fashion-MNIST",
            data="fashion-mnist",
            gradient=TERNARY,
            ternary_weights=True,
            start="fashion/dense/ternary-gradients",
        ),
        *(
            _case(f"noise/{noise:g}", f"784-2000-10, noise {noise:g}", network=partial(ternary_mlp, noise=noise))
            for noise in _NOISES
        ),
        *(
            Case(
                f"gradient/{name}",
                title,
                None,
                _NO_TRAINING,
                custom_trial=_gradient_quality(name, samples),
                cpu_only=True,
            )
            for name, (title, samples) in _ESTIMATORS.items()
        ),
        Case("time", "Ternary neurons on 100 x 2000 values", None, _NO_TRAINING, custom_trial=_times, cpu_only=True),
    ),
    columns=(
        ("accuracy/mc:1", "1 sample, %"),
        ("accuracy/mc:20", "20 samples, %"),
        ("accuracy/low", "20 samples, 95 % interval from, %"),
        ("accuracy/high", "to, %"),
        ("accuracy/mean", "expected states, %"),
        ("accuracy/noise-free", "without noise, %"),
        ("accuracy/moments", "moments, %"),
        ("accuracy/integers", "integers, without noise, %"),
        ("nll/mc:20", "NLL, 20 samples"),
        ("cost/weight-bits", "bits of the weights"),
        ("cost/float-bits", "bits in single precision"),
        ("cost/additions", "additions"),
        ("cost/active", "additions with a state that is not 0"),
        ("cost/multiplications", "multiplications"),
        ("gradient/bias", "bias / exact gradient"),
        ("gradient/deviation", "standard deviation / exact gradient"),
        ("gradient/cosine", "mean cosine with the exact gradient"),
        ("time/neurons", "forward and backward pass / ReLU's"),
        ("time/numbers", "drawing the noise / ReLU's passes"),
    ),
    published={"dense/plain": {"accuracy/mc:1": 0.9622}},
    notes=(
        "Neurons have the states -1, 0 and 1, thresholds at -0.5 and 0.5, and noise of standard deviation 0.3 unless "
        "the row names another. In 784-2000-10 batch normalization comes before the neurons, and a fifth of the pixels "
        "is dropped in training. Training images are shifted randomly by up to one pixel in each direction, except in "
        "the rows 'without random shifts' and 'without batch normalization and dropout'. The interval is a bootstrap "
        "interval over the test images.",
        "Discrete gradients: the error signal at the neurons and the gradients of all parameters are discrete, each "
        "tensor with its own scale and clipped at 2.5 of its standard deviations, which causes a bias.",
        "Ternary weights: a categorical distribution for each weight of both layers, trained by local "
        "reparameterization and without a KL. Training starts from the trained network with full-precision weights "
        "and the same kind of gradients. Weights that stay on their grid during training start on it; each step of "
        "Adam is rounded at random to whole states.",
        "Integers: the network with the most probable weights, and batch normalization, fitted to them, as a part of "
        "the thresholds. Costs are per image; the remaining multiplications scale the scores.",
        "The published value is from a note that calls it preliminary; the note does not say how predictions were "
        "made.",
        "Times: the shortest of many runs that alternate with those of ReLUs. The aim was 2.5 at most; on a CPU, "
        "drawing normal numbers alone takes longer.",
        "Estimators: two layers of ternary neurons with 2,187 configurations, compared with the exact gradient by "
        "enumeration.",
    ),
    source='"TriDeNT" (note)',
    figure=_figure,
)

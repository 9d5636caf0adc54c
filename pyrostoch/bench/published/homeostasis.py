"""Homeostasis of binary neurons: transfer functions and accuracy when the noise changes, without and with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.bench.case import Bench, Case, Own
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.published.binary import NOISE, binary_mlp
from pyrostoch.bench.recipe import Recipe
from pyrostoch.guides import Additive
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction import compare
from pyrostoch.prediction.homeostasis import Homeostasis, noise_scaled
from pyrostoch.prediction.readouts import evaluating, seeded
from pyrostoch.report.homeostasis import transfer_functions
from pyrostoch.training import fit

__all__ = ["FACTORS", "HOMEOSTASIS", "WAYS", "Transfer", "transfer"]

#: Noise levels, in units of the trained one.
FACTORS = (0.5, 1.0, 2.0, 4.0)
#: What is done about a changed noise level.
WAYS = ("off", "bias", "gain-and-bias", "oracle")

# Inputs that the neurons adapt to, and images on which accuracy is measured.
_ADAPTED, _TESTED = 10_000, 10_000
# Factor of a noise that is removed.
_NONE = 1e-3
# Inputs of a neuron at which its transfer function is drawn, in deviations of its input; neurons that are averaged.
_GRID = 41
_RECIPES = {
    "quick": Recipe(epochs=2, lr=4e-3, estimator="moments:closed", examples=2000),
    "cpu": Recipe(epochs=10, lr=4e-3, estimator="moments:closed"),
}


@dataclass(frozen=True, eq=False)
class Transfer:
    """Mean transfer functions of a layer: the mean state as a function of the input.

    Args:
        axis: Inputs.
        reference: Mean state at the trained noise level, in the shape of `axis`.
        found: Mean state by noise level and by what was done about it.
    """

    axis: Tensor
    reference: Tensor
    found: dict[tuple[float, str], Tensor]

    def error(self, factor: float, way: str) -> float:
        """Largest distance from the reference.

        Args:
            factor: The noise level.
            way: What was done.
        """
        return (self.found[factor, way] - self.reference).abs().max().item()


def transfer(neurons: Any) -> Tensor:
    """Mean state of a layer's neurons at inputs from -3 to 3, averaged over neurons.

    Args:
        neurons: A layer of binary neurons, its noise as it is now.
    """
    axis = torch.linspace(-3.0, 3.0, _GRID)
    count = max(neurons.gain.numel(), 1)
    found: Tensor = neurons.expected(axis.unsqueeze(1).expand(-1, count)).mean(1)
    return found


def _train(x: Tensor, y: Tensor, net: nn.Module, recipe: Recipe, seed: int) -> BayesianModel:
    model = BayesianModel(net, prior={}, likelihood=Categorical(), num_data=len(x))
    fit(
        model,
        Additive(model),
        (x, y),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        estimator=recipe.estimator,
        seed=seed,
        progress=False,
    )
    return model


def _accuracy(model: BayesianModel, data: tuple[Tensor, Tensor], seed: int, samples: int = 20) -> float:
    mode = f"mc:{samples}"
    return float(compare(model, Additive(model), data, modes=(mode,), seed=seed)[mode].accuracy or 0.0)


def _prepare(homeostasis: Homeostasis, way: str, factor: float, x: Tensor, seed: int) -> None:
    """Do about the noise level, now in force, what a way does."""
    homeostasis.reset()
    if way == "oracle":
        homeostasis.oracle(factor)
    elif way != "off":
        homeostasis.learning_rate = (1.0, 0.0 if way == "bias" else 10.0)
        homeostasis.adapt(x, epochs=5, seed=seed)


def trial(own: Own) -> dict[str, float]:
    """Train a network, change its noise, and measure what each way restores; the first seed draws the figure.

    Args:
        own: Recipe, preset and seed.
    """
    split: Any = own.split
    most = own.recipe.examples or len(split.x_train)
    x, y = split.x_train[:most], split.y_train[:most]
    test = (split.x_test[: min(most, _TESTED)], split.y_test[: min(most, _TESTED)])
    adapted = x[:_ADAPTED]
    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(own.seed)
        net = binary_mlp(split)
        start = _noise_of_scores(net, adapted, own.seed)
        model = _train(x, y, net, own.recipe, own.seed)
        own.tell({"epoch": own.recipe.epochs, "note": "trained"})
        # Noise that is there in training is suppressed.
        found["scores/noise-before"], found["scores/noise-after"] = start, _noise_of_scores(net, adapted, own.seed)
        homeostasis = Homeostasis(net)
        homeostasis.calibrate(adapted, seed=own.seed)
        neurons = net.get_submodule("neurons1")
        curves: dict[tuple[float, str], Tensor] = {}
        for factor in FACTORS:
            for way in WAYS:
                with noise_scaled(net, factor):
                    _prepare(homeostasis, way, factor, adapted, own.seed)
                    curves[factor, way] = transfer(neurons)
                    found[f"accuracy/{way}/noise-{factor:g}"] = _accuracy(model, test, own.seed)
                    found[f"distance/{way}/noise-{factor:g}"] = homeostasis.distance(adapted, seed=own.seed)
                own.tell({"epoch": own.recipe.epochs, "note": f"noise x {factor:g}, {way}"})
        homeostasis.reset()
        shapes = Transfer(torch.linspace(-3.0, 3.0, _GRID), transfer(neurons), curves)
        for factor, way in curves:
            found[f"transfer/{way}/noise-{factor:g}"] = shapes.error(factor, way)
        whole = found["accuracy/off/noise-1"]
        lost = whole - found["accuracy/off/noise-4"]
        found["accuracy/lost/noise-4"] = lost
        found["accuracy/recovered/noise-4"] = (
            1.0 - (whole - found["accuracy/gain-and-bias/noise-4"]) / lost if lost else 0.0
        )
        with noise_scaled(net, _NONE):
            found["accuracy/noise-removed"] = _accuracy(model, test, own.seed)
        # Few neurons say more by how often they are 1 than by being 1: they need their noise.
        torch.default_generator.manual_seed(own.seed)
        few = binary_mlp(split, widths=(5,), noise=4.0 * NOISE)
        narrow = _train(x, y, few, own.recipe, own.seed)
        found["accuracy/few"] = _accuracy(narrow, test, own.seed, 100)
        with noise_scaled(few, _NONE):
            found["accuracy/few/noise-removed"] = _accuracy(narrow, test, own.seed, 100)
        # And one that has not met noise in training: it has a soft threshold's gradient and hardly any noise.
        torch.default_generator.manual_seed(own.seed)
        quiet = binary_mlp(split, noise=0.1 * NOISE)
        plain = _train(x, y, quiet, own.recipe.changed({"estimator": "local"}), own.seed)
        found["accuracy/trained-without"] = _accuracy(plain, test, own.seed)
        for factor in FACTORS:
            with noise_scaled(quiet, 10.0 * factor):
                found[f"accuracy/trained-without/noise-{factor:g}"] = _accuracy(plain, test, own.seed)
    if own.seed == 0:
        path = own.setting.out / "figures" / f"homeostasis-{own.setting.preset}.png"
        save_figure(transfer_functions(shapes, found), path)
    return found


def _noise_of_scores(net: nn.Module, x: Tensor, seed: int) -> float:
    """Variance of the class scores from noise over their variance across images."""
    with evaluating(net), seeded(seed, x.device):
        draws = torch.stack([net(x[:1000]) for _ in range(20)])
    return (draws.var(0).mean() / draws.mean(0).var(0).mean()).item()


#: The benchmark.
HOMEOSTASIS = Bench(
    name="homeostasis",
    title="Homeostasis of binary neurons",
    cases=(Case("mnist/dense", "784-500-500-10", "mnist", _RECIPES, alone=trial),),
    columns=(
        *(
            (f"accuracy/{way}/noise-{factor:g}", f"accuracy, noise x {factor:g}, {way.replace('-', ' ')}, %")
            for factor in FACTORS
            for way in WAYS
        ),
        ("accuracy/lost/noise-4", "lost at four times the noise, points"),
        ("accuracy/recovered/noise-4", "of it recovered by gain and bias, %"),
        *(
            (f"transfer/{way}/noise-4", f"transfer function, largest error, noise x 4, {way.replace('-', ' ')}")
            for way in WAYS
        ),
        ("accuracy/noise-removed", "accuracy, noise removed, %"),
        ("accuracy/few", "5 neurons at four times the noise, 100 samples, %"),
        ("accuracy/few/noise-removed", "the same, noise removed, %"),
        ("accuracy/trained-without", "trained with a tenth of the noise, accuracy there, %"),
        ("accuracy/trained-without/noise-1", "the same at the others' noise, %"),
        ("accuracy/trained-without/noise-4", "the same at four times that, %"),
        ("scores/noise-before", "scores, variance of noise over that of images, before training"),
        ("scores/noise-after", "the same after training"),
    ),
    published={},
    notes=(
        "Accuracy on the test images with 20 samples. The network is trained by moments at noise x 1; gain and bias of "
        "each neuron adapt to 10,000 training images without labels, towards its mean state and that state's variance "
        "across images as they were at noise x 1. The oracle scales weights and thresholds as the noise is.",
        "The transfer function is the mean state of the first layer's neurons against their input, averaged over them.",
    ),
    source="",
    across=True,
)

"""The bench `variance`: accuracy of variance layers and dropout with mean weights and with averaging over samples."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from pyrostoch.bench.case import Bench, Case, MakeGuide, TrialContext
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.published import toy
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.guides import Additive, Guide, LayerwiseAlpha, VarianceOnly
from pyrostoch.model import BayesianModel
from pyrostoch.models import VGG, CropAndFlip, LeNet5
from pyrostoch.priors import LogUniform
from pyrostoch.report import figures

__all__ = ["VARIANCE", "lenet5", "nothing_random"]

# Epochs and learning rates of the CPU preset were chosen on 10,000 held-out training images; the full recipe is the
# published one.
_LENET = {
    "quick": Recipe(epochs=2, lr=2e-3, examples=2000),
    "cpu": Recipe(epochs=15, lr=2e-3),
    "full": Recipe(epochs=200, lr=1e-3),
}
_DEEPER = {**_LENET, "cpu": Recipe(epochs=40, batch_size=100, lr=1e-2)}
_VGG = {"full": Recipe(epochs=550, batch_size=100, lr=1e-3, init_log_alpha=-10.0)}
_NARROW = {"cpu": Recipe(epochs=5, batch_size=100, lr=2e-3)}

#: CIFAR data sets: name of the loader, the title that the data set must have, and its name in cases.
_CIFAR = (
    ("cifar10", "CIFAR-10 (JPEG q75)", "cifar10-jpeg"),
    ("cifar10", "CIFAR-10", "cifar10"),
    ("cifar100-coarse", "CIFAR-100 (20 coarse labels)", "cifar100-coarse"),
    ("cifar100-fine", "CIFAR-100 (100 fine labels)", "cifar100-fine"),
)


def lenet5(split: DataSplit, **settings: Any) -> nn.Module:
    """LeNet5 for the images of a data set.

    Args:
        split: The data set.
        settings: Further arguments of `LeNet5`.
    """
    channels, height, width = split.input_shape
    return LeNet5(channels, split.num_classes or 1, (height, width), **settings)


def _vgg(**settings: Any) -> Callable[[DataSplit], nn.Module]:
    def make(split: DataSplit) -> nn.Module:
        channels, height, width = split.input_shape
        net = VGG(channels, split.num_classes or 1, (height, width), **settings)
        return nn.Sequential(OrderedDict(augment=CropAndFlip(4), vgg=net))

    return make


def nothing_random(model: BayesianModel, recipe: Recipe, origin: Guide | None) -> Guide:
    """A guide for a model without random weights.

    Args:
        model: The model.
        recipe: Not used.
        origin: Not used.
    """
    return Additive(model)


def _layerwise(model: BayesianModel, recipe: Recipe, origin: Guide | None) -> Guide:
    return LayerwiseAlpha(model, init_log_alpha=recipe.init_log_alpha)


def _variance(family: Any) -> MakeGuide:
    return lambda model, recipe, origin: VarianceOnly(model, family=family)


def _lenet_case(layers: str, family: str, recipes: dict[str, Recipe], full_on_cpu: bool = False) -> Case:
    names = layers.split("+")
    return Case(
        name=f"lenet5/{layers}/{family}",
        title=f"LeNet5/MNIST, {family} variance layer{'s' if len(names) > 1 else ''}: {' and '.join(names)}",
        data="mnist",
        network=lenet5,
        guide=_variance(family),
        recipes=recipes,
        random={f"{name}.weight": LogUniform() for name in names},
        modes=("mean", "mc:1", "mc:20", "mc:100"),
        needs_gpu=() if full_on_cpu else ("full",),
    )


def _vgg_case(kind: str, data: tuple[str, str, str], width: float = 1.0) -> Case:
    loader, title, short = data
    name = "vgg" if width == 1.0 else "vgg-narrow"
    random = {} if kind == "dropout" else {f"vgg.{pattern}": LogUniform() for pattern in VGG.VARIATIONAL}
    guides: dict[str, MakeGuide] = {
        "dropout": nothing_random,
        "gaussian": _variance("gaussian"),
        "layer-wise": _layerwise,
    }
    words = {
        "dropout": "binary dropout",
        "gaussian": "Gaussian variance layers: conv11, conv12, conv13, dense1",
        "layer-wise": "one alpha per layer: conv11, conv12, conv13, dense1",
    }
    return Case(
        name=f"{name}/{short}/{kind}",
        title=f"{'VGG' if width == 1.0 else f'VGG, widths x {width:g}'}, {title}, {words[kind]}",
        data=loader,
        data_title=title,
        network=_vgg(width=width),
        guide=guides[kind],
        recipes=_VGG if width == 1.0 else _NARROW,
        random=random,
        needs_gpu=("full",),
    )


def _toy(context: TrialContext) -> dict[str, float]:
    """Train on the toy problem and score; seed 0 draws the figure."""
    preset = context.setting.preset
    result = toy.train(preset, seed=context.seed)
    if context.seed == 0:
        save_figure(figures.toy(result), context.setting.out / "figures" / f"variance-toy-{preset}.png")
    return {
        f"{name}/{row.mode}": float(value)
        for row in result.scores.rows
        for name in ("accuracy", "nll", "ece")
        if (value := getattr(row, name)) is not None
    }


_CASES = (
    Case(
        name="toy/gaussian",
        title="Toy problem of four classes, Gaussian variance layer: 100 to 2",
        data=None,
        recipes={
            name: Recipe(epochs=preset.steps, batch_size=4 * preset.points, lr=preset.lr, schedule=preset.schedule)
            for name, preset in toy.PRESETS.items()
        },
        custom_trial=_toy,
        cpu_only=True,
    ),
    Case(
        name="lenet5/dense1/dropout",
        title="LeNet5/MNIST, binary dropout (p = 0.5) of dense1's inputs",
        data="mnist",
        network=lambda split: lenet5(split, dropout=0.5),
        guide=nothing_random,
        recipes=_LENET,
        modes=("mean", "mc:1", "mc:20", "mc:100"),
        needs_gpu=("full",),
    ),
    _lenet_case("dense1", "gaussian", _LENET, full_on_cpu=True),
    _lenet_case("dense1", "bernoulli", _LENET),
    _lenet_case("dense1", "uniform", _LENET),
    _lenet_case("conv2+dense1", "gaussian", _DEEPER),
    _vgg_case("gaussian", _CIFAR[0], width=0.25),
    *(_vgg_case(kind, data) for data in _CIFAR for kind in ("dropout", "gaussian", "layer-wise")),
)

_LENET_PUBLISHED = {"accuracy/mc:1": 0.982, "accuracy/mean": 0.113, "accuracy/mc:20": 0.993}

#: The bench.
VARIANCE = Bench(
    name="variance",
    title="Variance networks",
    cases=_CASES,
    columns=(
        ("accuracy/mc:1", "1 sample, %"),
        ("accuracy/mean", "mean weights, %"),
        ("accuracy/mc:20", "20 samples, %"),
        ("accuracy/mc:100", "100 samples, %"),
        ("nll/mc:20", "NLL, 20 samples"),
        ("ece/mc:20", "ECE, 20 samples"),
    ),
    published={
        "lenet5/dense1/dropout": {"accuracy/mc:1": 0.991, "accuracy/mean": 0.994, "accuracy/mc:20": 0.994},
        "lenet5/dense1/gaussian": _LENET_PUBLISHED,
        "vgg/cifar10/dropout": {"accuracy/mc:1": 0.91, "accuracy/mean": 0.931, "accuracy/mc:20": 0.934},
        "vgg/cifar10/layer-wise": {"accuracy/mc:1": 0.913, "accuracy/mean": 0.1, "accuracy/mc:20": 0.934},
        "vgg/cifar100-coarse/dropout": {"accuracy/mc:1": 0.775, "accuracy/mean": 0.798, "accuracy/mc:20": 0.817},
        "vgg/cifar100-coarse/layer-wise": {"accuracy/mc:1": 0.769, "accuracy/mean": 0.05, "accuracy/mc:20": 0.822},
    },
    notes=(
        "Only the named layers are random; everything else is fitted by maximum likelihood. Accuracy, NLL (nats per "
        "example) and ECE are measured on the test images after the last epoch.",
        "Bernoulli and uniform layers are trained by local reparameterization with matched moments, which is the same "
        "computation as for Gaussian layers; they are scored with weights drawn from their own distribution.",
        "Batch normalization is in evaluation mode at test; the published code leaves it in training mode, on test "
        "batches. The published CIFAR-100 row is for the 20 coarse labels, which the released code loads. Which layers "
        "of the published LeNet5 were random is not stated.",
        "Dropout is the baseline; no claim is made that variance layers are better. The toy problem is scored on new "
        "points; chance level is 25 %.",
        "The JPEG re-encoding of CIFAR-10 is a different data set from CIFAR-10 and has no published row.",
    ),
    source="Neklyudov et al. 2018 (arXiv 1803.03764)",
)

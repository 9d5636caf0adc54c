"""The cases `detection/*` of the bench `conditional`: objects found, segmented and followed under noise by class.

The noise is trained with the pixels of the true boxes as known classes; then a gate selects the classes of pixels, and
at inference there is the gate alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from pyrostoch.bench.case import Case, TrialContext
from pyrostoch.bench.published.detection_networks import PixelGate, object_network
from pyrostoch.bench.published.detection_picture import draw_scenes
from pyrostoch.bench.published.detection_scores import gate_scores, scene_scores, tracking_scores
from pyrostoch.bench.recipe import SceneRecipe
from pyrostoch.bench.trial import train_test_data
from pyrostoch.data import DigitClips, DigitScenes
from pyrostoch.guides import Additive
from pyrostoch.layers import Conditional, GatedSelection, PixelClasses
from pyrostoch.likelihoods import Categorical, Loss
from pyrostoch.model import BayesianModel
from pyrostoch.models import DetectionLoss
from pyrostoch.prediction.noise import activation_noise
from pyrostoch.prediction.readouts import seeded
from pyrostoch.training.fit import fit
from pyrostoch.training.two_steps import fit_two_steps

__all__ = ["DETECTION_CASES"]

_TARGETS = ("boxes", "labels", "pixels")
_PIXEL_WEIGHT = 100.0
_NOISE_SCENES, _BATCH = 200, 16
_DRAWN = ("detection/prepend", "detection/taught", "detection/noise/1.6", "detection/noise/6.4")
# Where the noise starts, about the standard deviation of the images; and further ones, for the curve of scores.
_SCALE, _CURVE = 0.4, (0.8, 1.6, 3.2, 6.4)


def _recipes(scale: float) -> dict[str, SceneRecipe]:
    """Recipes with a standard deviation at which the noise starts; few steps change it little."""
    common: dict[str, Any] = {"lr": 2e-3, "schedule": "cosine", "noise_weight": 0.3, "batch_size": 16}
    common["init_scale"] = scale
    return {
        "quick": SceneRecipe(
            epochs=4, second_epochs=2, scenes=200, clips=2, width=8, size=64, digits=(1, 3), examples=2000, **common
        ),
        "cpu": SceneRecipe(epochs=8, second_epochs=5, scenes=1000, clips=20, width=16, **common),
        "full": SceneRecipe(epochs=30, second_epochs=20, scenes=10_000, clips=100, width=24, **common),
    }


def _trial(embodiment: str | None, where: str, selection: str | None) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial.

    `selection` is `"gate"`; `"taught"`, a gate that was trained to tell the classes of pixels before; `"boxes"`, known
    classes at inference; or `None`, clean scenes.
    """

    def run(context: TrialContext) -> Mapping[str, float]:
        recipe, seed, split = context.recipe, context.seed, context.require_split()
        if not isinstance(recipe, SceneRecipe):
            raise TypeError(f"case {context.case.name}: expected a SceneRecipe, got {type(recipe).__name__}")
        device = torch.device(context.setting.device)
        (x, y), (x_test, y_test) = train_test_data(split, recipe, torch.device("cpu"))
        split = replace(split, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        size = recipe.size
        settings: dict[str, Any] = {"data": split, "size": size, "seed": seed, "digits": recipe.digits}
        train = DigitScenes("train", recipe.scenes, **settings)
        test = DigitScenes("test", recipe.scenes // 5, **settings).stored()
        with seeded(seed, device):
            build = object_network(embodiment, train.num_classes, size, recipe.width, recipe.init_scale, where)
            gate = GatedSelection(PixelGate(build.channels, train.num_classes + 1))
        classes = PixelClasses(train.num_classes, size=(size, size), stride=build.stride)
        build.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        likelihood = Loss(DetectionLoss(_PIXEL_WEIGHT), targets=_TARGETS)
        model = BayesianModel(build.network, likelihood=likelihood, num_data=len(train)).to(device)
        guide = Additive(model)
        data, gated = train.pairs(*_TARGETS), selection in ("gate", "taught")
        if selection == "taught":
            _teach(context, gate, data, classes, device)
        _train(context, model, guide, data, None if selection is None else classes, gate if gated else None)
        known = classes if selection == "boxes" else None
        clips = DigitClips("test", recipe.clips, **settings)
        scored: dict[str, Any] = {"mode": "mean" if selection is None else "mc:1", "seed": seed, "labels": known}
        metrics = scene_scores(model, guide, test, train.num_classes, **scored)
        metrics |= tracking_scores(model, guide, clips, **scored)
        if build.layer is not None:
            metrics |= _noise(model, guide, train, known)
        if build.layer is not None and gated:
            metrics |= gate_scores(build.network, build.layer, test, classes)
            if seed == 0 and context.case.name in _DRAWN and not context.setting.holdout:
                _picture(context, model, guide, build.layer, test)
        return {f"objects/{name}": value for name, value in metrics.items()}

    return run


class _PixelTargets(Dataset[tuple[Tensor, Tensor]]):
    """Images, and the class of each pixel by the boxes, of which the first counts where there are several."""

    def __init__(self, data: Any, classes: PixelClasses) -> None:
        self._data, self._classes = data, classes

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, targets = self._data[index]
        chosen = self._classes({name: part[None] for name, part in targets.items()})
        return image, chosen[0].int().argmax(0)


def _teach(context: TrialContext, gate: GatedSelection, data: Any, classes: PixelClasses, device: torch.device) -> None:
    """Train a gate to tell the classes of pixels, for the epochs of the second step; resumable."""
    recipe: Any = context.recipe
    model = BayesianModel(gate.gate, likelihood=Categorical(axis=1), num_data=len(data)).to(device)
    settings = context.settings("gate")
    fit(model, Additive(model), _PixelTargets(data, classes), epochs=recipe.second_epochs, **settings)


def _train(
    context: TrialContext,
    model: BayesianModel,
    guide: Additive,
    data: Any,
    classes: PixelClasses | None,
    gate: GatedSelection | None,
) -> None:
    """Train both steps, or only the first one; or, without classes, a clean network for as many epochs."""
    recipe: Any = context.recipe
    settings = context.settings()
    first: dict[str, Any] = {"noise_weight": recipe.noise_weight or 0.0}
    if gate is not None and classes is not None:
        epochs = (recipe.epochs, recipe.second_epochs)
        fit_two_steps(model, guide, data, selection=gate, epochs=epochs, labels=classes, first=first, **settings)
    elif classes is not None:
        fit(model, guide, data, epochs=recipe.epochs, labels=classes, **first, **settings)
    else:
        fit(model, guide, data, epochs=recipe.epochs + recipe.second_epochs, **settings)


def _noise(model: BayesianModel, guide: Additive, train: DigitScenes, known: PixelClasses | None) -> dict[str, float]:
    """The noise beside the clean activation, on training scenes, and 1 where it is as large as is required."""
    some = Subset(train.pairs(*_TARGETS), range(min(_NOISE_SCENES, len(train))))
    (row,) = activation_noise(model, guide, some, labels=known, batch_size=_BATCH).rows
    return {
        "noise-ratio": row.ratio,
        "noise-lowest": row.lowest,
        "noise-covered": row.covered,
        "noise-enough": float(row.ratio >= 1.0 and row.lowest >= 0.5),
    }


def _picture(
    context: TrialContext, model: BayesianModel, guide: Additive, layer: Conditional, test: Mapping[str, Tensor]
) -> None:
    name = f"conditional-{context.case.name.replace('/', '-')}-{context.setting.preset}.png"
    few = {name: part[:4] for name, part in test.items()}
    draw_scenes(model, guide, layer, few, context.setting.out / "figures" / name)


def _case(
    name: str, title: str, embodiment: str | None, selection: str | None, scale: float = 0.0, where: str = "output"
) -> Case:
    trial = _trial(embodiment, where, selection)
    return Case(f"detection/{name}", f"objects, {title}", "mnist", _recipes(scale), custom_trial=trial)


DETECTION_CASES = (
    _case("clean", "clean", None, None),
    _case("prepend", "in front", "prepend", "gate", _SCALE),
    _case("taught", "in front, gate taught by boxes", "prepend", "taught", _SCALE),
    _case("oracle", "in front, true boxes given", "prepend", "boxes", _SCALE),
    _case("merge_then_sample", "merge then sample", "merge_then_sample", "gate", 1.5),
    _case("sample_then_merge", "sample then merge", "sample_then_merge", "gate", 0.5),
    # The noise of all eleven classes is added, whatever the selection.
    _case("input", "in front, input selected", "prepend", "gate", _SCALE / 11, "input"),
    *(_case(f"noise/{scale:g}", f"in front, noise from {scale:g}", "prepend", "gate", scale) for scale in _CURVE),
)

"""The cases `scenes/*` of the bench `privacy`: digits read from obfuscated scenes in which a detector finds objects.

The detector tells digits greater than 5 from others; the attacker wants the digits, and knows where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pyrostoch._seeds import mixed_seed
from pyrostoch.bench.case import Case, TrialContext
from pyrostoch.bench.published.detection_networks import PixelGate, noise_kernels
from pyrostoch.bench.published.detection_scores import scene_scores
from pyrostoch.bench.published.privacy_objects import SceneObjects, objects_read
from pyrostoch.bench.recipe import SceneAuditRecipe
from pyrostoch.bench.trial import train_test_data
from pyrostoch.data import DataSplit, DigitScenes
from pyrostoch.guides import Additive
from pyrostoch.layers import Conditional, GatedSelection, PixelClasses, StochasticAdditive
from pyrostoch.layers.embody import prepend
from pyrostoch.likelihoods import Loss
from pyrostoch.model import BayesianModel
from pyrostoch.models import DetectionLoss, Detector
from pyrostoch.obfuscate import Client, Screening, progressive
from pyrostoch.prediction.readouts import seeded
from pyrostoch.training.checkpoint import load
from pyrostoch.training.fit import fit
from pyrostoch.training.two_steps import fit_two_steps

__all__ = ["SCENE_CASES"]

_TARGETS = ("boxes", "labels", "pixels")
_PIXEL_WEIGHT = 100.0
_CLASSES = 2
# Where noise by class starts, and the standard deviations of isotropic noise.
_BY_CLASS, _ISOTROPIC = (0.4, 1.6, 3.2, 6.4), (0.2, 0.4, 0.8, 1.6)
# Clean shares of progressive training; 5 % of so few scenes would be none.
_SHARES = (0.25, 0.5)


class _SceneTrial:
    """What the cases have in common: scenes, and detectors with two classes of objects.

    Args:
        context: The trial.
    """

    def __init__(self, context: TrialContext) -> None:
        if not isinstance(context.recipe, SceneAuditRecipe):
            name = type(context.recipe).__name__
            raise TypeError(f"case {context.case.name}: expected a SceneAuditRecipe, got {name}")
        self.context, self.recipe = context, context.recipe
        self.device = torch.device(context.setting.device)
        split = context.require_split()
        (x, y), (x_test, y_test) = train_test_data(split, self.recipe, torch.device("cpu"))
        self._digits = replace(split, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        large, large_test = (y > 5).long(), (y_test > 5).long()
        self._split = replace(self._digits, y_train=large, y_test=large_test, num_classes=_CLASSES)
        self.train = self._scenes("train", self.recipe.scenes, self._split, context.seed)

    def _scenes(self, part: str, count: int, split: DataSplit, seed: int) -> DigitScenes:
        return DigitScenes(part, count, data=split, size=self.recipe.size, digits=self.recipe.digits, seed=seed)

    def model(self) -> tuple[BayesianModel, Additive]:
        """A detector without noise, untrained."""
        with seeded(self.context.seed, self.device):
            network = Detector(num_classes=_CLASSES, width=self.recipe.width, pixels=True)
        return self.of(network)

    def of(self, network: nn.Module) -> tuple[BayesianModel, Additive]:
        """Model and guide of a network.

        Args:
            network: The network.
        """
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        likelihood = Loss(DetectionLoss(_PIXEL_WEIGHT), targets=_TARGETS)
        model = BayesianModel(network, likelihood=likelihood, num_data=len(self.train)).to(self.device)
        return model, Additive(model)

    def average_precision(self, model: BayesianModel, guide: Additive, mode: str) -> float:
        """AP50 on test scenes, as a fraction.

        Args:
            model: The model of a detector.
            guide: Its guide.
            mode: Mode of the outputs.
        """
        test = self._scenes("test", self.recipe.scenes // 5, self._split, self.context.seed).stored()
        return scene_scores(model, guide, test, _CLASSES, mode=mode, seed=self.context.seed)["ap50"] / 100.0

    def objects(self) -> dict[str, SceneObjects]:
        """The attacker's scenes, in two parts, which are not those of the detector, and the test scenes."""
        seed = self.context.seed
        own = self._scenes("train", self.recipe.attackers, self._digits, mixed_seed(seed, 1) % 2**31).stored()
        count = round(0.9 * self.recipe.attackers)
        return {
            "train": SceneObjects({name: part[:count] for name, part in own.items()}),
            "validation": SceneObjects({name: part[count:] for name, part in own.items()}),
            "test": SceneObjects(self._scenes("test", self.recipe.scenes // 5, self._digits, seed).stored()),
        }


def _clean(context: TrialContext) -> Mapping[str, float]:
    """A trial of the detector without noise."""
    trial = _SceneTrial(context)
    model, guide = trial.model()
    fit(model, guide, trial.train.pairs(*_TARGETS), epochs=trial.recipe.epochs, **context.settings())
    return {"scenes/ap50": trial.average_precision(model, guide, "mean")}


def _noisy(kind: str, scale: float) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial of a kind of noise in front of the detector, which goes on from the clean one."""

    def run(context: TrialContext) -> Mapping[str, float]:
        trial = _SceneTrial(context)
        recipe, settings, data = trial.recipe, context.settings(), trial.train.pairs(*_TARGETS)
        clean, clean_guide = trial.model()
        load(context.start_folder() / "checkpoint.safetensors", clean, clean_guide)
        size = recipe.size
        with seeded(context.seed, trial.device):
            if kind == "isotropic":
                layer: nn.Module = StochasticAdditive((1, size, size), scale=scale).requires_grad_(False)
            else:
                layer = Conditional(lambda: noise_kernels(1, scale), _CLASSES, where="output", background="class")
            gate = GatedSelection(PixelGate(1, _CLASSES + 1))
        model, guide = trial.of(prepend(clean.net, layer))
        if kind == "isotropic":
            fit(model, guide, data, epochs=recipe.layer_epochs + recipe.second_epochs, **settings)
        else:
            fit_two_steps(
                model,
                guide,
                data,
                selection=gate,
                epochs=(recipe.layer_epochs, recipe.second_epochs),
                labels=PixelClasses(_CLASSES, size=(size, size)),
                first={"noise_weight": recipe.noise_weight or 0.0},
                **settings,
            )
        metrics = {"scenes/ap50": trial.average_precision(model, guide, "mc:1")}
        client = Client(model, guide, at="stochastic")
        budgets = recipe.attack_epochs, recipe.most_epochs
        return metrics | objects_read(client, trial.objects(), *budgets, seed=context.seed)

    return run


def _progressive(context: TrialContext) -> Mapping[str, float]:
    """A trial of progressive training of the detector: few clean scenes, and the rest under noise by class."""
    trial = _SceneTrial(context)
    recipe, size = trial.recipe, trial.recipe.size
    clean, _ = trial.model()
    with seeded(context.seed, trial.device):
        layer = Conditional(lambda: noise_kernels(1, _BY_CLASS[0]), _CLASSES, where="output", background="class")
        gate = GatedSelection(PixelGate(1, _CLASSES + 1))
    model, guide = trial.of(prepend(clean.net, layer))
    settings = context.settings() | {"checkpoint": context.checkpoint().parent}
    found = progressive(
        model,
        guide,
        trial.train.pairs(*_TARGETS),
        selection=gate,
        shares=_SHARES,
        labels=PixelClasses(_CLASSES, size=(size, size)),
        screening=Screening(fraction=0.25, patch=8),
        epochs={
            "clean": recipe.epochs,
            "classes": recipe.layer_epochs,
            "selection": recipe.second_epochs,
            "mixed": recipe.epochs,
        },
        steps={"classes": {"noise_weight": recipe.noise_weight or 0.0}},
        score=lambda model, guide: trial.average_precision(model, guide, "mean"),
        **settings,
    )
    metrics = dict[str, float]()
    for stage in found.stages:
        metrics[f"scenes/alone-{100 * stage.share:g}"] = stage.alone
        metrics[f"scenes/result-{100 * stage.share:g}"] = stage.mixed
        metrics[f"noise/ratio-{100 * stage.share:g}"] = float(stage.noise or 0.0)
    return metrics


def _case(name: str, title: str, trial: Callable[[TrialContext], Mapping[str, float]], start: str | None) -> Case:
    return Case(f"scenes/{name}", f"objects, {title}", "mnist", _RECIPES, start=start, custom_trial=trial)


_COMMON: dict[str, Any] = {"lr": 2e-3, "schedule": "cosine", "noise_weight": 0.3, "batch_size": 16}
_RECIPES = {
    "quick": SceneAuditRecipe(
        epochs=4,
        layer_epochs=2,
        second_epochs=2,
        scenes=200,
        width=8,
        size=64,
        digits=(1, 3),
        examples=2000,
        attackers=200,
        attack_epochs=1,
        most_epochs=3,
        **_COMMON,
    ),
    "cpu": SceneAuditRecipe(
        epochs=10,
        layer_epochs=5,
        second_epochs=5,
        scenes=1000,
        attackers=3000,
        attack_epochs=10,
        most_epochs=60,
        **_COMMON,
    ),
    "full": SceneAuditRecipe(
        epochs=40,
        layer_epochs=20,
        second_epochs=20,
        scenes=10_000,
        width=24,
        attackers=10_000,
        attack_epochs=20,
        most_epochs=200,
        **_COMMON,
    ),
}

SCENE_CASES = (
    _case("clean", "clean", _clean, None),
    *(
        _case(f"gate/{scale:g}", f"noise by class from {scale:g}", _noisy("gate", scale), "scenes/clean")
        for scale in _BY_CLASS
    ),
    *(
        _case(f"isotropic/{scale:g}", f"isotropic noise, {scale:g}", _noisy("isotropic", scale), "scenes/clean")
        for scale in _ISOTROPIC
    ),
    _case("progressive", "progressive training", _progressive, None),
)

"""The bench `privacy`: what is learned from obfuscated examples, and what attackers read of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from pyrostoch._seeds import mixed_seed
from pyrostoch.bench.case import Bench, Case, TrialContext
from pyrostoch.bench.published.conditional_networks import classifier, gate
from pyrostoch.bench.published.privacy_audit import AUDIT_CASES
from pyrostoch.bench.published.privacy_picture import draw_curves
from pyrostoch.bench.published.privacy_scenes import SCENE_CASES
from pyrostoch.bench.recipe import ProgressiveRecipe
from pyrostoch.bench.trial import train_test_data
from pyrostoch.guides import Additive
from pyrostoch.layers import Conditional, GatedSelection, MCDropout, StochasticAdditive
from pyrostoch.layers.embody import prepend
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate import Screening, progressive
from pyrostoch.prediction.compare import compare
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import seeded
from pyrostoch.training.fit import fit

__all__ = ["PRIVACY"]

_SHARES = (0.05, 0.25)
# Weight of the mean log standard deviation while the layer is trained, as in the bench `conditional`.
_NOISE_WEIGHT = 0.1
_SCREENING = Screening(fraction=0.25, patch=4)


def _recipe_of(epochs: int, clean: int, layer: int, **settings: Any) -> ProgressiveRecipe:
    common: dict[str, Any] = {"lr": 1e-3, "schedule": "cosine", "noise_weight": _NOISE_WEIGHT}
    return ProgressiveRecipe(epochs=epochs, clean_epochs=clean, layer_epochs=layer, **common, **settings)


_RECIPES = {
    "quick": _recipe_of(1, 4, 2, batch_size=50, examples=2000),
    "cpu": _recipe_of(3, 20, 10, batch_size=100),
    "full": _recipe_of(20, 60, 30, batch_size=100),
}
# Rounds in which BALD chooses the clean part, and the number of examples among which it chooses in each.
_ROUNDS, _POOL, _DRAWS = 5, 10_000, 20

Pair = tuple[Tensor, Tensor]


def _recipe(context: TrialContext) -> ProgressiveRecipe:
    if not isinstance(context.recipe, ProgressiveRecipe):
        raise TypeError(f"case {context.case.name}: expected a ProgressiveRecipe, got {type(context.recipe).__name__}")
    return context.recipe


def _settings(context: TrialContext) -> dict[str, Any]:
    recipe = _recipe(context)
    settings: dict[str, Any] = {"batch_size": recipe.batch_size, "lr": recipe.lr, "schedule": recipe.schedule}
    return settings | {"seed": context.seed, "progress": False, "callback": context.progress, "resume": True}


def _accuracy(model: BayesianModel, guide: Any, test: Pair) -> float:
    row: Any = compare(model, guide, test, modes=("mean",)).rows[0]
    return float(row.accuracy)


def _name(share: float) -> str:
    return f"{100 * share:g}"


def _progressive(
    screening: Screening | None = _SCREENING, obfuscate_by: str = "labels", choose: str = "random"
) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial of progressive training."""

    def run(context: TrialContext) -> Mapping[str, float]:
        recipe, device = _recipe(context), torch.device(context.setting.device)
        train, test = train_test_data(context.require_split(), recipe, device)
        channels, size = train[0].shape[1], train[0].shape[2]
        with seeded(context.seed, device):
            layer = Conditional(
                lambda: StochasticAdditive((channels, size, size), scale=recipe.layer_scale), 10, where="output"
            )
            net = prepend(classifier(channels, size), layer)
            model = BayesianModel(net, likelihood=Categorical(), num_data=len(train[0])).to(device)
            selection = GatedSelection(gate(channels, size))
        guide = Additive(model)
        order: Tensor | None = None
        shares: tuple[float, ...] = _SHARES
        if choose == "bald":
            order, shares = _by_disagreement(context, train), _SHARES[:1]
        found = progressive(
            model,
            guide,
            train,
            selection=selection,
            shares=shares,
            order=order,
            obfuscate_by=obfuscate_by,  # type: ignore[arg-type]
            screening=screening,
            epochs={
                "clean": recipe.clean_epochs,
                "classes": recipe.layer_epochs,
                "selection": recipe.layer_epochs,
                "mixed": recipe.epochs,
            },
            steps={"classes": {"noise_weight": recipe.noise_weight or 0.0}},
            score=lambda model, guide: _accuracy(model, guide, test),
            checkpoint=context.checkpoint().parent,
            **_settings(context),
        )
        metrics: dict[str, float] = {}
        for stage in found.stages:
            metrics[f"accuracy/alone-{_name(stage.share)}"] = stage.alone
            metrics[f"accuracy/result-{_name(stage.share)}"] = stage.mixed
            metrics[f"noise/ratio-{_name(stage.share)}"] = float(stage.noise or 0.0)
        row: Any = compare(model, guide, test, modes=("mc:1",), seed=context.seed).rows[0]
        return metrics | {"accuracy/obfuscated": float(row.accuracy)}

    return run


def _by_disagreement(context: TrialContext, train: Pair) -> Tensor:
    """The clean part as BALD chooses it, in rounds: examples of which the draws of a network disagree most."""
    recipe, device = _recipe(context), torch.device(context.setting.device)
    total, channels, size = len(train[0]), train[0].shape[1], train[0].shape[2]
    wanted = round(_SHARES[0] * total)
    generator = torch.Generator().manual_seed(mixed_seed(context.seed, 1))
    order = torch.randperm(total, generator=generator)
    chosen, left = order[: wanted // _ROUNDS], order[wanted // _ROUNDS :]
    for number in range(1, _ROUNDS):
        with seeded(mixed_seed(context.seed, 2, number), device):
            network = classifier(channels, size)
            model = BayesianModel(
                nn.Sequential(network[:-1], MCDropout(0.5), network[-1]),
                likelihood=Categorical(),
                num_data=len(chosen),
            ).to(device)
        guide = Additive(model)
        settings = _settings(context) | {"checkpoint": context.checkpoint().with_name(f"bald.{number}.safetensors")}
        fit(model, guide, (train[0][chosen], train[1][chosen]), epochs=recipe.clean_epochs, **settings)
        pool = left[torch.randperm(len(left), generator=generator)][:_POOL]
        found = predict(model, guide, train[0][pool], mode=f"mc:{_DRAWS}", seed=context.seed)
        if found.epistemic is None:
            raise ValueError(f"case {context.case.name}: expected classes, whose draws can disagree")
        count = (wanted - len(chosen)) // (_ROUNDS - number)
        new = pool[found.epistemic.cpu().argsort(descending=True)[:count]]
        keep = torch.ones(total, dtype=torch.bool)
        keep[new] = False
        chosen, left = torch.cat([chosen, new]), left[keep[left]]
    return chosen


def _plain(kind: str) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial without obfuscated examples: `"clean-part"`, `"pseudo-labels"` or `"all-clean"`."""

    def run(context: TrialContext) -> Mapping[str, float]:
        recipe, device = _recipe(context), torch.device(context.setting.device)
        train, test = train_test_data(context.require_split(), recipe, device)
        total = len(train[0])
        order = torch.randperm(total, generator=torch.Generator().manual_seed(mixed_seed(context.seed, 0)))
        with seeded(context.seed, device):
            network = classifier(train[0].shape[1], train[0].shape[2])
            model = BayesianModel(network, likelihood=Categorical(), num_data=total).to(device)
        guide, metrics = Additive(model), dict[str, float]()
        settings, folder = _settings(context), context.checkpoint().parent

        def step(name: str, data: Any, epochs: int) -> None:
            model.num_data = len(data)
            fit(model, guide, data, epochs=epochs, checkpoint=folder / f"{name}.safetensors", **settings)

        if kind == "all-clean":
            step("all", TensorDataset(*train), recipe.clean_epochs)
            return {f"accuracy/result-{_name(share)}": _accuracy(model, guide, test) for share in _SHARES}
        for share in _SHARES:
            rows = order[: round(share * total)]
            clean = TensorDataset(train[0][rows], train[1][rows])
            step(f"{_name(share)}.clean", clean, recipe.clean_epochs)
            metrics[f"accuracy/alone-{_name(share)}"] = _accuracy(model, guide, test)
            if kind == "clean-part":  # as many steps as on both parts
                step(f"{_name(share)}.more", clean, round(recipe.epochs / share))
            else:
                labels = train[1].clone()
                others = order[round(share * total) :]
                probs: Any = predict(model, guide, train[0][others], mode="mean").probs
                labels[others] = probs.argmax(-1).to(labels)
                step(f"{_name(share)}.both", Subset(TensorDataset(train[0], labels), order.tolist()), recipe.epochs)
            metrics[f"accuracy/result-{_name(share)}"] = _accuracy(model, guide, test)
        return metrics

    return run


def _case(name: str, title: str, trial: Callable[[TrialContext], Mapping[str, float]]) -> Case:
    return Case(f"progressive/{name}", title, "mnist", _RECIPES, custom_trial=trial)


PRIVACY = Bench(
    name="privacy",
    title="Obfuscated examples",
    cases=(
        _case("labels", "obfuscated by labels", _progressive()),
        _case("selection", "obfuscated by the selection", _progressive(obfuscate_by="selection")),
        _case("unscreened", "nothing screened", _progressive(screening=None)),
        _case("bald", "clean part chosen by BALD", _progressive(choose="bald")),
        _case("clean-part", "the clean part alone, as many steps", _plain("clean-part")),
        _case("pseudo-labels", "clean rest with pseudo-labels", _plain("pseudo-labels")),
        _case("all-clean", "all data clean", _plain("all-clean")),
        *AUDIT_CASES,
        *SCENE_CASES,
    ),
    columns=(
        ("accuracy/alone-5", "after 5 % clean, %"),
        ("accuracy/result-5", "with the rest, %"),
        ("accuracy/alone-25", "after 25 % clean, %"),
        ("accuracy/result-25", "with the rest, %"),
        ("noise/ratio-5", "noise / signal at 5 %"),
        ("noise/ratio-25", "noise / signal at 25 %"),
        ("accuracy/obfuscated", "of obfuscated images, one draw, %"),
        ("scenes/ap50", "AP50, %"),
        ("accuracy/clean", "task without noise, %"),
        ("probe", "linear probe at the cut, %"),
        ("client/share", "client's multiplications, %"),
        ("accuracy/sent", "task from one query, %"),
        *((f"digit/{count}", f"digit read from {count}, %") for count in ("label", "noise-free", 1, 10, 100)),
        *((f"mse/{count}", f"squared error from {count}") for count in ("label", "noise-free", 1, 10, 100)),
        ("mse/ssim/1", "SSIM from 1"),
        ("searched/normal/1", "squared error, search, normal prior"),
        ("searched/generative/1", "squared error, search, generative prior"),
        ("bound/rate", "told at most, nats"),
        ("bound/least", "told at least, nats"),
        ("epsilon/1", "epsilon, 1 query"),
        ("epsilon/100", "epsilon, 100 queries"),
        ("strength", "strength"),
        ("strength/reached", "at most half read"),
        ("digit/counts/1", "verdict on the digit counts"),
        ("mse/counts/1", "verdict on the image counts"),
    ),
    published={},
    notes=(
        "A small convolutional network is trained on 5 % of MNIST, then on both parts with the rest obfuscated by its "
        "own conditional layer (noise with a mean and a standard deviation for each class and pixel), then on 25 %. "
        "A quarter of the obfuscated images is screened in patches of 4 x 4, anew in every epoch. Accuracies are those "
        "on clean test images by the mean; the last column is under the layer and its gate.",
        "Pseudo-labels are those that the network of the first step gives the clean images of the rest, whose labels "
        "are then not used. BALD chooses the 5 % in five rounds, each among 10,000 images, by the mutual information "
        "of 20 draws of dropout. The clean part alone is trained for as many steps as both parts together.",
        "Audits: a client sends the noisy activations of a layer of LeNet5 (6 and 16 convolutions, 120 neurons) that "
        "tells whether a digit is greater than 5; attackers want the digit and the image. Noise by class has a learned "
        "mean and standard deviation for each unit and each of the two classes, under a weight of its rate; its soft "
        "selection is a gate that is linear in what the client computes. The layers up to the cut are those of the "
        "network without noise, except in the bottleneck, which trains them, too. The weight is the least of .001, "
        ".003, .01, .03, .1, .3 with which an attacker reads at most half of the digits of held-out training images. "
        "The other kinds of noise have the strength with which the task is as accurate on these, found by bisection.",
        "Isotropic noise is a Gaussian mechanism: activations are clipped to the median of their norms; epsilon is for "
        "delta = 1e-5. The predicted class is the choice of a gate that was trained by itself.",
        "A squared error is that of reconstructed images; the column of the label is a guess from the task's answer "
        "alone: the client might compute the answer itself and send nothing else. Where a linear probe of the clean "
        "activations is as good as the network, it could. Attackers train on fresh draws; a verdict counts (1) where "
        "the attacker was strong enough. The search attacks 100 images.",
        "Objects: a detector tells digits greater than 5 from others on scenes of 2 to 5 digits, under noise in front "
        "of it: kernels of 5 x 5 for both classes and the background, with a gate for the classes of pixels, or "
        "isotropic noise on the pixels. It goes on from the clean detector. Attackers see what was sent of 32 x 32 "
        "pixels around each true box.",
    ),
    source="",
    figure=draw_curves,
)

"""The cases `progressive/*` of the bench `privacy`: learning from few clean examples and many obfuscated ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from pyrostoch._seeds import mixed_seed
from pyrostoch.bench.case import Case, TrialContext
from pyrostoch.bench.published.conditional_networks import classifier, gate
from pyrostoch.bench.published.privacy_distilled import Distilled
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

__all__ = ["PROGRESSIVE_CASES"]

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

# Steps of learning from distilled images, and images of each class in a step; the batch and the rate by which they are
# learned themselves.
_DISTILLED, _DISTILLED_BATCH, _DISTILLED_RATE = (5, 2), 500, 0.02

Pair = tuple[Tensor, Tensor]


def _recipe(context: TrialContext) -> ProgressiveRecipe:
    if not isinstance(context.recipe, ProgressiveRecipe):
        raise TypeError(f"case {context.case.name}: expected a ProgressiveRecipe, got {type(context.recipe).__name__}")
    return context.recipe


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
        longer = 1.0
        if choose == "bald":
            order, shares = _by_disagreement(context, train), _SHARES[:1]
        elif choose == "distilled":
            images, labels = _distilled(context, train)
            longer = _SHARES[0] * len(train[0]) / len(images)  # as many steps as on other clean parts
            train = torch.cat([images, train[0]]), torch.cat([labels, train[1]])
            order, shares = torch.arange(len(train[0])), (len(images) / len(train[0]),)
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
                "clean": max(1, round(longer * recipe.clean_epochs)),
                "classes": max(1, round(longer * recipe.layer_epochs)),
                "selection": max(1, round(longer * recipe.layer_epochs)),
                "mixed": recipe.epochs,
            },
            steps={"classes": {"noise_weight": recipe.noise_weight or 0.0}},
            score=lambda model, guide: _accuracy(model, guide, test),
            **context.settings() | {"checkpoint": context.checkpoint().parent},
        )
        metrics: dict[str, float] = {}
        for share, stage in zip(_SHARES, found.stages, strict=False):  # distilled images stand for the first share
            metrics[f"accuracy/alone-{_name(share)}"] = stage.alone
            metrics[f"accuracy/result-{_name(share)}"] = stage.mixed
            metrics[f"noise/ratio-{_name(share)}"] = float(stage.noise or 0.0)
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
        settings = context.settings(f"bald.{number}")
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


def _distilled(context: TrialContext, train: Pair) -> Pair:
    """Images that are learned from all clean ones, of which each network learns in a few steps."""
    recipe, device = _recipe(context), torch.device(context.setting.device)
    channels, size = train[0].shape[1], train[0].shape[2]
    with seeded(mixed_seed(context.seed, 3), device):
        net = Distilled(lambda: classifier(channels, size), (channels, size, size), 10, *_DISTILLED)
    model = BayesianModel(net, likelihood=Categorical(), num_data=len(train[0])).to(device)
    settings = context.settings("distilled") | {"batch_size": _DISTILLED_BATCH, "lr": _DISTILLED_RATE, "compile": False}
    fit(model, Additive(model), train, epochs=recipe.clean_epochs, **settings)
    return net.images.detach().flatten(0, 1), net.labels.repeat(len(net.images))


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

        def step(name: str, data: Any, epochs: int) -> None:
            model.num_data = len(data)
            fit(model, guide, data, epochs=epochs, **context.settings(name))

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


PROGRESSIVE_CASES = (
    _case("labels", "obfuscated by labels", _progressive()),
    _case("selection", "obfuscated by the selection", _progressive(obfuscate_by="selection")),
    _case("unscreened", "nothing screened", _progressive(screening=None)),
    _case("bald", "clean part chosen by BALD", _progressive(choose="bald")),
    _case("distilled", "100 distilled images in place of the clean part", _progressive(choose="distilled")),
    _case("clean-part", "the clean part alone, as many steps", _plain("clean-part")),
    _case("pseudo-labels", "clean rest with pseudo-labels", _plain("pseudo-labels")),
    _case("all-clean", "all data clean", _plain("all-clean")),
)

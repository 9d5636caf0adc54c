"""The cases `audit/*` of the bench `privacy` in small: strengths are chosen as said, and steps are not repeated."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrostoch.bench.case import Case, Setting
from pyrostoch.bench.files import read_json
from pyrostoch.bench.published import BENCHES, privacy_audit, privacy_trial
from pyrostoch.bench.published.privacy_audit import equal_strength
from pyrostoch.bench.published.privacy_networks import (
    SPLITS,
    Choice,
    bottleneck,
    by_class,
    clean_network,
    isotropic,
    with_noise,
)
from pyrostoch.bench.published.privacy_picture import draw_curves
from pyrostoch.bench.recipe import AuditRecipe
from pyrostoch.bench.trial import run_trial, trial_folder
from pyrostoch.data import DataSplit
from pyrostoch.obfuscate import gaussian_delta

BENCH = BENCHES["privacy"]
SEED = 0
STRENGTHS = (0.001, 0.3)


@pytest.fixture(scope="module")
def split() -> DataSplit:
    """Images whose digit is the row that is white, so that a network can learn it."""
    x, y = torch.zeros(200, 1, 28, 28), torch.arange(200) % 10
    x[torch.arange(200), 0, 4 + 2 * y] = 1.0
    return DataSplit("mnist", "images", "classification", x, y, x[:50], y[:50], 10, (1, 28, 28), "bundled")


def tiny(name: str) -> Case:
    """A case with few examples and epochs; attacks by optimization, which take longest, are made in one of them."""
    case = BENCH.case(name)
    recipe = case.recipes["quick"]
    assert isinstance(recipe, AuditRecipe)
    inverted = 2 if name.endswith("bottleneck") else 0
    changed = dataclasses.replace(
        recipe,
        examples=200,
        attackers=100,
        batch_size=20,
        attack_epochs=1,
        most_epochs=2,
        inverted=inverted,
    )
    return dataclasses.replace(case, recipes={"quick": changed})


@pytest.fixture(scope="module")
def found(split: DataSplit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("privacy")
    names = [f"audit/dense1/{kind}" for kind in ("gate", "predicted", "isotropic", "bottleneck")]
    setting = Setting("quick", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy_audit, "STRENGTHS", STRENGTHS)
        return folder, {name: run_trial(BENCH, tiny(name), SEED, setting, split)["metrics"] for name in names}


def test_the_operating_point_is_the_least_strength_at_which_half_is_read(found: tuple[Path, dict[str, Any]]) -> None:
    metrics = found[1]["audit/dense1/gate"]
    enough = [s for s in STRENGTHS if metrics[f"curve/digit/held-out/{s:g}"] <= 0.5]
    assert metrics["strength"] == (enough[0] if enough else STRENGTHS[-1])
    assert metrics["strength/reached"] == float(bool(enough))


@pytest.mark.parametrize("kind", ["predicted", "isotropic", "bottleneck"])
def test_other_kinds_have_the_strength_of_equal_accuracy(kind: str, found: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = found[0], found[1][f"audit/dense1/{kind}"]
    gate = found[1]["audit/dense1/gate"]
    assert metrics["accuracy/wanted"] == gate[f"curve/accuracy/held-out/{gate['strength']:g}"]
    steps = read_json(trial_folder(BENCH, tiny(f"audit/dense1/{kind}"), SEED, Setting("quick", folder)) / "steps.json")
    wanted = metrics["accuracy/wanted"]
    tried = [value for name, value in steps.items() if name.startswith("accuracy ")]
    assert len(tried) == 6
    nearest = min(abs(value - wanted) for value in tried)
    assert abs(metrics["accuracy/held-out"] - metrics["accuracy/wanted"]) == nearest


@pytest.mark.parametrize("wanted", [0.02, 0.3, 0.77, 0.99])
def test_bisection_finds_the_strength_of_an_accuracy(wanted: float) -> None:
    found, reached = equal_strength(lambda strength: 1.0 / (1.0 + strength), wanted, 1e-4, 1e4, steps=30)
    assert found == pytest.approx(1.0 / wanted - 1.0, rel=1e-5)
    assert reached == pytest.approx(wanted, rel=1e-5)


def test_bisection_keeps_the_nearest_of_all_that_it_tried() -> None:
    """Trained networks are noisy, so that the last strength may be worse than one before."""
    values = iter([0.90, 0.80, 0.95])
    strengths: list[float] = []

    def accuracy(strength: float) -> float:
        strengths.append(strength)
        return next(values)

    assert equal_strength(accuracy, 0.88, 0.01, 1.0, steps=3) == (strengths[0], 0.90)
    assert strengths[1] > strengths[0] > 0
    assert strengths[0] < strengths[2] < strengths[1]


def test_what_is_read_is_recorded_for_each_number_of_queries(found: tuple[Path, dict[str, Any]]) -> None:
    for name, metrics in found[1].items():
        searches = ["searched/normal", "searched/generative"] if name.endswith("bottleneck") else []
        for attack in ["digit", "mse", *searches]:
            for count in (1, 10, 100):
                assert math.isfinite(metrics[f"{attack}/{count}"]), (name, attack, count)
        assert 0.0 <= metrics["probe"] <= 1.0
        assert 0.0 < metrics["client/share"] < 1.0
        assert math.isfinite(metrics["bound/rate"])


def test_the_budget_of_isotropic_noise_is_that_of_its_mechanism(found: tuple[Path, dict[str, Any]]) -> None:
    """A norm C and noise of `strength * C / sqrt(units)` have one budget, whatever C is."""
    metrics = found[1]["audit/dense1/isotropic"]
    scale = metrics["strength"] / math.sqrt(SPLITS["dense1"][0])
    for count in (1, 10, 100):
        epsilon = metrics[f"epsilon/{count}"]
        assert gaussian_delta(epsilon, scale, 2.0, count) == pytest.approx(1e-5, rel=1e-2)


def test_pictures_of_the_noise_by_class_are_kept(found: tuple[Path, dict[str, Any]]) -> None:
    assert [path.name for path in (found[0] / "figures").iterdir()] == ["privacy-dense1-quick.png"]


def test_a_finished_audit_is_not_made_again(
    found: tuple[Path, dict[str, Any]], split: DataSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("an attacker was trained again")

    monkeypatch.setattr(privacy_audit, "STRENGTHS", STRENGTHS)
    monkeypatch.setattr(privacy_trial, "audit", never)
    monkeypatch.setattr(privacy_trial, "train_attacker", never)
    for name in ("audit/dense1/gate", "audit/dense1/bottleneck"):
        case, setting = tiny(name), Setting("quick", found[0])
        (trial_folder(BENCH, case, SEED, setting) / "trial.json").unlink()
        again = run_trial(BENCH, case, SEED, setting, split)["metrics"]
        assert json.dumps(again, sort_keys=True) == json.dumps(found[1][name], sort_keys=True)


@pytest.mark.parametrize("at", list(SPLITS))
def test_noise_stands_behind_the_part_that_is_named(at: str) -> None:
    clean, x = clean_network(), torch.rand(3, 1, 28, 28)
    names = list(dict(clean.named_children()))
    place = names.index(at) + 1
    for noise in (by_class(at), bottleneck(at), isotropic(at, 1.0, 0.5)):
        parts = dict(with_noise(clean, at, noise).named_children())
        assert list(parts) == [*names[:place], "noise", *names[place:]]
        assert torch.nn.Sequential(*[parts[name] for name in names[:place]])(x).shape[1:] == SPLITS[at]
        assert parts["conv1"] is not clean.get_submodule("conv1")


def test_isotropic_noise_is_not_trained() -> None:
    assert not any(p.requires_grad for p in isotropic("conv1", 1.0, 0.5).parameters())


def test_a_choice_is_the_likeliest_class() -> None:
    x = torch.randn(20, 3)
    chosen = Choice(torch.nn.Identity())(x)
    assert torch.equal(chosen.argmax(1), x.argmax(1))
    assert torch.equal(chosen.sum(1), torch.ones(20))
    assert set(chosen.unique().tolist()) == {0.0, 1.0}


def test_clipped_activations_are_no_longer_than_the_norm() -> None:
    clip = isotropic("conv1", 2.0, 0.5).get_submodule("clip")
    x = torch.randn(5, 6, 12, 12) * torch.tensor([1e-3, 0.01, 1.0, 10.0, 0.0]).reshape(5, 1, 1, 1)
    clipped = clip(x)
    assert (clipped.flatten(1).norm(dim=1) <= 2.0 * (1 + 1e-6)).all()
    torch.testing.assert_close(clipped[[0, 1, 4]], x[[0, 1, 4]])
    torch.testing.assert_close(clipped[2] / clipped[2].norm(), x[2] / x[2].norm())


def test_the_figure_has_a_panel_for_each_cut_that_was_run(found: tuple[Path, dict[str, Any]]) -> None:
    figure = draw_curves(found[1])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["cut behind dense1"]
    assert draw_curves({"progressive/labels": {}}) is None

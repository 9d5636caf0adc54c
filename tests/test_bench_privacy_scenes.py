"""Attackers on scenes, and distilled images, in the bench `privacy`: beside slow twins, and in small."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch.bench.case import Case, Setting
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.published.privacy_distilled import Distilled
from pyrostoch.bench.published.privacy_objects import SceneObjects
from pyrostoch.bench.recipe import SceneAuditRecipe
from pyrostoch.bench.trial import run_trial
from pyrostoch.data import DataSplit, DigitScenes, load

BENCH = BENCHES["privacy"]
SEED = 3


def test_crops_are_what_surrounds_each_box() -> None:
    scenes = DigitScenes("train", 6, data="digits", size=40, digits=(1, 3), seed=3).stored()
    objects = SceneObjects(scenes)
    images = torch.rand(6, 2, 40, 40)
    crops = objects.crops(images)
    number = 0
    for scene in range(6):
        padded = torch.zeros(2, 72, 72)
        padded[:, 16:56, 16:56] = images[scene]
        for which in range(int(scenes["count"][scene])):
            left, top, right, bottom = scenes["boxes"][scene, which].tolist()
            # Round half to even, as torch does.
            x, y = round((left + right) / 2), round((top + bottom) / 2)
            torch.testing.assert_close(crops[number], padded[:, y : y + 32, x : x + 32], rtol=0, atol=0)
            assert int(objects.digit[number]) == int(scenes["labels"][scene, which])
            number += 1
    assert number == len(crops) == len(objects.digit)


def test_the_task_has_the_scenes_of_the_digits() -> None:
    """Coarser labels change no image, so that what an attacker reads are the detector's own objects."""
    split = load("digits")
    coarse = dataclasses.replace(split, y_train=(split.y_train > 5).long(), y_test=split.y_test, num_classes=2)
    fine_scenes, coarse_scenes = (
        DigitScenes("train", 4, data=data, size=32, digits=(1, 2)) for data in (split, coarse)
    )
    for fine, other in zip(fine_scenes.stored().items(), coarse_scenes.stored().items(), strict=True):
        if fine[0] == "labels":
            wanted = torch.where(fine[1] < 0, fine[1], (fine[1] > 5).long())
            assert torch.equal(wanted, other[1])
        elif fine[0] != "pixels":
            torch.testing.assert_close(fine[1], other[1], rtol=0, atol=0, equal_nan=True)


def test_cases_of_scenes_run_in_small(tmp_path: Path) -> None:
    x, y = torch.zeros(60, 1, 28, 28), torch.arange(60) % 10
    x[torch.arange(60), 0, 6:20, 8] = 1.0
    x[torch.arange(60), 0, 6 + y, 8:20] = 1.0
    data = DataSplit("mnist", "images", "classification", x, y, x[:30], y[:30], 10, (1, 28, 28), "bundled")
    found = {}
    for name in ("scenes/clean", "scenes/gate/0.4", "scenes/isotropic/0.8", "scenes/progressive"):
        case = BENCH.case(name)
        recipe = case.recipes["quick"]
        assert isinstance(recipe, SceneAuditRecipe)
        changed = dataclasses.replace(
            recipe,
            epochs=1,
            layer_epochs=1,
            second_epochs=1,
            scenes=20,
            attackers=20,
            examples=60,
            digits=(1, 2),
            most_epochs=1,
        )
        case = dataclasses.replace(case, recipes={"quick": changed})
        assert isinstance(case, Case)
        found[name] = run_trial(BENCH, case, 0, Setting("quick", tmp_path), data)["metrics"]
    assert list(found["scenes/clean"]) == ["scenes/ap50"]
    assert 0.0 <= found["scenes/progressive"]["scenes/result-50"] <= 1.0
    assert found["scenes/progressive"]["noise/ratio-25"] > 0.0
    for name in ("scenes/gate/0.4", "scenes/isotropic/0.8"):
        for count in (1, 10, 100):
            assert 0.0 <= found[name][f"digit/{count}"] <= 1.0
            assert math.isfinite(found[name][f"mse/{count}"])


def make() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def trained(distilled: Distilled, x: Tensor) -> Tensor:
    """The twin: a network that torch's optimizer trains on the images."""
    network = make()
    for images, log_rate in zip(distilled.images.detach(), distilled.log_rates.detach(), strict=True):
        optimizer = torch.optim.SGD(network.parameters(), lr=float(log_rate.exp()))
        optimizer.zero_grad()
        F.cross_entropy(network(images), distilled.labels).backward()
        optimizer.step()
    return network(x).detach()


def test_a_pass_trains_a_network_on_the_images() -> None:
    distilled = Distilled(make, (1, 2, 2), 3, 4, 2).double()
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    torch.manual_seed(SEED)
    found = distilled(x)
    torch.manual_seed(SEED)
    torch.testing.assert_close(found.detach(), trained(distilled, x))
    with torch.no_grad():  # as in predictions
        torch.manual_seed(SEED)
        torch.testing.assert_close(distilled(x), found.detach())
        assert not torch.equal(distilled(x), found)


def test_gradients_reach_the_images_through_all_steps() -> None:
    distilled = Distilled(make, (1, 2, 2), 3, 3, 1).double()
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64)

    def loss(module: Distilled) -> Tensor:
        torch.manual_seed(SEED)
        return module(x).square().sum()

    loss(distilled).backward()
    step = 1e-6
    for parameter, place in (
        (distilled.images, (0, 1, 0, 1, 0)),
        (distilled.images, (2, 0, 0, 0, 1)),
        (distilled.log_rates, (1,)),
    ):
        assert parameter.grad is not None
        ends = []
        for sign in (1.0, -1.0):
            moved = copy.deepcopy(distilled)
            with torch.no_grad():
                (moved.images if parameter is distilled.images else moved.log_rates)[place] += sign * step
            ends.append(float(loss(moved).detach()))
        assert float(parameter.grad[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7)

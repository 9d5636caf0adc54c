"""The bench `conditional` in small: every case runs, is resumed from its checkpoints, and draws its pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from pyrostoch.bench.case import Case, Setting
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.published.detection_networks import object_network
from pyrostoch.bench.recipe import SceneRecipe
from pyrostoch.bench.trial import run_trial, trial_folder
from pyrostoch.data import DataSplit

BENCH = BENCHES["conditional"]
CASES = {case.name: case for case in BENCH.cases}


def split_of(case: Case) -> DataSplit:
    channels, size = (3, 32) if case.data == "cifar10" else (1, 28)
    x, y = torch.rand(40, channels, size, size), torch.arange(40) % 10
    return DataSplit(
        str(case.data), case.data_title or "images", "classification", x, y, x, y, 10, (channels, size, size), "bundled"
    )


def tiny(case: Case) -> Case:
    recipe = dataclasses.replace(case.recipes["quick"], examples=40, batch_size=20)
    return dataclasses.replace(case, recipes={"quick": recipe})


# Those of Fashion-MNIST are those of MNIST with other data.
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("fashion", "cost", "detection"))])
def test_every_case_runs(name: str, tmp_path: Path) -> None:
    case = tiny(CASES[name])
    metrics = run_trial(BENCH, case, 0, Setting("quick", tmp_path), split_of(case))["metrics"]
    assert metrics["noise/ratio"] > 0.0 and 0.0 <= metrics["noise/covered"] <= 1.0
    if name.endswith("hard"):
        assert "accuracy/mc:20" not in metrics
        assert 0.0 <= metrics["accuracy/wrong"] + metrics["accuracy/answers-wrong"] <= 1.0
    else:
        assert 0.0 <= metrics["accuracy/mc:20"] <= 1.0 and "accuracy/known/mc:20" not in metrics
    assert ("accuracy/gate" in metrics) == ("gate" in name)
    pictures = list((tmp_path / "figures").glob("conditional-*.png"))
    assert len(pictures) == (0 if name.endswith("hard") or "merge" in name else 1)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("cost")])
def test_costs_are_ratios(name: str, tmp_path: Path) -> None:
    recipe = dataclasses.replace(CASES[name].recipes["quick"], epochs=1)
    case = dataclasses.replace(CASES[name], recipes={"quick": recipe})
    metrics = run_trial(BENCH, case, 0, Setting("quick", tmp_path), None)["metrics"]
    assert all(value > 0.0 for value in metrics.values())
    assert ("ratio/batched" in metrics) == (name in ("cost/lstm", "cost/transformer"))


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    case, setting = tiny(CASES["mnist/static"]), Setting("quick", tmp_path)
    split = split_of(case)
    first = run_trial(BENCH, case, 0, setting, split)["metrics"]
    folder = trial_folder(BENCH, case, 0, setting)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(times) == 2
    (folder / "trial.json").unlink()
    again = run_trial(BENCH, case, 0, setting, split)["metrics"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert json.dumps(again, sort_keys=True) == json.dumps(first, sort_keys=True)
    held_out = trial_folder(BENCH, case, 0, Setting("quick", tmp_path, holdout=True))
    assert held_out != folder


def few_scenes(case: Case) -> Case:
    recipe = case.recipes["quick"]
    assert isinstance(recipe, SceneRecipe)
    changed = dataclasses.replace(
        recipe, epochs=1, second_epochs=1, scenes=10, clips=1, width=4, size=32, digits=(1, 1), batch_size=10
    )
    return dataclasses.replace(case, recipes={"quick": changed})


@pytest.mark.filterwarnings("ignore:.*never occurred in training")
@pytest.mark.parametrize("name", ["clean", "prepend", "taught", "oracle", "merge_then_sample"])
def test_objects_are_scored_and_trainings_are_not_repeated(name: str, tmp_path: Path) -> None:
    case, setting = few_scenes(CASES[f"detection/{name}"]), Setting("quick", tmp_path)
    split = split_of(case)
    metrics = run_trial(BENCH, case, 0, setting, split)["metrics"]
    assert {"objects/ap50", "objects/mask-ap", "objects/miou", "objects/mota", "objects/idf1"} <= metrics.keys()
    assert all(value is None or math.isfinite(value) for value in metrics.values())
    assert ("objects/noise-ratio" in metrics) == (name != "clean")
    assert ("objects/gate-miou" in metrics) == (name not in ("clean", "oracle"))
    assert len(list((tmp_path / "figures").glob("*.png"))) == (name in ("prepend", "taught"))
    folder = trial_folder(BENCH, case, 0, setting)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(times) == {"clean": 1, "oracle": 1, "taught": 3}.get(name, 2)
    (folder / "trial.json").unlink()
    assert run_trial(BENCH, case, 0, setting, split)["metrics"] == metrics
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_noise_that_goes_around_the_layer_reaches_nothing() -> None:
    """What the detector computes behind the layer depends on the image only through the layer."""
    build = object_network("merge_then_sample", 10, 32, 4, 0.5)
    assert build.layer is not None
    x, selection = torch.rand(2, 1, 32, 32), torch.zeros(2, 11, 1, 16, 16)  # nothing of any class passes
    build.layer.selection = Fixed(selection)
    outputs = [build.network.eval()(image) for image in (x, torch.rand(2, 1, 32, 32))]
    for name in ("classes", "edges", "pixels"):
        assert torch.equal(outputs[0][name], outputs[1][name])


class Fixed(torch.nn.Module):
    """A selection that does not look at its input."""

    def __init__(self, selection: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("selection", selection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("selection")

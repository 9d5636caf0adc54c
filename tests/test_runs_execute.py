"""Execution of runs: the files they write, loading them again, and resuming after an interruption."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyrostoch.prediction.predict import predict
from pyrostoch.runs import Config, RunCallback, RunError, SavedRun, execute, fill_defaults
from pyrostoch.runs.experiment import build_experiment, load_data
from pyrostoch.runs.registry import COMPARED_GUIDES
from pyrostoch.runs.scores import result_notes, score
from pyrostoch.runs.threads import limit_threads

SETTINGS: dict[str, Any] = {"epochs": 3, "hidden": (12, 10), "device": "cpu", "seed": 3}


class Interrupt(RunCallback):
    """Raises a KeyboardInterrupt after one epoch of one guide, or for epoch 0 before the guide is scored.

    It records the guides that were trained and their epochs.
    """

    def __init__(self, guide: str, epoch: int) -> None:
        self.at = (guide, epoch)
        self.guides: list[str] = []
        self.epochs: list[tuple[str, int]] = []

    def on_guide_start(self, name: str) -> None:
        self.guides.append(name)

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        self.epochs.append((self.guides[-1], row["epoch"]))
        if self.epochs[-1] == self.at:
            raise KeyboardInterrupt

    def on_scoring_start(self, name: str) -> None:
        if (name, 0) == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def config() -> Config:
    return fill_defaults("compare", SETTINGS)


@pytest.fixture(scope="module")
def complete(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("complete") / "run"
    execute(config, folder, command="pyrostoch compare")
    return folder


@pytest.fixture(scope="module")
def record(complete: Path) -> dict[str, Any]:
    return json.loads((complete / "results.json").read_text())


def test_folder_holds_all_files(complete: Path) -> None:
    names = {path.name for path in complete.iterdir()}
    assert names == {
        "results.json",
        "config.toml",
        "posterior.nc",
        *(f"{guide}.safetensors" for guide in COMPARED_GUIDES),
    }


def test_record_describes_the_run(record: dict[str, Any], config: Config) -> None:
    assert (record["schema"], record["kind"], record["command"]) == (1, "compare", "pyrostoch compare")
    assert record["data"]["train"] == 1437 and record["data"]["test"] == 360 and record["data"]["classes"] == 10
    assert record["model"]["description"] == "64-12-10-10, ReLU, batch normalization"
    assert record["model"]["random"] == ["fc2.weight"]
    assert record["model"]["parameters"] == 64 * 12 + 24 + 12 * 10 + 20 + 10 * 10 + 10
    assert record["prior"] == {"text": "LogUniform()", "improper": True}
    assert Config.from_dict(record["config"]) == config
    assert [guide["name"] for guide in record["guides"]] == list(COMPARED_GUIDES)
    best = max(record["guides"], key=lambda guide: guide["decomposition"]["elbo"])
    assert record["posterior_of"] == best["name"]
    assert record["seconds"] > sum(guide["seconds"] for guide in record["guides"])


def test_results_of_a_guide_are_consistent(record: dict[str, Any]) -> None:
    for guide in record["guides"]:
        terms = guide["decomposition"]
        assert math.isclose(terms["elbo"], terms["data"] - terms["kl"], rel_tol=1e-9)
        assert terms["num_data"] == 1437 and terms["sites"][0]["weights"] == 120
        rows = {row["mode"]: row for row in guide["rows"]}
        assert list(rows) == ["mean", "moments", "mc:1", "mc:20"]
        curve = guide["by_samples"]
        assert curve["samples"] == [1, 2, 5, 10, 20]
        assert (curve["accuracy"][0], curve["accuracy"][-1]) == (rows["mc:1"]["accuracy"], rows["mc:20"]["accuracy"])
        assert guide["history"]["epoch"] == [1, 2, 3]
        assert set(guide["reliability"]) == {"mean", "moments", "mc:20"}
        assert sum(guide["reliability"]["mean"]["count"]) == 360
        (histogram,) = guide["posterior"]
        shared = {"layerwise": 1, "neuronwise": 10}.get(guide["name"], 120)
        assert sum(histogram["counts"]) == shared
        assert histogram["quantity"] == ("log sigma" if guide["name"] in ("additive", "variance") else "log alpha")


def test_variance_only_is_at_chance_by_its_mean(record: dict[str, Any]) -> None:
    rows = {row["mode"]: row["accuracy"] for row in record["guides"][-1]["rows"]}
    assert rows["mean"] < 0.15 < rows["mc:20"] - 0.1
    assert [line.split(":")[0] for line in result_notes(record)] == ["variance"]


def test_posterior_opens_in_arviz(complete: Path) -> None:
    import xarray

    with xarray.open_dataset(complete / "posterior.nc", group="posterior") as posterior:
        assert posterior["fc2.weight"].shape == (1, 200, 10, 12)
    with xarray.open_dataset(complete / "posterior.nc", group="log_likelihood") as likelihood:
        assert likelihood["obs"].shape == (1, 200, 360)


def test_guides_start_from_one_network(config: Config) -> None:
    split = load_data(config)
    first, *others = (build_experiment(config, split, guide).model.state_dict() for guide in COMPARED_GUIDES)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    other_seed = build_experiment(dataclasses.replace(config, seed=4), split, "additive").model.state_dict()
    assert not torch.equal(first["net.fc1.weight"], other_seed["net.fc1.weight"])


def test_loaded_guide_has_the_saved_scores(complete: Path, record: dict[str, Any]) -> None:
    run = SavedRun.open(str(complete))
    for guide in record["guides"][::4]:
        rows = score(run.load_guide(guide["name"]), seed=run.config.seed).rows
        for row, saved in zip(rows, guide["rows"], strict=True):
            assert {**row, "seconds": 0} == {**saved, "seconds": 0}


@pytest.mark.parametrize(("guide", "epoch"), [("additive", 1), ("neuronwise", 2), ("layerwise", 0), ("variance", 3)])
def test_resumed_run_has_the_results_of_a_complete_one(
    guide: str, epoch: int, config: Config, complete: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        execute(config, folder, callback=Interrupt(guide, epoch))
    finished = json.loads((folder / "results.json").read_text())["guides"]
    position = COMPARED_GUIDES.index(guide)
    assert [result["name"] for result in finished] == list(COMPARED_GUIDES[:position])
    times = {result["name"]: (folder / result["checkpoint"]).stat().st_mtime_ns for result in finished}
    with pytest.raises(RunError, match="it is not empty; add --resume"):
        execute(config, folder)
    callback = Interrupt("", 0)
    resumed = execute(config, folder, resume=True, callback=callback)
    assert callback.guides == list(COMPARED_GUIDES[position:])
    first = (epoch or config.epochs) + 1
    assert [number for name, number in callback.epochs if name == guide] == list(range(first, config.epochs + 1))
    assert {name: (folder / f"{name}.safetensors").stat().st_mtime_ns for name in times} == times
    for name in COMPARED_GUIDES:
        expected, found = (load_file(path / f"{name}.safetensors") for path in (complete, folder))
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    for result, other in zip(resumed["guides"], record["guides"], strict=True):
        assert result["decomposition"] == other["decomposition"]


def test_resuming_a_finished_run_changes_nothing(config: Config, complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(complete, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "results.json"}
    execute(config, folder, resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "results.json"} == before
    (folder / "layerwise.safetensors").unlink()
    callback = Interrupt("", 0)
    execute(config, folder, resume=True, callback=callback)
    assert callback.guides == ["layerwise"]


def test_resuming_with_other_settings_is_refused(config: Config, complete: Path) -> None:
    other = dataclasses.replace(config, epochs=4, prior="ard")
    with pytest.raises(RunError, match="prior was 'log-uniform' and is now 'ard'; epochs was 3 and is now 4"):
        execute(other, complete, resume=True)


def test_folders_with_other_files_are_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match="not empty"):
        execute(config, tmp_path)
    with pytest.raises(RunError, match=r"other files and no results.json"):
        execute(config, tmp_path, resume=True)
    with pytest.raises(NotADirectoryError, match="there is a file of this name"):
        execute(config, tmp_path / "notes.txt")


def test_other_data_are_refused(complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(complete, folder)
    path = folder / "results.json"
    content = json.loads(path.read_text())
    content["data"]["train"] = 1000
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="trained on 1000 and scored on 360 examples"):
        SavedRun.open(str(folder)).load_guide("additive")


def test_regression_is_scored_in_the_units_of_the_target(tmp_path: Path) -> None:
    folder = tmp_path / "UCI" / "line"
    folder.mkdir(parents=True)
    x = torch.linspace(-1, 1, 80)
    target = 1000 + 500 * x
    (folder / "data.txt").write_text("".join(f"{a:.6f} {b:.6f}\n" for a, b in zip(x, target, strict=True)))
    for name, text in {"features": "0\n", "target": "1\n"}.items():
        (folder / f"index_{name}.txt").write_text(text)
    (folder / "n_splits.txt").write_text("1\n")
    (folder / "index_train_0.txt").write_text("\n".join(str(i) for i in range(80) if i % 8))
    (folder / "index_test_0.txt").write_text("\n".join(str(i) for i in range(0, 80, 8)))
    given = {"data": "uci:line", "data_dir": str(tmp_path), "hidden": (8,), "epochs": 3, "prior": "normal"}
    config = fill_defaults("train", {**given, "device": "cpu", "batch_size": 35})
    record = execute(config, tmp_path / "run")
    guide = record["guides"][0]
    experiment = SavedRun.open(str(tmp_path / "run")).load_guide("additive")
    assert experiment.target_std == pytest.approx(
        500 * x[[i for i in range(80) if i % 8]].std(correction=0).item(), rel=1e-4
    )
    prediction = predict(experiment.model, experiment.guide, experiment.test[0], mode="mean")
    errors = ((prediction.mean - experiment.test[1]) * experiment.target_std).ravel()
    noise = experiment.model.likelihood.scale().item() * experiment.target_std
    assert guide["noise"] == pytest.approx(noise, rel=1e-5)
    assert record["data"]["target_std"] == pytest.approx(experiment.target_std)
    rows = {row["mode"]: row for row in guide["rows"]}
    assert rows["mean"]["rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)
    density = torch.distributions.Normal(0.0, noise).log_prob(errors).mean().item()
    assert rows["mean"]["nll"] == pytest.approx(-density, rel=1e-5)
    assert guide["by_samples"]["nll"][-1] == rows["mc:20"]["nll"]
    assert guide["reliability"] == {} and record["data"]["classes"] is None


def test_variance_note_of_a_regression() -> None:
    def guide(name: str, mean: float | str, averaged: float) -> dict[str, Any]:
        return {"name": name, "rows": [{"mode": "mean", "rmse": mean}, {"mode": "mc:20", "rmse": averaged}]}

    guides = [guide("a", 2.1, 1.0), guide("b", 2.0, 1.0), guide("c", "nan", 1.0)]
    (sentence,) = result_notes({"data": {"classes": None}, "guides": guides})
    assert sentence.startswith("a: RMSE 2.1000 with mean weights, 1.0000 with 20 samples: what it has learned")


def test_notes_of_a_regression_that_was_too_short() -> None:
    def notes(rmse: float, noise: float, epochs: int) -> list[str]:
        rows = [{"mode": "mean", "rmse": rmse}, {"mode": "mc:20", "rmse": rmse}]
        guides = [{"name": "a", "rows": rows, "noise": noise}]
        data = {"classes": None, "target_std": 10.0, "train": 95}
        return result_notes({"data": data, "guides": guides, "epochs": epochs, "batch_size": 10})

    (sentence,) = notes(9.5, 9.0, 10)
    assert sentence == (
        "a: RMSE 9.5 with 20 samples, where the targets' standard deviation is 10: it has learned little; 100 steps "
        "are few: give more --epochs, or a smaller --batch-size than 10."
    )
    assert notes(9.5, 9.0, 100)[0].endswith("it has learned little.")
    (sentence,) = notes(2.0, 3.1, 100)
    assert sentence == "a: noise of 3.1 beside an RMSE of 2: its intervals are too wide."
    assert notes(2.0, 2.9, 10) == []


def test_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with limit_threads(torch.nn.Linear(2, 2)):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with limit_threads(torch.nn.Linear(400, 400)):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

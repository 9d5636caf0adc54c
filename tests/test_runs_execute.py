"""Runs from settings to a folder and back: what they hold, and how they go on after an interruption."""

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
from pyrostoch.runs import Config, Run, RunError, Watch, execute, fill_defaults
from pyrostoch.runs.names import COMPARED
from pyrostoch.runs.parties import assemble, load_split
from pyrostoch.runs.scores import lesson, score
from pyrostoch.runs.threads import suited_threads

SETTINGS: dict[str, Any] = {"epochs": 3, "hidden": (12, 10), "device": "cpu", "seed": 3}


class Interrupt(Watch):
    """Presses Ctrl-C at one epoch of one guide."""

    def __init__(self, guide: str, epoch: int) -> None:
        self.where, self.now, self.begun = (guide, epoch), "", list[str]()
        self.seen: list[tuple[str, int]] = []

    def guide(self, name: str) -> None:
        self.now = name
        self.begun.append(name)

    def epoch(self, row: dict[str, Any]) -> None:
        self.seen.append((self.now, row["epoch"]))
        if self.seen[-1] == self.where:
            raise KeyboardInterrupt

    def scoring(self, name: str) -> None:
        if (name, 0) == self.where:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def config() -> Config:
    return fill_defaults("compare", SETTINGS)


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    execute(config, folder, command="pyrostoch compare")
    return folder


@pytest.fixture(scope="module")
def record(whole: Path) -> dict[str, Any]:
    return json.loads((whole / "results.json").read_text())


def test_folder_holds_everything(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {"results.json", "posterior.nc", *(f"{guide}.safetensors" for guide in COMPARED)}


def test_record_describes_the_run(record: dict[str, Any], config: Config) -> None:
    assert (record["schema"], record["kind"], record["command"]) == (1, "compare", "pyrostoch compare")
    assert record["data"]["train"] == 1437 and record["data"]["test"] == 360 and record["data"]["classes"] == 10
    assert record["model"]["description"] == "64-12-10-10, ReLU, batch normalization"
    assert record["model"]["random"] == ["fc2.weight"]
    assert record["model"]["parameters"] == 64 * 12 + 24 + 12 * 10 + 20 + 10 * 10 + 10
    assert record["prior"] == {"text": "LogUniform()", "improper": True}
    assert Config.from_dict(record["config"]) == config
    assert [entry["name"] for entry in record["guides"]] == list(COMPARED)
    best = max(record["guides"], key=lambda entry: entry["decomposition"]["elbo"])
    assert record["posterior_of"] == best["name"]
    assert record["seconds"] > sum(entry["seconds"] for entry in record["guides"])


def test_record_of_a_guide_agrees_with_itself(record: dict[str, Any]) -> None:
    for entry in record["guides"]:
        terms = entry["decomposition"]
        assert math.isclose(terms["elbo"], terms["data"] - terms["kl"], rel_tol=1e-9)
        assert terms["num_data"] == 1437 and terms["sites"][0]["weights"] == 120
        rows = {row["mode"]: row for row in entry["rows"]}
        assert list(rows) == ["mean", "moments", "mc:1", "mc:20"]
        curve = entry["by_samples"]
        assert curve["samples"] == [1, 2, 5, 10, 20]
        assert (curve["accuracy"][0], curve["accuracy"][-1]) == (rows["mc:1"]["accuracy"], rows["mc:20"]["accuracy"])
        assert entry["history"]["epoch"] == [1, 2, 3]
        assert set(entry["reliability"]) == {"mean", "moments", "mc:20"}
        assert sum(entry["reliability"]["mean"]["count"]) == 360
        (histogram,) = entry["posterior"]
        shared = {"layerwise": 1, "neuronwise": 10}.get(entry["name"], 120)
        assert sum(histogram["counts"]) == shared
        assert histogram["quantity"] == ("log sigma" if entry["name"] in ("additive", "variance") else "log alpha")


def test_variance_only_is_at_chance_by_its_mean(record: dict[str, Any]) -> None:
    rows = {row["mode"]: row["accuracy"] for row in record["guides"][-1]["rows"]}
    assert rows["mean"] < 0.15 < rows["mc:20"] - 0.1
    assert [line.split(":")[0] for line in lesson(record)] == ["variance"]


def test_posterior_opens_in_arviz(whole: Path) -> None:
    import xarray

    with xarray.open_dataset(whole / "posterior.nc", group="posterior") as posterior:
        assert posterior["fc2.weight"].shape == (1, 200, 10, 12)
    with xarray.open_dataset(whole / "posterior.nc", group="log_likelihood") as likelihood:
        assert likelihood["obs"].shape == (1, 200, 360)


def test_guides_start_from_one_network(config: Config) -> None:
    split = load_split(config)
    first, *others = (assemble(config, split, guide).model.state_dict() for guide in COMPARED)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    again = assemble(dataclasses.replace(config, seed=4), split, "additive").model.state_dict()
    assert not torch.equal(first["net.fc1.weight"], again["net.fc1.weight"])


def test_reopened_guide_scores_as_recorded(whole: Path, record: dict[str, Any]) -> None:
    run = Run.open(str(whole))
    for entry in record["guides"][::4]:
        found = score(run.party(entry["name"]), seed=run.config.seed).rows
        for now, then in zip(found, entry["rows"], strict=True):
            assert {**now, "seconds": 0} == {**then, "seconds": 0}


@pytest.mark.parametrize("where", [("additive", 1), ("neuronwise", 2), ("layerwise", 0), ("variance", 3)])
def test_interrupted_run_ends_as_the_whole_one(
    where: tuple[str, int], config: Config, whole: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        execute(config, folder, watch=Interrupt(*where))
    done = json.loads((folder / "results.json").read_text())["guides"]
    assert [entry["name"] for entry in done] == list(COMPARED[: COMPARED.index(where[0])])
    times = {entry["name"]: (folder / entry["checkpoint"]).stat().st_mtime_ns for entry in done}
    with pytest.raises(RunError, match="it is not empty; add --resume"):
        execute(config, folder)
    watch = Interrupt("", 0)
    found = execute(config, folder, resume=True, watch=watch)
    assert watch.begun == list(COMPARED[COMPARED.index(where[0]) :])
    made = where[1] or config.epochs
    assert [epoch for guide, epoch in watch.seen if guide == where[0]] == list(range(made + 1, config.epochs + 1))
    assert {name: (folder / f"{name}.safetensors").stat().st_mtime_ns for name in times} == times
    for guide in COMPARED:
        one, other = (load_file(path / f"{guide}.safetensors") for path in (whole, folder))
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    for now, then in zip(found["guides"], record["guides"], strict=True):
        assert now["decomposition"] == then["decomposition"]


def test_resuming_a_finished_run_changes_nothing(config: Config, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "results.json"}
    execute(config, folder, resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "results.json"} == before
    (folder / "layerwise.safetensors").unlink()
    watch = Interrupt("", 0)
    execute(config, folder, resume=True, watch=watch)
    assert watch.begun == ["layerwise"]


def test_resuming_with_other_settings_is_refused(config: Config, whole: Path) -> None:
    other = dataclasses.replace(config, epochs=4, prior="ard")
    with pytest.raises(RunError, match="prior was 'log-uniform' and is now 'ard'; epochs was 3 and is now 4"):
        execute(other, whole, resume=True)


def test_folders_that_hold_something_else(config: Config, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match="not empty"):
        execute(config, tmp_path)
    with pytest.raises(RunError, match=r"other files and no results.json"):
        execute(config, tmp_path, resume=True)
    with pytest.raises(NotADirectoryError, match="there is a file of this name"):
        execute(config, tmp_path / "notes.txt")


def test_other_data_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    path = folder / "results.json"
    content = json.loads(path.read_text())
    content["data"]["train"] = 1000
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="trained on 1000 and scored on 360 examples"):
        Run.open(str(folder)).party("additive")


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
    entry = record["guides"][0]
    party = Run.open(str(tmp_path / "run")).party("additive")
    assert party.unit == pytest.approx(500 * x[[i for i in range(80) if i % 8]].std(correction=0).item(), rel=1e-4)
    found = predict(party.model, party.guide, party.test[0], mode="mean")
    errors = ((found.mean - party.test[1]) * party.unit).ravel()
    noise = party.model.likelihood.scale().item() * party.unit
    rows = {row["mode"]: row for row in entry["rows"]}
    assert rows["mean"]["rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)
    density = torch.distributions.Normal(0.0, noise).log_prob(errors).mean().item()
    assert rows["mean"]["nll"] == pytest.approx(-density, rel=1e-5)
    assert entry["by_samples"]["nll"][-1] == rows["mc:20"]["nll"]
    assert entry["reliability"] == {} and record["data"]["classes"] is None


def test_lesson_of_a_regression() -> None:
    def entry(name: str, mean: Any, many: Any) -> dict[str, Any]:
        return {"name": name, "rows": [{"mode": "mean", "rmse": mean}, {"mode": "mc:20", "rmse": many}]}

    guides = [entry("a", 2.1, 1.0), entry("b", 2.0, 1.0), entry("c", "nan", 1.0)]
    (sentence,) = lesson({"data": {"classes": None}, "guides": guides})
    assert sentence.startswith("a: RMSE 2.1000 by its mean, 1.0000 by 20 samples: what it knows")


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with suited_threads(torch.nn.Linear(2, 2)):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with suited_threads(torch.nn.Linear(400, 400)):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

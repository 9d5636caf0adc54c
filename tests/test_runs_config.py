"""Settings of runs, their defaults, and the folder of a run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pyrostoch import priors
from pyrostoch.runs import Config, RunError, SavedRun, choose_device, fill_defaults
from pyrostoch.runs.folder import (
    check_writable,
    find_run,
    free_folder,
    latest_folder,
    numbered_folders,
    only_run_in,
    read_record,
    write_record,
)
from pyrostoch.runs.registry import COMPARED_GUIDES, GUIDES, parse_prior
from pyrostoch.runs.saved_run import saved_settings


def config(**changes: Any) -> Config:
    return dataclasses.replace(fill_defaults("compare", {"device": "cpu"}), **changes)


def test_settings_survive_json() -> None:
    first = fill_defaults("train", {"guides": ("variance",), "hidden": (8, 4), "device": "cpu", "lr": 1})
    assert Config.from_dict(json.loads(json.dumps(first.to_dict()))) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "unknown 'epoch'; did you mean 'epochs'"),
        ({"epochs": "3"}, "epochs: expected a whole number, got '3'"),
        ({"epochs": True}, "epochs: expected a whole number, got True"),
        ({"guides": ["additiv"]}, "guide: expected one of .* did you mean 'additive'"),
        ({"guides": []}, "guides: expected at least one"),
        ({"guides": ["variance", "variance"]}, "each once"),
        ({"lr": 0}, "lr: expected a positive finite number, got 0"),
        ({"lr_alpha": math.nan}, "lr_alpha: expected a positive finite number"),
        ({"hidden": [8, 0]}, "hidden: expected positive widths"),
        ({"hidden": [8, 1.5]}, "hidden: expected whole numbers"),
        ({"model": "lenet5"}, "only model 'mlp' has hidden widths"),
        ({"random": " , "}, "random: expected a name pattern"),
        ({"prior": "normal:0"}, "scale of prior 'normal:0': expected a positive"),
        ({"seed": -1}, "seed: expected a whole number from 0 up"),
        ({"init_log_alpha": math.inf}, "init_log_alpha: expected a finite number"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_dict({**config().to_dict(), **changes})


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Config) if f.default is dataclasses.MISSING])
def test_missing_settings_are_named(name: str) -> None:
    content = {key: value for key, value in config().to_dict().items() if key != name}
    with pytest.raises(ValueError, match=f"missing '{name}'"):
        Config.from_dict(content)


def test_records_of_older_versions_lack_newer_settings() -> None:
    newer = ("stochastic", "rate_weight", "conditional")
    first = config()
    assert Config.from_dict({key: value for key, value in first.to_dict().items() if key not in newer}) == first


def test_differences_ignore_the_data_folder() -> None:
    one, other = config(data_dir="here"), config(data_dir="there", epochs=7)
    assert one.differences(other) == {"epochs": (one.epochs, 7)}


def test_defaults_give_one_hidden_layer_random_weights() -> None:
    assert fill_defaults("compare", {}).guides == COMPARED_GUIDES
    assert fill_defaults("train", {}).guides == ("additive",)
    assert fill_defaults("train", {"hidden": (8,)}).random == "fc1.weight"
    assert fill_defaults("train", {"hidden": (8, 8)}).random == "fc2.weight"
    assert fill_defaults("train", {"data": "DIGITS"}).data == "digits"


def test_number_of_epochs_of_a_regression_set(tmp_path: Path) -> None:
    folder = tmp_path / "UCI" / "toy"
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("".join(f"{i} {i % 7} {2 * i}\n" for i in range(60)))
    (folder / "index_features.txt").write_text("0\n1\n")
    (folder / "index_target.txt").write_text("2\n")
    (folder / "n_splits.txt").write_text("1\n")
    (folder / "index_train_0.txt").write_text("\n".join(map(str, range(50))))
    (folder / "index_test_0.txt").write_text("\n".join(map(str, range(50, 60))))
    given = {"data": "uci:toy", "data_dir": str(tmp_path)}
    assert fill_defaults("train", given).epochs == 3000
    assert fill_defaults("train", {**given, "batch_size": 5}).epochs == 300


def test_devices() -> None:
    with pytest.raises(ValueError, match="device: expected one of 'auto', 'cpu', 'cuda', got 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match="'cuda:<n>'"):
        choose_device("cpu:0")
    with pytest.raises(ValueError, match="device 'cuda:99'.*use --device cpu"):
        choose_device("cuda:99")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("log-uniform", priors.LogUniform),
        ("ARD", priors.ARD),
        ("hierarchical", priors.Hierarchical),
        ("normal", priors.Normal),
        ("laplace:0.5", priors.Laplace),
        ("empirical-bayes:2", priors.EmpiricalBayes),
    ],
)
def test_priors_by_name(text: str, kind: type) -> None:
    assert isinstance(parse_prior(text), kind)


def test_scale_of_a_prior_is_read() -> None:
    assert repr(parse_prior("normal:0.25")) == "Normal(loc=0, scale=0.25)"
    assert repr(parse_prior("laplace:0.5")) == "Laplace(loc=0, scale=0.5)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norml", "did you mean 'normal'"),
        ("ard:2", "takes no scale"),
        ("normal:wide", "expected a number after the colon"),
        ("normal:-1", "positive"),
    ],
)
def test_wrong_priors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_prior(text)


def test_every_compared_guide_is_known() -> None:
    assert set(COMPARED_GUIDES) <= set(GUIDES)


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    base = tmp_path / "runs" / "toy"
    assert free_folder(base) == base and os.listdir(tmp_path) == []
    base.mkdir(parents=True)
    assert free_folder(base) == base  # still empty
    (base / "file").touch()
    second = free_folder(base)
    assert second.name == "toy-2"
    second.touch()
    assert free_folder(base).name == "toy-3"
    second.unlink()
    second.mkdir()
    (second / "file").touch()
    (tmp_path / "runs" / "toy-3").mkdir()
    assert free_folder(base).name == latest_folder(base).name == "toy-3"
    assert [folder.name for folder in numbered_folders(base)] == ["toy", "toy-2", "toy-3"]
    assert latest_folder(tmp_path / "other") == tmp_path / "other"


def test_a_run_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match="run folder .*file/toy: cannot be written to"),
        only_run_in(tmp_path / "file/toy"),
    ):
        pass


def test_full_disk_is_detected_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device; free some space") as caught:
        check_writable(tmp_path)
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []


def test_record_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"schema": 1, "config": {}, "data": {}, "seconds": 0.0, "guides": [], "x": [math.nan, math.inf, 1.5]}
    write_record(tmp_path, record)
    assert read_record(tmp_path)["x"] == ["nan", "inf", 1.5]

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"results.json cannot be written"):
        write_record(tmp_path, {**record, "x": 2})
    assert read_record(tmp_path)["x"] == ["nan", "inf", 1.5]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1, "config": {', "is damaged"),
        ("\ufffd\x00", "is damaged"),
        ("[1, 2]", "is not the record of a run"),
        ('{"loss": 3}', "is not the record of a run"),
        ('{"schema": 2, "config": {}}', "has schema 2, this version reads 1"),
        ('{"schema": 1, "config": {}, "guides": [{}]}', "parts of it are missing"),
        (
            '{"schema": 1, "config": {}, "guides": [], "data": {}, "seconds": 0}',
            "of another version.*missing",
        ),
    ],
)
def test_broken_records(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=message):
        SavedRun.open(str(tmp_path))


def test_folders_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no results.json in this folder"):
        SavedRun.open(str(tmp_path))
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "results.json").touch()
    assert find_run("first") == Path("runs/first")
    assert find_run("runs/first/results.json") == Path("runs/first")
    with pytest.raises(FileNotFoundError, match=re.escape("runs/ holds first; did you mean 'first'?")):
        find_run("frist")
    assert saved_settings(tmp_path, "train") == {}

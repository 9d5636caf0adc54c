"""Settings of a run in a file, and guides of a user's own file, on the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from commands import call

GUIDES = """
import pyrostoch as ps
from pyro.infer.autoguide import AutoNormal
from torch import nn

class MyGuide(ps.guides.Additive):
    def __init__(self, model):
        super().__init__(model, init_scale=0.02)

def autoguide(model):
    return AutoNormal(model, init_scale=0.02)

def wrong(model):
    return model.draw
"""


@pytest.fixture(autouse=True)
def own_file(own_folder: Path) -> None:
    """Write the file into the folder."""
    (own_folder / "my_guides.py").write_text(GUIDES)


def results(folder: str | Path) -> Any:
    return json.loads((Path(folder) / "results.json").read_text())


def test_a_run_is_repeated_from_its_settings(tmp_path: Path) -> None:
    call("train", "--guide", "variance", "--epochs", "2", "--hidden", "12,8", "--seed", "3", "--out", "first")
    settings = tomllib.loads(Path("first/config.toml").read_text())
    assert (settings["epochs"], settings["guides"], settings["hidden"]) == (2, ["variance"], [12, 8])
    call("train", "--config", "first/config.toml", "--out", "again")
    first, again = results("first"), results("again")
    assert first["config"] == again["config"]
    for key in ("decomposition", "history", "by_samples"):
        assert first["guides"][0][key] == again["guides"][0][key]
    assert "--config first/config.toml" in again["command"]
    # Options come first, and the file's own are not changed by them.
    call("train", "--config", "first/config.toml", "--epochs", "1", "--out", "short")
    assert results("short")["config"] == {**first["config"], "epochs": 1}
    assert "already finished" in call("train", "--config", "first/config.toml", "--resume", "--out", "first").lower()


def test_settings_may_be_few_and_written_as_options_are(tmp_path: Path) -> None:
    Path("run.toml").write_text('guide = "variance"\nbatch-size = 300\nepochs = 1\nhidden = [9, 7]\n')
    call("train", "--config", "run.toml", "--out", "run")
    config = results("run")["config"]
    assert (config["guides"], config["batch_size"], config["hidden"]) == (["variance"], 300, [9, 7])


def test_names_may_be_a_list() -> None:
    Path("run.toml").write_text('random = ["fc1.weight", "fc3.weight"]\nepochs = 1\nmodel = "mlp"\n')
    call("train", "--config", "run.toml", "--out", "run")
    assert results("run")["model"]["random"] == ["fc1.weight", "fc3.weight"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "unknown setting 'epoch'; there are 'batch_size'"),
        ("epoch = 3", "; did you mean 'epochs'"),
        ("epochs = 3\nepochs = 4", "it is no TOML file"),
        ('guide = "variance"\nguides = ["additive"]', "'guides' is given twice"),
        ('kind = "compare"', "settings of `pyrostoch compare`, not of `pyrostoch train`"),
        ('epochs = "many"', "epochs"),
        ('estimator = "locale"', "did you mean 'local'"),
        ("hidden = 3", "hidden"),
    ],
)
def test_settings_that_are_none_are_refused_by_name(content: str, message: str) -> None:
    Path("run.toml").write_text(content)
    assert message in call("train", "--config", "run.toml", code=2)
    assert not Path("runs").exists()


def test_a_file_of_settings_that_is_missing() -> None:
    assert "no such file" in call("train", "--config", "run.toml", code=2)


@pytest.mark.parametrize("function", ["MyGuide", "autoguide"])
def test_a_guide_of_a_file_is_trained_scored_and_loaded(function: str) -> None:
    settings = ("--epochs", "2", "--hidden", "9,8", "--prior", "normal", "--out", "run")
    output = call("train", "--guide", f"my_guides.py:{function}", *settings)
    assert f"my_guides.py:{function}" in output
    record = results("run")
    assert record["guides"][0]["title"] == f"my_guides.py:{function}"
    assert Path(f"run/my_guides.{function}.safetensors").is_file()
    assert bool(record["guides"][0]["posterior"]) == (function == "MyGuide")
    scores = call("evaluate", "run", "--modes", "mean", "--guide", f"my_guides.py:{function}")
    accuracy = record["guides"][0]["rows"][0]["accuracy"]
    assert f"{100 * accuracy:.2f}" in scores
    assert "ELBO of 1437 examples" in call("decompose", "run", "--samples", "1")
    assert Path("run/report.html").read_text().count(f"my_guides.py:{function}")
    call("report", "run")


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (
            "my_guides.py:MyGuid",
            "no function or class 'MyGuid', but 'MyGuide', 'autoguide', 'wrong'; did you mean 'MyGuide'",
        ),
        ("guides.py:MyGuide", "no such file"),
        ("my_guides.py:wrong", "expected a guide, a torch.nn.Module, from wrong(model), got method"),
        ("additiv", "did you mean 'additive'"),
    ],
)
def test_guides_that_are_none_are_refused_by_name(guide: str, message: str) -> None:
    assert message in call("train", "--guide", guide, "--epochs", "1", "--hidden", "5,5", code=2)


def test_settings_with_any_characters_are_read_back() -> None:
    Path("my 😀 \\ guides").mkdir()
    Path("my 😀 \\ guides/own.py").write_text("from sibling import Own\n")
    Path("my 😀 \\ guides/sibling.py").write_text(GUIDES.replace("MyGuide", "Own"))  # a module beside the file
    given = ("--epochs", "1", "--hidden", "5,4", "--prior", "normal")
    call("train", "--guide", "my 😀 \\ guides/own.py:Own", *given, "--out", "run")
    call("train", "--config", "run/config.toml", "--out", "again")
    assert results("run")["config"] == results("again")["config"]

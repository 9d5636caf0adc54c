"""Networks of a user's own file, on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import call

FILE = """
from torch import nn

def make_net(input_shape, num_outputs, hidden=10, bias=True):
    size = 1
    for length in input_shape:
        size *= length
    return nn.Sequential(nn.Flatten(), nn.Linear(size, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, num_outputs))

def needs(num_inputs, depth):
    return nn.Linear(num_inputs, depth)

def wrong():
    return 3

class Doubled(nn.Sequential):
    def __init__(self, num_outputs):
        super().__init__(nn.Linear(64, num_outputs))
    def forward(self, x):
        return 2 * super().forward(x.flatten(1))
"""


@pytest.fixture(autouse=True)
def own_file(own_folder: Path) -> None:
    """Write the file into the folder."""
    (own_folder / "nets.py").write_text(FILE)


def test_a_network_of_a_file_is_trained_and_scored(tmp_path: Path) -> None:
    settings = (
        "--model",
        "nets.py:make_net",
        "--model-arg",
        "hidden=7",
        "--model-arg",
        "bias=false",
        "--random",
        "1.weight",
    )
    output = call("train", *settings, "--epochs", "2")
    folder = tmp_path / "runs" / "digits-nets.py-make_net-train-additive"
    record = json.loads((folder / "results.json").read_text())
    assert record["model"]["parameters"] == 64 * 7 + 7 * 10 + 10
    assert "Sequential, by make_net in nets.py" in output and record["model"]["random"] == ["1.weight"]
    assert "--model-arg hidden=7 --model-arg bias=false" in record["command"]
    assert "additive mean" in call("evaluate", folder.name)
    assert "Already finished: additive" in call("train", "--resume", "--out", str(folder))
    (tmp_path / "nets.py").write_text(FILE.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.warns(UserWarning, match="nets.py' changed since"):
        assert "expected the network with" in call("evaluate", folder.name, code=2)


def test_a_changed_network_whose_parameters_still_fit_is_not_read_without_a_word() -> None:
    def scores() -> list[str]:
        return re.findall(r"± [\d.]+ [\d.]+", call("evaluate", "run"))

    settings = ("--model", "nets.py:Doubled", "--random", "0.weight", "--epochs", "1", "--out", "run")
    call("train", *settings)
    before = scores()
    Path("nets.py").write_text(FILE.replace("2 * super()", "-2 * super()"))
    with pytest.warns(UserWarning, match="nets.py' changed since"):
        assert scores() != before
    with pytest.warns(UserWarning, match="nets.py' changed since"):
        call("train", "--resume", *settings)
    Path("nets.py").write_text(FILE)
    assert scores() == before and len(before) == 4


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("nowhere.py:make_net", (), "nowhere.py: no such file"),
        (
            "nets.py:make_nets",
            (),
            "no function or class 'make_nets', but 'make_net', 'needs', 'wrong', 'Doubled'; did you mean 'make_net'",
        ),
        ("nets.py:needs", (), "needs 'depth', too"),
        ("nets.py:make_net", ("--model-arg", "width=3"), "takes no 'width'; it takes 'input_shape'"),
        ("nets.py:make_net", ("--model-arg", "3"), "expected name=value"),
        ("nets.py:make_net", ("--model-arg", "hidden=3", "--model-arg", "hidden=4"), "'hidden' is given twice"),
        ("nets.py:wrong", (), "to return a torch.nn.Module, got int"),
        ("broken.py:make", (), "cannot be executed: NameError"),
    ],
)
def test_files_that_do_not_fit_are_named(model: str, options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = y")
    assert message in call("train", "--model", model, *options, "--random", "1.weight", "--epochs", "1", code=2)


def test_random_weights_have_to_be_named() -> None:
    assert "say which of its weights are random" in call("train", "--model", "nets.py:make_net", code=2)
    assert "model_arg: it is for a network of your own" in call("train", "--model-arg", "hidden=3", code=2)

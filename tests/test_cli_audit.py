"""`pyrostoch audit`: what it attacks, writes and reports, and what it refuses by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from torch import nn

from pyrostoch import data
from pyrostoch.layers import Conditional, StochasticAdditive, StochasticLinear
from pyrostoch.runs.audits import drawing_layers
from pyrostoch.runs.private_files import read_private

TRAINING = ("--epochs", "1", "--hidden", "12,10", "--device", "cpu", "--quiet")
SMALL = ("--epochs", "1", "--most-epochs", "1")
FILE = "audit.additive.fc1.json"


pytestmark = pytest.mark.usefixtures("own_folder")


def labels() -> tuple[Any, Any]:
    split = data.load("digits")
    return split.y_train.numpy(), split.y_test.numpy()


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with one stochastic layer, and the output of its audit."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    train, test = labels()
    np.savez(folder.parent / "odd.npz", train=train % 2 == 1, test=test % 2 == 1)
    call("train", "--stochastic", "fc1", "--rate-weight", "0.01", *TRAINING, "--out", str(folder))
    given = ("--queries", "3,1", "--inverted", "2", "--private", str(folder.parent / "odd.npz"))
    return folder, call("audit", str(folder), *given, *SMALL)


@pytest.fixture
def run(audited: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the audited run, which a test may change."""
    shutil.copytree(audited[0], tmp_path / "run")
    return tmp_path / "run"


def test_an_audit_is_printed_and_written(audited: tuple[Path, str]) -> None:
    folder, output = audited
    assert "1/9 reconstruction, without noise, after " in output and "9/9 bound from below, after " in output
    assert "sent at fc1; 360 test examples" in output
    assert f"Wrote {folder / FILE} and report.html, after " in output
    files = {"results.json", "report.html", "config.toml", "posterior.nc", "additive.safetensors", FILE}
    assert {path.name for path in folder.iterdir()} == files
    saved = json.loads((folder / FILE).read_text())
    assert saved["guide"] == "additive" and saved["seconds"] > 0
    assert saved["settings"] | {"queries": None} == {
        "labels": False,
        "queries": None,
        "epochs": 1,
        "most_epochs": 1,
        "inverted": 2,
        "seed": 0,
    }
    rows = saved["audit"]["attacks"]
    assert [(row["attack"], row["queries"]) for row in rows[:4]] == [
        ("reconstruction", 1),
        ("reconstruction", 3),
        ("odd", 1),
        ("odd", 3),
    ]
    for row in rows:
        queries = "1 query" if row["queries"] == 1 else f"{row['queries']} queries"
        assert f"{row['attack']}, {queries}: {row['verdict']}" in output
    assert 40 < rows[2]["blind"] < 60  # odd digits, and no others
    assert saved["audit"]["weights"] == []


def test_the_report_has_the_audit_whenever_it_is_written(audited: tuple[Path, str], run: Path) -> None:
    text = (run / "report.html").read_text()
    assert '<section id="audit-0"><h2>Audit of what is sent at fc1, by additive</h2>' in text
    assert text.index("The answer alone") < text.index("What attackers read") < text.index("<h3>Pictures</h3>")
    assert text.count("<image ") == 2 * 4  # originals and three attacks; fc1 sends no images
    (run / "report.html").unlink()
    call("report", str(run))
    assert (run / "report.html").read_text() == text
    call("train", "--resume", "--out", str(run), "-q")
    assert (run / "report.html").read_text() == text
    (run / FILE).unlink()  # as in a run before there were audits
    call("report", str(run))
    assert "Audit" not in (run / "report.html").read_text()


def test_audits_of_other_layers_are_kept_beside_it_and_the_same_is_replaced(run: Path) -> None:
    given = ("--queries", "1", "--inverted", "0", "--quiet", *SMALL)
    output = call("audit", str(run), "--at", "act1", "--seed", "3", *given)
    assert "sent at act1" in output and "1/" not in output and "Wrote" not in output
    saved = json.loads((run / "audit.additive.act1.json").read_text())
    assert saved["settings"]["seed"] == 3 and saved["audit"]["skipped"] == ["attacks by optimization: not asked for"]
    call("audit", str(run), "--at", "fc1", *given)
    assert len(json.loads((run / FILE).read_text())["audit"]["attacks"]) == 1
    text = (run / "report.html").read_text()
    assert text.index("Audit of what is sent at act1") < text.index("Audit of what is sent at fc1")
    assert '<a href="#audit-1">' in text


def test_an_audit_that_fails_to_be_written_leaves_the_old_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / FILE).read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyrostoch.runs.folder.os.replace", fail)
    output = call("audit", str(run), "--queries", "1", "--inverted", "0", *SMALL, code=2)
    assert f"{FILE} cannot be written: No space left on device" in output
    assert (run / FILE).read_bytes() == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] in ([], [".pyrostoch.lock"])


def test_damaged_files_are_named(run: Path) -> None:
    for content, found in (
        ("{", "is damaged"),
        ('{"schema": 2, "audit": {}}', "no audit"),
        ('{"schema": 1}', "no audit"),
    ):
        (run / FILE).write_text(content)
        output = call("report", str(run), code=2)
        assert f"{FILE} " in output and found in output and "delete it, or audit again" in output


def test_what_cannot_be_audited_is_refused_by_name(run: Path) -> None:
    def refused(*args: str) -> str:
        return call("audit", str(run), "--queries", "1", *args, code=2)

    assert "MLP has no module 'fc9'; did you mean" in refused("--at", "fc1,fc9")
    assert "queries: expected numbers from 1 up" in refused("--queries", "1,x")
    assert "queries: expected numbers from 1 up" in refused("--queries", "0")
    assert "queries: expected numbers from 1 up" in refused("--queries", "")
    assert "no Conditional layer" in refused("--labels", "known")
    assert "guide of run" in refused("--guide", "variance")
    np.savez("age.npz", train=np.arange(3), test=np.arange(3))
    assert "private='age': expected whole numbers from 0 up, one for each of 1437" in refused("--private", "age.npz")
    call("train", "--stochastic", "fc1,fc2", *TRAINING, "--out", "two")
    output = call("audit", "two", code=2)
    assert "MLP draws in several layers, 'fc1', 'fc2'; name the one whose output is sent" in output
    call("train", *TRAINING, "--out", "none")
    output = call("audit", "none", code=2)
    assert "MLP has no stochastic layer" in output and "of 'fc1', 'bn1', 'act1', 'fc2'" in output
    Path("prices.csv").write_text("\n".join(["x,price", *(f"{i},{2.5 * i}" for i in range(60))]))
    call("train", "--data", "prices.csv", "--target", "price", *TRAINING, "--out", "prices")
    assert "run prices: it is a regression; an audit compares" in call("audit", "prices", "--at", "fc1", code=2)


def test_tables_and_known_labels(run: Path) -> None:
    rows = [f"{i % 7},{'AB'[i % 2]},{'yes' if i % 7 > 3 else 'no'}" for i in range(200)]
    Path("data.csv").write_text("\n".join(["x,kind,answer", *rows]))
    given = ("--data", "data.csv", "--target", "answer", "--stochastic", "fc1", "--conditional", "fc1")
    call("train", *given, *TRAINING, "--out", "table")
    output = call("audit", "table", "--labels", "known", "--queries", "1", "--inverted", "2", *SMALL)
    assert "The client knows the label and chooses the noise by it" in output
    saved = json.loads(Path("table/audit.additive.fc1.labels.json").read_text())
    assert saved["audit"]["labels"] and saved["audit"]["pictures"] is None
    text = Path("table/report.html").read_text()
    assert "The client knows the label" in text and "<h3>Pictures</h3>" not in text


def test_the_outermost_layers_that_draw_are_found() -> None:
    conditional = Conditional(lambda: StochasticLinear(3, 3), 2)
    plain = Conditional(lambda: nn.Linear(3, 3), 2)
    net = nn.ModuleDict({"a": nn.Sequential(StochasticAdditive(3), nn.ReLU()), "b": conditional, "c": plain})
    assert drawing_layers(net) == ["a.0", "b"]
    assert drawing_layers(nn.Linear(2, 2)) == []


def test_private_attributes_are_numbered() -> None:
    np.savez("zip.npz", train=np.array([90210, -1, 90210]), test=np.array([7], dtype=np.uint8))
    np.savez("odd.npz", train=np.array([True, False]), test=np.array([True]))
    found = read_private([Path("zip.npz"), Path("odd.npz")])
    assert list(found) == ["zip", "odd"]
    assert torch.equal(found["zip"][0], torch.tensor([2, 0, 2])) and torch.equal(found["zip"][1], torch.tensor([1]))
    assert torch.equal(found["odd"][0], torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": np.arange(3)}, "expected the arrays train and test"),
        ({"train": np.arange(3.0), "test": np.arange(3)}, "whole numbers in train, one for each example, got float64"),
        (
            {"train": np.arange(3), "test": np.zeros((3, 2), int)},
            r"in test, one for each example, got int64 of shape \(3, 2\)",
        ),
        ({"train": np.array(["a"]), "test": np.array(["b"])}, "numpy.unique"),
        ({"train": np.array([{}]), "test": np.array([{}])}, "expected the arrays train and test"),
        (b"", "expected the arrays train and test"),
        (b"PK\x03\x04 no archive", "expected the arrays train and test"),
        (np.arange(3), "expected the arrays train and test"),
    ],
)
def test_private_files_of_another_form_are_named(content: Any, message: str) -> None:
    path = Path("age.npz")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        with path.open("wb") as file:
            np.save(file, content)
    with pytest.raises(ValueError, match=f"private age.npz: .*{message}"):
        read_private([path])


def test_arrays_of_other_names_and_single_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "names.npz", age=np.arange(3))
    with pytest.raises(ValueError, match="it has no train, but 'age'"):
        read_private([tmp_path / "names.npz"])
    np.save(tmp_path / "age.npy", np.arange(3))
    with pytest.raises(ValueError, match="a single array"):
        read_private([tmp_path / "age.npy"])


def test_private_files_that_are_missing_or_of_one_name() -> None:
    with pytest.raises(FileNotFoundError, match=r"private no.npz: there is no such file"):
        read_private([Path("no.npz")])
    Path("a").mkdir()
    for path in ("age.npz", "a/age.npz"):
        np.savez(path, train=np.arange(2), test=np.arange(2))
    with pytest.raises(ValueError, match="two files are named age"):
        read_private([Path("age.npz"), Path("a/age.npz")])

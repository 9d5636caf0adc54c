"""Predictions in a folder: in numbered parts, continued after an interruption, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_predictor import LIKELIHOODS, Heads, made, mlp
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.prediction import SavedPrediction, predict, saved


def problem() -> tuple[Any, Any, torch.Tensor]:
    torch.manual_seed(0)
    return *made(mlp()), torch.randn(25, 4)


def test_parts_are_the_prediction(tmp_path: Path) -> None:
    model, guide, x = problem()
    whole = predict(model, guide, x, mode="moments")
    found = predict(model, guide, x, mode="moments", out=tmp_path / "p", batch_size=10, seed=1)
    assert found.counts == (10, 10, 5) and len(found) == 25
    assert (tmp_path / "p" / "00002.log_probs.npy").is_file()
    np.testing.assert_allclose(found.array("log_probs"), whole.log_probs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.load().epistemic, whole.epistemic, rtol=1e-4, atol=1e-7)
    assert str(SavedPrediction.read(tmp_path / "p")) == str(found)
    with pytest.raises(ValueError, match="field 'mean'"):
        found.array("mean")


def test_loaders(tmp_path: Path) -> None:
    model, guide, x = problem()
    pairs = DataLoader(TensorDataset(x, torch.zeros(25, dtype=torch.int64)), batch_size=7)
    alone = DataLoader(TensorDataset(x), batch_size=7)
    one = predict(model, guide, pairs, mode="mean", out=tmp_path / "pairs")
    other = predict(model, guide, alone, mode="mean", out=tmp_path / "alone")
    np.testing.assert_array_equal(one.array("log_probs"), other.array("log_probs"))
    np.testing.assert_allclose(one.array("log_probs"), predict(model, guide, x, mode="mean").log_probs, rtol=1e-5)
    with pytest.raises(ValueError, match="shuffle=False"):
        predict(model, guide, DataLoader(TensorDataset(x), shuffle=True), out=tmp_path / "shuffled")
    with pytest.raises(TypeError, match="out="):
        predict(model, guide, alone)  # type: ignore[call-overload]


def test_several_heads(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, guide = made(Heads(), LIKELIHOODS["heads"][0])
    x = torch.randn(9, 4)
    found = predict(model, guide, x, mode="mean", out=tmp_path / "p", batch_size=4).load()
    expected = predict(model, guide, x, mode="mean")
    assert found.heads is not None and expected.heads is not None
    torch.testing.assert_close(found.heads["kind"].log_probs, expected.heads["kind"].log_probs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.heads["size"].mean, expected.heads["size"].mean, rtol=1e-5, atol=1e-7)


def test_killed_in_the_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide, x = problem()
    with monkeypatch.context() as patched:
        patched.setattr(saved.np, "save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(model, guide, x, mode="mean", out=tmp_path / "p", batch_size=10)
    assert len(predict(model, guide, x, mode="mean", out=tmp_path / "p", batch_size=10)) == 25


@pytest.mark.parametrize("seed", [None, 5])
def test_a_killed_prediction_goes_on(tmp_path: Path, seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide, x = problem()
    folder, done = tmp_path / "p", []
    write = saved._write_part

    def killed(folder: Path, number: int, *rest: Any) -> None:
        write(folder, number, *rest)
        done.append(number)
        if number == 1 and len(done) == 2:
            raise KeyboardInterrupt  # between the files of a part and the index

    monkeypatch.setattr(saved, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(model, guide, x, mode="mc:3", out=folder, batch_size=10, seed=seed)
    with pytest.raises(ValueError, match="interrupted after 1 part"):
        SavedPrediction.read(folder)
    found = predict(model, guide, x, mode="mc:3", out=folder, batch_size=10, seed=seed)
    assert done == [0, 1, 1, 2]
    own = seed if seed is not None else json.loads((folder / "index.json").read_text())["settings"]["seed"]
    again = predict(model, guide, x, mode="mc:3", out=tmp_path / "whole", batch_size=10, seed=own)
    np.testing.assert_allclose(found.array("log_probs"), again.array("log_probs"), rtol=1e-6)
    assert found.array("log_probs").std(0).min() > 0
    predict(model, guide, x, mode="mc:3", out=folder, batch_size=10, seed=seed)
    assert done == [0, 1, 1, 2, 0, 1, 2]


def test_another_prediction_is_not_continued(tmp_path: Path) -> None:
    model, guide, x = problem()
    folder = tmp_path / "p"
    predict(model, guide, x, mode="mc:3", out=folder, batch_size=10, seed=1)
    for settings in ({"mode": "mean"}, {"mode": "mc:4"}, {"mode": "mc:3", "seed": 2}):
        with pytest.raises(ValueError, match="it was made with other"):
            predict(model, guide, x, out=folder, batch_size=10, **settings)
    with pytest.raises(ValueError, match="other inputs"):
        predict(model, guide, x + 1.0, mode="mc:3", out=folder, batch_size=10, seed=1)
    with pytest.raises(ValueError, match="parts of inputs"):
        predict(model, guide, x[:20], mode="mc:3", out=folder, batch_size=10, seed=1)
    with torch.no_grad():
        next(guide.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="other weights"):
        predict(model, guide, x, mode="mc:3", out=folder, batch_size=10, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        predict(model, guide, x, out=tmp_path / "other")
    (folder / "index.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"index\.json"):
        SavedPrediction.read(folder)
    with pytest.raises(FileNotFoundError):
        ps.SavedPrediction.read(tmp_path / "nothing")
    with pytest.raises(ValueError, match="out="):
        predict(model, guide, x, y=torch.zeros(25), out=tmp_path / "q")  # type: ignore[call-overload]

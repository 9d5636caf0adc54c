"""What fails before it has written anything leaves no folder behind, and removes none that was there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Case
from torch import nn
from typer.testing import CliRunner

import pyrostoch as ps
from pyrostoch.cli import app
from pyrostoch.data import DownloadError, download
from pyrostoch.runs import execute, fill_defaults


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def wrong_data(case: Case, path: Path) -> None:
    x = torch.full((24, 4), float("nan"))
    ps.fit(case.model, case.guide, (x, torch.zeros(24).long()), epochs=1, checkpoint=path, progress=False)


def infinite_loss(case: Case, path: Path) -> None:
    case.model.net.last.weight = nn.Parameter(case.model.net.last.weight.detach() * float("inf"))
    case.fit(path, lr=1e30)


@pytest.mark.parametrize("fail", [wrong_data, infinite_loss])
@pytest.mark.parametrize("there", [False, True])
def test_a_failed_fit(fail: Any, there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "new" / "inner").mkdir(parents=True)
    before = everything(tmp_path)
    with pytest.raises((ValueError, FloatingPointError)):
        fail(Case(), tmp_path / "new" / "inner" / "run")
    assert everything(tmp_path) == before


def test_a_fit_that_writes_keeps_its_folders(tmp_path: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Case().fit(tmp_path / "new" / "inner" / "run", callback=stop)
    assert everything(tmp_path) == ["new", "new/inner", "new/inner/run"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failed_save(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    case = Case()
    (tmp_path / "old").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for folder in ("new/inner", "old"):
            with pytest.raises(OSError, match="No space left"):
                ps.save(tmp_path / folder / "net", case.model, case.guide)
    with pytest.raises(TypeError, match="not plain data"):
        ps.save(tmp_path / "new" / "net", case.model, case.guide, when=object())
    assert everything(tmp_path) == ["old"]


def test_a_run_that_fails_at_its_first_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"data": "mnist", "data_dir": str(tmp_path / "none"), "device": "cpu", "epochs": 1}
    with pytest.raises((ValueError, OSError)):
        execute(fill_defaults("compare", given), tmp_path / "runs" / "x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROSTOCH_DATA", raising=False)
    (tmp_path / "mine").mkdir()
    for arguments in ([], ["--out", "new/run"], ["--name", "given"], ["--out", "mine"], ["--resume"]):
        result = CliRunner().invoke(app, ["compare", "--data", "mnist", "--data-dir", "none", *arguments])
        assert result.exit_code == 2, result.output
    assert everything(tmp_path) == ["mine"]


def test_a_download_of_which_every_mirror_fails(tmp_path: Path) -> None:
    # No server listens at port 9 (discard) of this machine; a refused connection is an answer.
    with pytest.raises(DownloadError, match="nothing was kept"):
        download("mnist", tmp_path / "data" / "here", base_urls=["http://127.0.0.1:9/"], progress=False)
    assert everything(tmp_path) == []
    (tmp_path / "MNIST").mkdir()
    with pytest.raises(DownloadError):
        download("mnist", tmp_path, base_urls=["http://127.0.0.1:9/"], progress=False)
    assert everything(tmp_path) == ["MNIST"]

"""The command line in a separate process, as `python -m pyrostoch`: killed, on a full disk, in a read-only folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pyrostoch.cli import app

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ("train", "--guide", "weightwise", "--hidden", "12,10", "--epochs", "60", "--batch-size", "500", "--quiet")


def start(folder: Path, *args: str, before: str = "") -> subprocess.Popen[str]:
    """Start the command line in a folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("PYROSTOCH_DATA", None)
    command = [sys.executable, "-m", "pyrostoch", *args]
    if before:
        command = [sys.executable, "-c", f"{before}\nfrom pyrostoch.cli import main\nmain()", *args]
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def test_killed_run_is_resumed_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "killed" / "weightwise.safetensors"
    process = start(tmp_path, *TRAIN, "--out", "killed")
    limit = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
    # In this process, which has imported everything: most of a run this small is imports.
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROSTOCH_DATA", raising=False)
    for arguments in (("train", "--resume", "--out", "killed"), (*TRAIN, "--out", "whole")):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    one, other = load_file(checkpoint), load_file(tmp_path / "whole" / "weightwise.safetensors")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on the size of files")
def test_full_disk_is_reported_before_training(tmp_path: Path) -> None:
    # With a limit on the size of files a write fails half-way, as on a full disk.
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    process = start(tmp_path, *TRAIN, "--out", "run", before=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: run folder run: cannot be written to: ")
    assert "free some space, or choose another with --out" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_read_only_folder_is_reported_before_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        process = start(tmp_path, *TRAIN, "--out", str(tmp_path / "run"))
        _, errors = process.communicate(timeout=60)
    finally:
        tmp_path.chmod(0o700)
    assert process.returncode == 2 and "Permission denied" in errors and "Traceback" not in errors

"""Federated training as processes on this machine: the example runs, and outlives a data holder that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pyrostoch.safefile import read_file

pytest.importorskip("flwr", reason="flwr is not installed: make federated")

RUN = Path(__file__).resolve().parent.parent / "examples" / "federated" / "run.sh"
# A round takes half a minute on two cores; a machine that does much else takes longer.
LONGEST = 1200.0
# Every holder waits before it trains, so that one can be killed that has been asked and has not answered.
PAUSE = 12
SLOWLY = ("--pause", str(PAUSE))


class Started:
    """The example in processes of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        # Every process of the run has the name of this folder in its environment.
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
        self.process = subprocess.Popen(
            [str(RUN), "--keep", str(folder), *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def in_the_middle_of(self, number: int) -> None:
        """Wait until a round has begun, whose holders have been asked and have not answered."""
        state, end = self.folder / "server" / "federated.safetensors", time.monotonic() + LONGEST
        while not state.exists() or len(read_file(state)[1]["extra"]["federated"]["rounds"]) < number - 1:
            assert self.process.poll() is None and time.monotonic() < end, f"round {number} has not begun"
            time.sleep(0.2)
        time.sleep(PAUSE / 3)

    def groups(self) -> dict[str, int]:
        """The process groups that it started, by name."""
        lines = (self.folder / "processes").read_text("utf-8").splitlines()
        return {name: int(group) for name, group in (line.split() for line in lines)}

    def left(self) -> list[str]:
        """What is still running."""
        found, mark = [], str(self.folder / "tmp").encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def end(self) -> tuple[int, str, dict[str, Any]]:
        """Wait for the end: status, what was printed, and the report; no process may be left."""
        try:
            printed, _ = self.process.communicate(timeout=LONGEST)
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.communicate(timeout=60)
        assert self.left() == []
        report = self.folder / "server" / "report.json"
        return self.process.returncode, printed, json.loads(report.read_text("utf-8")) if report.exists() else {}


@pytest.mark.slow
def test_killed_holders_are_named_and_the_training_goes_on(tmp_path: Path) -> None:
    started = Started(tmp_path, "--holders", "4", "--quorum", "2", "--rounds", "3", "--timeout", "600", *SLOWLY)
    for number, (name, fate) in {2: ("supernode-1", signal.SIGTERM), 3: ("supernode-2", signal.SIGKILL)}.items():
        started.in_the_middle_of(number)
        os.killpg(started.groups()[name], fate)
    status, printed, report = started.end()
    assert status == 0 and [entry["failed"] for entry in report["rounds"]] == [False] * 3
    assert [entry["answered"] for entry in report["rounds"]] == [["0", "1", "2", "3"], ["0", "2", "3"], ["0", "3"]]
    assert [sorted(entry["missing"]) for entry in report["rounds"]] == [[], ["1"], ["1", "2"]]
    assert "Unavailable" in report["rounds"][1]["missing"]["1"] and "Unavailable" in report["rounds"][2]["missing"]["2"]
    assert "round 3: nothing from holder '1' (359 examples): it was not connected" in printed
    assert report["score"] > report["start"] + 0.2


@pytest.mark.slow
def test_a_run_with_too_few_answers_ends_with_an_error_and_goes_on_later(tmp_path: Path) -> None:
    options = ("--holders", "2", "--quorum", "2", "--rounds", "2", "--timeout", "600")
    started = Started(tmp_path, *options, *SLOWLY)
    started.in_the_middle_of(2)
    os.killpg(started.groups()["supernode-1"], signal.SIGTERM)
    status, printed, report = started.end()
    assert status == 1 and [entry["failed"] for entry in report["rounds"]] == [False, True]
    assert list(report["rounds"][1]["missing"]) == ["1"] and "2 failed" in printed
    status, printed, report = Started(tmp_path, *options).end()
    assert status == 0 and [entry["failed"] for entry in report["rounds"]] == [False, True, False]


@pytest.mark.slow
def test_holders_send_examples_of_skewed_parts(tmp_path: Path) -> None:
    options = ("--send", "examples", "--skew", "dirichlet", "--holders", "2", "--quorum", "2", "--rounds", "1")
    status, printed, report = Started(tmp_path, *options, "--timeout", "900").end()
    assert status == 0 and "examples of 2 data holders with 1437 examples" in printed
    assert report["score"] > 0.6 and len(list((tmp_path / "holders").iterdir())) == 2


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    started, end = Started(tmp_path, "--holders", "2", *SLOWLY), time.monotonic() + LONGEST
    log = tmp_path / "run.log"
    while not log.exists() or "serverapp" not in log.read_text("utf-8"):
        assert started.process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    assert len(started.left()) > 4
    started.process.terminate()
    assert started.end()[0] == 128 + signal.SIGTERM


def test_wrong_options_are_refused() -> None:
    for options, message in [
        (["--send", "pictures"], "--send: expected weights or examples, got pictures"),
        (["--holders"], "--holders: expected a value after it"),
        (["--what", "1"], "--what: no such option"),
    ]:
        done = subprocess.run([str(RUN), *options], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr

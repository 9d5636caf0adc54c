"""Runs that are killed by SIGKILL at random moments and resumed end in the same bits as uninterrupted ones.

`PYROSTOCH_KILLS` is the number of kills in each setting; `make fuzz` makes many. Run as a script it makes the runs, in
children that it forks and kills.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.safefile import read_file
from pyrostoch.training.fit import fit

KILLS = int(os.environ.get("PYROSTOCH_KILLS", "1"))
SEED = int(os.environ.get("PYROSTOCH_TEST_SEED", "0"))
EPOCHS = 5
ROOT = Path(__file__).resolve().parents[1]


def data(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=torch.Generator().manual_seed(1))).argmax(-1)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), batch_size=20, shuffle=True, generator=torch.Generator().manual_seed(8))


def interpret() -> None:
    """Let the compiled step's graph be run by torch, since a C++ compiler would need half a minute in every child."""
    for name, value in (("step.lower", lambda module, inputs: module), ("step.missing", lambda device: None)):
        module, attribute = name.split(".")
        setattr(importlib.import_module(f"pyrostoch.staging.{module}"), attribute, value)
    importlib.import_module("pyrostoch.infer.compile").missing = lambda device: None  # type: ignore[attr-defined]


ALPHA: dict[str, Any] = {"guide": ps.guides.LayerwiseAlpha, "lr_alpha": 0.2, "prior": ps.priors.LogUniform}
SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "loader": lambda: {"source": loader()},
    "lr_alpha": lambda: dict(ALPHA),
    "empirical Bayes": lambda: {"prior": lambda: ps.priors.EmpiricalBayes(0.5)},
    # Other targets than those that are learned: an early epoch is the best, to which the run returns at its end.
    "validation": lambda: {"validation": (data(40, 2)[0], (data(40, 2)[1] + 1) % 3), "patience": 3},
    "compiled": lambda: {"compile": True},
    "bf16": lambda: {"precision": "bf16"},
}


def train(setting: str, path: Path) -> None:
    options = SETTINGS[setting]()
    if options.get("compile"):
        interpret()
    source, guide = options.pop("source", None) or data(), options.pop("guide", ps.guides.Additive)
    prior = options.pop("prior", ps.priors.Normal)()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 3))
    model = ps.BayesianModel(
        net, prior={"0.weight": prior, "4.weight": prior}, likelihood=ps.likelihoods.Categorical(), num_data=60
    )
    settings: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 20, "lr": 0.05, "seed": 4, "progress": False}
    settings |= {"checkpoint": path, "resume": True, "compile": False, "clip": 50.0, "kl_warmup": 3.0}
    fit(model, guide(model), source, **settings | options)


def forked(setting: str, path: Path) -> int:
    """Start the run in a child, and return its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(setting, path)
            status = 0
        finally:
            os._exit(status)
    return child


def kill_and_resume(setting: str, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Make an uninterrupted run, and others that are killed until there were enough kills, and resumed to their end."""
    whole = folder / "whole"
    start = time.monotonic()
    status = os.waitpid(forked(setting, whole), 0)[1]
    seconds = time.monotonic() - start
    made, runs, statuses = 0, 0, [status]
    while made < kills:
        path = folder / f"killed-{runs}"
        for attempt in range(1000):
            child = forked(setting, path)
            # Later attempts get more time, so that a run ends on a busy machine, too.
            if made < kills:
                time.sleep(rng.uniform(0.0, seconds * (1 + attempt / 10)))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            made += os.WIFSIGNALED(status)
            if os.WIFEXITED(status):
                break
        statuses.append(status)
        runs += 1
    return {"kills": made, "runs": runs, "statuses": statuses}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    # All settings in one process, whose children need not import torch again.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path), str(KILLS), str(SEED)]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results.keys() == SETTINGS.keys()
    for setting, found in results.items():
        assert found["kills"] >= KILLS and not any(found["statuses"]), (setting, done.stderr)
        check(setting, tmp_path / setting, found["runs"])
        print(f"{setting}: {found['kills']} kills in {found['runs']} runs")


def check(setting: str, folder: Path, runs: int) -> None:
    """Compare the checkpoints that the killed runs have left with that of the uninterrupted one."""
    # Neither locks nor temporary files of the killed processes remain.
    assert set(os.listdir(folder)) == {*(f"killed-{run}" for run in range(runs)), "whole"}, setting
    whole, content = read_file(folder / "whole")
    assert content["training"]["stopped"] is not None
    assert (content["training"]["best_epoch"] is not None) == (setting == "validation")
    assert content["training"]["compiled"] == (setting == "compiled")
    content["training"]["history"].pop("seconds")
    for run in range(runs):
        tensors, other = read_file(folder / f"killed-{run}")
        other["training"]["history"].pop("seconds")
        assert other == content, setting
        assert tensors.keys() == whole.keys() and {"rng.cpu"} < tensors.keys(), setting
        assert [name for name, value in whole.items() if not torch.equal(value, tensors[name])] == [], setting


def main(root: Path, kills: int, seed: int) -> None:
    """Run all settings, and print what happened as JSON."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # the first step of an optimizer would load it, in every child
    rng = random.Random(seed)
    found = {}
    for setting in SETTINGS:
        (root / setting).mkdir()
        found[setting] = kill_and_resume(setting, root / setting, kills, rng)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

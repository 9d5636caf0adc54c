"""A run that is interrupted by an exception, Ctrl-C or SIGKILL, and resumed ends exactly like an uninterrupted one.

Run as a script it is the run to be killed: see `Killed`.
"""

from __future__ import annotations

import importlib
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
from pyrostoch.effects.active import active_call
from pyrostoch.safefile import CheckpointError, read_file
from pyrostoch.training.checkpoint import save
from pyrostoch.training.fit import fit

EPOCHS = 6
KILLED_EPOCHS = 25


def data(count: int = 90, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=torch.Generator().manual_seed(1))).argmax(-1)


def build() -> tuple[ps.BayesianModel, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 3))
    prior = {"0.*": ps.priors.EmpiricalBayes(0.5), "4.weight": ps.priors.LogUniform()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=90)
    return model, ps.guides.PerSite(model, {"*": ps.guides.Additive, "4.*": ps.guides.LayerwiseAlpha})


def train(path: Path | None, built: Any = None, source: Any = None, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 25, "lr": 0.03, "lr_alpha": 0.1, "kl_warmup": 2.0}
    settings |= {"clip": 50.0, "seed": 4, "progress": False, "checkpoint": path, "resume": True}
    return fit(*(built or build()), data() if source is None else source, **settings | options)


def tensors(path: Path) -> dict[str, Tensor]:
    return read_file(path)[0]


def same(a: Path, b: Path) -> bool:
    one, two = tensors(a), tensors(b)
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def stop_at(epoch: int) -> Callable[[dict[str, Any]], None]:
    def callback(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return callback


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "cosine": lambda: {"schedule": "cosine", "estimator": "flipout", "num_particles": 2, "kl_warmup": (1.0, 2.5)},
    "no seed": lambda: {"seed": None},
    "held-out": lambda: {"validation": data(40, 1), "patience": 2, "lr": 0.2, "schedule": "constant"},
    "loader": lambda: {"source": DataLoader(TensorDataset(*data()), batch_size=25, shuffle=True)},
    "loader with its own noise": lambda: {
        "source": DataLoader(
            TensorDataset(*data()), batch_size=25, shuffle=True, generator=torch.Generator().manual_seed(8)
        )
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(6)
    whole = train(tmp_path / "whole", **VARIANTS[variant]())
    torch.manual_seed(6)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", callback=stop_at(2), **VARIANTS[variant]())
    assert not same(tmp_path / "whole", tmp_path / "parts")
    model, guide = build()
    torch.manual_seed(12345)
    resumed = train(tmp_path / "parts", (model, guide), **VARIANTS[variant]())
    assert same(tmp_path / "whole", tmp_path / "parts")
    for key in whole.history.keys() - {"seconds"}:
        assert resumed.history[key] == whole.history[key]
    assert (resumed.stopped, resumed.epochs, resumed.best_epoch) == (whole.stopped, whole.epochs, whole.best_epoch)
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors(tmp_path / "whole")[f"model.{name}"])
    for name, value in guide.state_dict().items():
        assert torch.equal(value, tensors(tmp_path / "whole")[f"guide.{name}"])


def test_the_best_parameters_survive_an_interrupt_after_their_epoch(tmp_path: Path) -> None:
    options = {**VARIANTS["held-out"](), "epochs": 30, "patience": 3}
    whole = train(tmp_path / "whole", **options)
    assert whole.stopped.startswith("early")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", callback=stop_at(whole.best_epoch + 1), **options)
    resumed = train(tmp_path / "parts", **options)
    assert (resumed.stopped, resumed.best_epoch) == (whole.stopped, whole.best_epoch)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_an_interrupt_inside_an_epoch_costs_that_epoch_only(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    model, guide = build()
    passes: list[int] = []

    def interrupt(module: nn.Module, args: Any) -> None:
        if active_call() is not None:  # no pass of the analysis of weight usage
            passes.append(1)
        if len(passes) == 14:
            raise KeyboardInterrupt

    model.net.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", (model, guide))
    assert read_file(tmp_path / "parts")[1]["training"]["epoch"] == 3
    train(tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = train(tmp_path / "run")
    model, guide = build()
    again = train(tmp_path / "run", (model, guide), callback=stop_at(1))
    assert again.history == first.history and again.elbo == first.elbo
    assert all(torch.equal(value, tensors(tmp_path / "run")[f"guide.{n}"]) for n, value in guide.state_dict().items())


def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    assert train(tmp_path / "run", resume=False).epochs == EPOCHS


@pytest.mark.parametrize(
    "changed",
    [
        {"lr": 0.02},
        {"lr_alpha": None},
        {"batch_size": 30},
        {"epochs": 7},
        {"epochs": 5},
        {"seed": 5},
        {"estimator": "shared"},
        {"schedule": "cosine"},
        {"kl_warmup": 0.0},
        {"clip": None},
        {"num_particles": 2},
        {"precision": "bf16"},
        {"patience": 2, "validation": data(40, 1)},
    ],
    ids=lambda changed: "-".join(map(str, list(changed.items())[0])),
)
def test_resuming_with_another_setting_is_refused_by_name(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callback=stop_at(1))
    model, guide = build()
    before = [value.clone() for value in guide.state_dict().values()]
    with pytest.raises(CheckpointError, match=f"cannot be resumed with {next(iter(changed))}="):
        train(tmp_path / "run", (model, guide), **changed)
    assert all(torch.equal(a, b) for a, b in zip(before, guide.state_dict().values(), strict=True))


def test_epochs_may_be_raised_at_a_constant_rate(tmp_path: Path) -> None:
    train(tmp_path / "whole", schedule="constant")
    assert train(tmp_path / "parts", schedule="constant", epochs=3).epochs == 3
    assert train(tmp_path / "parts", schedule="constant").epochs == EPOCHS
    assert same(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(CheckpointError, match="epochs=6 and cannot be resumed with epochs=5"):
        train(tmp_path / "parts", schedule="constant", epochs=5)


def test_epochs_may_not_be_raised_after_early_stopping(tmp_path: Path) -> None:
    options = {"schedule": "constant", "validation": data(40, 1), "patience": 9}
    train(tmp_path / "run", epochs=2, **options)
    with pytest.raises(CheckpointError, match="epochs=2.*early stopping"):
        train(tmp_path / "run", **options)


def test_a_file_of_save_cannot_be_resumed(tmp_path: Path) -> None:
    model, guide = build()
    save(tmp_path / "model", model, guide)
    with pytest.raises(CheckpointError, match="expected one of a training run"):
        train(tmp_path / "model", (model, guide))


class Killed:
    """Sends SIGKILL to this process at an exact moment of writing a checkpoint, or of a step."""

    def __init__(self, moment: str, count: int) -> None:
        self.left = count
        for name in ("write", "replace", "fsync"):
            if moment.endswith(name):
                setattr(
                    os, name, self.around(getattr(os, name), before=moment.startswith("before"), half=name == "write")
                )
        if moment == "step":
            torch.optim.Adam.step = self.around(torch.optim.Adam.step, before=True, half=False)  # type: ignore[method-assign]

    def around(self, function: Callable[..., Any], before: bool, half: bool) -> Callable[..., Any]:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and before:
                if half:
                    function(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return replacement


MOMENTS = [("before write", 2), ("before replace", 1), ("after replace", 1), ("after fsync", 3), ("step", 6)]


def main(path: Path) -> None:
    """Run until the run is finished, in processes that are killed: first at exact moments, then at random ones."""
    importlib.import_module("torch._dynamo")  # the first step of an optimizer would load it, in every child
    kills, attempt, rng = 0, 0, random.Random(0)
    while True:
        child = os.fork()
        if child == 0:
            if attempt < len(MOMENTS):
                Killed(*MOMENTS[attempt])
            train(path, epochs=KILLED_EPOCHS)
            os._exit(0)
        if attempt >= len(MOMENTS):
            # With growing intervals, so that the run ends on a slow machine, too.
            time.sleep(rng.uniform(0.04, 0.12) * (attempt - len(MOMENTS) + 1))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        attempt += 1
        if os.WIFEXITED(status):
            break
        kills += 1
    print(kills, os.waitstatus_to_exitcode(status))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_and_resumed_it_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    train(tmp_path / "whole", epochs=KILLED_EPOCHS)
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(root)
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    kills, code = map(int, done.stdout.split())
    assert code == 0 and kills >= len(MOMENTS) + 2, done.stderr
    assert same(tmp_path / "whole", tmp_path / "killed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

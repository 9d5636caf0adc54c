"""What a checkpoint says of a training run, checked in full before anything of the present run is replaced.

A file whose checksum is right may still hold what no run has written: parts that are missing, of other types, or that
contradict each other. Such a file is refused here.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.safefile import CheckpointError
from pyrostoch.training.history import COLUMNS, History
from pyrostoch.training.optimizer import ADAM
from pyrostoch.training.other_generators import numpy_state, python_state, set_numpy_state, set_python_state
from pyrostoch.training.state import TrainingState, form, module_state

__all__ = ["SavedTraining", "check_state", "read_training"]

_KEYS = (
    *("epoch", "settings", "order_seed", "compiled", "device", "optimizer", "history"),
    *("stopped", "best_epoch", "best_loss"),
)


@dataclass(frozen=True)
class SavedTraining:
    """A training run as its checkpoint describes it; whatever it says is consistent in itself.

    Args:
        path: The file.
        tensors: Its tensors.
        content: Its plain data.
        epoch: Number of epochs made.
        settings: The settings of the run.
        order_seed: Seed of the order of the examples.
        compiled: Whether the step was compiled.
        device: Type of the device that it ran on.
        optimizer: Names of the parameters of which the optimizer keeps something.
        history: History of the epochs.
        stopped: Why the run ended, `None` if it did not.
        best_epoch: The epoch with the best loss on held-out data.
        best_loss: That loss.
    """

    path: Path
    tensors: dict[str, Tensor]
    content: dict[str, Any]
    epoch: int
    settings: dict[str, Any]
    order_seed: int
    compiled: bool
    device: str
    optimizer: list[str]
    history: History
    stopped: str | None
    best_epoch: int | None
    best_loss: float

    @property
    def best(self) -> dict[str, Tensor]:
        """Model and guide after the best epoch; empty unless the run can still return to it."""
        return {name.removeprefix("best."): v for name, v in self.tensors.items() if name.startswith("best.")}


def read_training(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> SavedTraining:
    """Check the description of a run for types, ranges and contradictions.

    Args:
        path: The file, for messages.
        tensors: Its tensors.
        content: Its plain data.

    Raises:
        CheckpointError: It is no checkpoint of a run, or something in it is wrong; it is named.
    """
    training = content.get("training")
    if training is None:
        raise CheckpointError(
            f"checkpoint {path}: expected one of a training run, got a file of pyrostoch.save; load it by "
            "pyrostoch.load and start a run with another path"
            f"{see('how-to/save_and_load')}"
        )

    if not isinstance(training, dict) or set(training) != set(_KEYS):
        got = name_list(training, 99) if isinstance(training, dict) else str(training)[:200]
        raise _wrong(path, f"expected the entries {name_list(_KEYS, 99)} of a run, got {got}")

    def check(good: bool, what: str, expected: str) -> None:
        if not good:
            raise _wrong(path, f"the run's {what}: expected {expected}, got {str(training[what])[:200]}")

    epoch, settings, seed = training["epoch"], training["settings"], training["order_seed"]
    stopped, best, loss = training["stopped"], training["best_epoch"], training["best_loss"]
    check(isinstance(settings, dict), "settings", "a dictionary")
    epochs, patience = settings.get("epochs"), settings.get("patience")
    check(_whole(epochs, 1) and (patience is None or _whole(patience, 1)), "settings", "whole epochs and patience")
    check(_whole(epoch, 1) and epoch <= epochs, "epoch", f"a whole number from 1 to {epochs}")
    check(_whole(seed, 0) and seed < 2**64, "order_seed", "a whole number from 0 to 2^64 - 1")
    check(settings.get("seed") in (None, seed), "order_seed", f"the seed of the settings, {settings.get('seed')}")
    check(isinstance(training["compiled"], bool), "compiled", "true or false")
    check(isinstance(training["device"], str), "device", "the name of a type of devices")
    optimizer = training["optimizer"]
    check(
        isinstance(optimizer, list) and all(isinstance(name, str) for name in optimizer), "optimizer", "a list of names"
    )
    history = training["history"]
    columns = [name for name in COLUMNS if name != "validation" or settings.get("validation_examples") is not None]
    check(
        isinstance(history, dict)
        and set(history) == set(columns)
        and history["epoch"] == list(range(1, epoch + 1))
        and all(_floats(row, epoch) for name, row in history.items() if name != "epoch"),
        "history",
        f"{epoch} numbers in each of {name_list(columns, 99)}",
    )
    endings = {"finished"} if patience is None else {"finished", f"early stopping at epoch {epoch}"}
    check(
        stopped is None and epoch < epochs
        or isinstance(stopped, str) and stopped in endings and (stopped != "finished" or epoch == epochs),
        "stopped",
        f"an ending that a run has after {epoch} of {epochs} epochs",
    )  # fmt: skip
    check(
        best is None or (_whole(best, 1) and best <= epoch and patience is not None and "validation" in history),
        "best_epoch",
        f"null, or with patience a whole number from 1 to {epoch}",
    )
    recorded = math.inf if best is None else history["validation"][best - 1]
    check(_floats([loss], 1) and loss == recorded, "best_loss", f"{recorded}, as in the history")
    return SavedTraining(path, tensors, content, **{key: training[key] for key in _KEYS})


def check_state(saved: SavedTraining, state: TrainingState) -> None:
    """Check that a checkpoint holds exactly the tensors of a training state, and that all of them can be restored.

    Nothing is changed: random states are tried on generators of their own.

    Args:
        saved: The checkpoint.
        state: The state of the present run.

    Raises:
        CheckpointError: A tensor is missing, unknown, or has another shape, dtype or layout, or a random state is
            none; it is named.
    """
    path, tensors = saved.path, saved.tensors
    expected: dict[str, Tensor] = dict(module_state(state.model, state.guide))
    if saved.best_epoch is not None and saved.stopped is None:
        expected |= {f"best.{name}": value for name, value in expected.items()}
    parameters = {name: parameter for parameter, name in state.names.items()}
    if unknown := [name for name in saved.optimizer if name not in parameters]:
        raise _wrong(path, f"it has the optimizer's state of {name_list(unknown)}, which this run does not train")
    is_adam = type(state.optimizer) is torch.optim.Adam and not any(
        group["amsgrad"] for group in state.optimizer.param_groups
    )
    for name in saved.optimizer:
        if is_adam:
            moments = dict.fromkeys(ADAM[1:], parameters[name].detach()) | {"step": torch.tensor(0.0)}
            expected |= {f"optimizer.{kind}.{name}": moments[kind] for kind in ADAM}
        else:  # what another optimizer keeps is known only after its first step
            expected |= {key: tensors[key] for key in tensors if _is_state_of(name, key)}
    generators = {"rng.cpu": torch.default_generator}
    if saved.device == "cuda" and state.device.type == "cuda":
        generators["rng.cuda"] = torch.cuda.default_generators[state.device.index or 0]
    generators |= {f"rng.loader.{index}": generator for index, generator in enumerate(state.generators)}
    # The random state of a GPU is of no use on another device.
    given = tensors.keys() - ({"rng.cuda"} if saved.device == "cuda" else set())
    others = {"rng.python": python_state(), "rng.numpy": numpy_state()}
    expected |= {name: value for name, value in others.items() if name in tensors}
    needed = (expected | generators).keys()
    missing, unknown = sorted(needed - tensors.keys()), sorted(given - needed)
    if missing or unknown:
        raise _wrong(
            path, f"tensors of the run: missing {name_list(missing) or 'none'}, unknown {name_list(unknown) or 'none'}"
        )
    for name, value in expected.items():
        _check_like(path, name, value, tensors[name])
    for key in () if is_adam else tensors:
        if key.startswith("optimizer.") and not bool(torch.isfinite(tensors[key]).all()):
            raise _wrong(path, f"the optimizer's state {key!r}: expected finite numbers")
    for name in saved.optimizer if is_adam else ():
        step, squares = tensors[f"optimizer.step.{name}"], tensors[f"optimizer.exp_avg_sq.{name}"]
        if not (bool(torch.isfinite(step)) and step >= 1) or bool((_real(squares) < 0).any()):
            raise _wrong(path, f"Adam's state of {name!r}: expected a step from 1 up and mean squares from 0 up")
    for name, generator in generators.items():
        _check_like(path, name, generator.get_state(), tensors[name])
        try:
            torch.Generator(generator.device).set_state(tensors[name])
        except (RuntimeError, TypeError) as error:
            raise _wrong(path, f"{name!r} is no state of a random generator of {generator.device} ({error})") from error
    try:
        set_python_state(tensors.get("rng.python", others["rng.python"]), random.Random())
        set_numpy_state(tensors.get("rng.numpy", others["rng.numpy"]), np.random.RandomState())
    except ValueError as error:
        raise _wrong(path, f"a state of Python's or NumPy's random generator is none ({error})") from error


def _is_state_of(name: str, key: str) -> bool:
    prefix, _, rest = key.partition(".")
    return prefix == "optimizer" and rest.partition(".")[2] == name


def _real(squares: Tensor) -> Tensor:
    # Of a complex parameter Adam keeps the squares of both parts.
    return torch.view_as_real(squares) if squares.is_complex() else squares


def _check_like(path: Path, name: str, expected: Tensor, got: Tensor) -> None:
    # Adam counts its steps in the default dtype at the first of them.
    steps = name.startswith("optimizer.step.") and got.dtype in (torch.float32, torch.float64)
    if form(got) != form(expected) or not (steps or got.dtype == expected.dtype):
        wanted, found = (f"{str(value.dtype).removeprefix('torch.')} of {form(value)}" for value in (expected, got))
        raise _wrong(path, f"{name!r}: expected {wanted}, got {found}")


def _wrong(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path}: it does not hold a run that this one can be: {problem}. Resume a run as it was started, "
        "or restore the file from a copy. Nothing was changed"
    )


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _floats(row: Any, count: int) -> bool:
    return isinstance(row, list) and len(row) == count and all(type(value) is float for value in row)

"""Runs the sampler in the environment of the other libraries, and keeps what it found of the function."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrostoch.bench.speed.driver import peer_python, python_environment
from pyrostoch.safefile import read_file, write_file

__all__ = ["Reference", "read_reference", "sample_reference", "write_reference"]

_WORKER = Path(__file__).with_name("worker.py")
# Characters of a failed worker's error output that are shown, the last ones.
_TAIL = 2000
# Draws of the function that are kept, evenly spaced over all chains.
_KEPT = 1000


@dataclass(frozen=True, eq=False)
class Reference:
    """Draws of a function from its posterior, and how well the chains agree.

    Args:
        functions: Draws, (n, test inputs).
        r_hat: Largest potential scale reduction of the function's values, from split chains.
        ess: Smallest effective sample size of them.
        steps: Mean number of gradients for a draw.
        divergences: Number of divergent transitions.
    """

    functions: Tensor
    r_hat: float
    ess: float
    steps: float
    divergences: float


def sample_reference(
    x: Tensor, y: Tensor, x_test: Tensor, *, noise: float, hidden: int, warmup: int, draws: int, chains: int, seed: int
) -> Reference:
    """Sample a network with one hidden layer of tanh by NUTS.

    Weights into the hidden layer are N(0, 1/features), those into the output N(0, 1/hidden), biases N(0, 1).

    Args:
        x: Training inputs, (n, features).
        y: Training targets, (n,).
        x_test: Inputs at which the function is kept.
        noise: Standard deviation of the noise.
        hidden: Width of the hidden layer.
        warmup: Draws of each chain that adapt the sampler.
        draws: Further draws of each chain.
        chains: Number of chains.
        seed: Their seed.

    Raises:
        FileNotFoundError: There is no environment with NumPyro.
        RuntimeError: The sampler failed; what it wrote is shown.
    """
    python = peer_python()
    if python is None:
        raise FileNotFoundError(
            "bench posteriors: a reference is sampled by NumPyro, in the environment that `make peers` makes in "
            ".venv-peers (or in the folder PYROSTOCH_PEERS)"
        )
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder) / "task.npz", Path(folder) / "result.npz"
        numbers = {"noise": noise, "hidden": hidden, "warmup": warmup, "draws": draws, "chains": chains, "seed": seed}
        settings: dict[str, Any] = {name: np.asarray(value) for name, value in numbers.items()}
        np.savez(task, x=x.numpy(), y=y.numpy(), x_test=x_test.numpy(), **settings)
        done = subprocess.run(
            [str(python), "-P", str(_WORKER), str(task), str(result)],
            env=python_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not result.is_file():
            raise RuntimeError(f"bench posteriors: NumPyro failed:\n{done.stderr[-_TAIL:]}")
        with np.load(result) as found:
            functions = torch.from_numpy(found["functions"]).flatten(0, 1)
            kept = torch.linspace(0, len(functions) - 1, min(_KEPT, len(functions))).round().long()
            numbers = {"r_hat": found["r_hat"].max(), "ess": found["ess"].min()}
            numbers |= {name: found[name] for name in ("steps", "divergences")}
            return Reference(functions[kept].float(), **{name: float(value) for name, value in numbers.items()})


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference to a file.

    Args:
        path: The file.
        reference: The reference.
    """
    numbers = {name: value for name, value in asdict(reference).items() if name != "functions"}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, {"functions": reference.functions.contiguous()}, numbers)


def read_reference(path: Path) -> Reference:
    """Read a reference from a file.

    Args:
        path: The file.
    """
    tensors, numbers = read_file(path)
    return Reference(tensors["functions"], **numbers)

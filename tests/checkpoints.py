"""What the tests of checkpoints share: a run with everything a checkpoint can hold, its bits, and rewritten files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.safefile import CheckpointError
from pyrostoch.safefile.file import _checksum
from pyrostoch.training.fit import fit
from pyrostoch.training.run import Run
from pyrostoch.training.state import module_state

EPOCHS = 9

# What a refusal may be: nothing else reaches the user, whatever a file holds.
REFUSED = CheckpointError


class Graph(nn.Module):
    """A network with a sparse buffer, batch normalization and dropout."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2)
        # torch warns once that sparse tensors are not checked, unless told whether to.
        self.register_buffer(
            "mixing", torch.sparse_coo_tensor([[0, 1], [1, 2]], [0.5, 2.0], (width, width), check_invariants=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sparse.mm(self.mixing, self.norm(self.first(x)).mT).mT
        return self.last(nn.functional.dropout(hidden.tanh(), 0.2, self.training))


def data(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, (x.sum(-1) > 0).long()


class Case:
    """Model, guide and data of a run without a seed, so that a change of the global random state is seen.

    Args:
        seed: Seed of the initial values.
    """

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = ps.BayesianModel(
                Graph(),
                prior={"first.*": ps.priors.EmpiricalBayes(0.5), "last.weight": ps.priors.Normal()},
                likelihood=ps.likelihoods.Categorical(),
                num_data=24,
            )
            self.guide = ps.guides.Additive(self.model)
        self.generator = torch.Generator().manual_seed(seed + 10)
        self.loader = DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True, generator=self.generator)

    def fit(self, path: Path | None, **options: Any) -> Any:
        settings: dict[str, Any] = {"epochs": EPOCHS, "lr": 0.02, "lr_alpha": 0.05, "patience": 8, "resume": True}
        settings |= {"validation": data(12, 1), "progress": False, "compile": False, "checkpoint": path}
        return fit(self.model, self.guide, self.loader, **settings | options)

    def bits(self) -> dict[str, bytes]:
        """The bits of model, guide, the global random state and the loader's."""
        states = {"rng.cpu": torch.get_rng_state(), "rng.loader.0": self.generator.get_state()}
        return bits_of(module_state(self.model, self.guide) | states)


def bits_of(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """The bits of tensors, with their dtypes and shapes: NaN equals NaN, and -0 is not 0."""
    found = {}
    for name, value in tensors.items():
        parts = [value]
        if value.layout == torch.sparse_coo:
            parts = [value._indices(), value._values()]
        elif value.layout != torch.strided:
            rows = value.layout in (torch.sparse_csr, torch.sparse_bsr)
            indices = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
            parts = [getattr(value, part)() for part in (*indices, "values")]
        head = repr((value.shape, value.dtype, value.layout, value.is_sparse and value.is_coalesced()))
        found[name] = head.encode() + b"".join(
            part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts
        )
    return found


class StoppedError(Exception):
    """Raised by callbacks to interrupt a run."""


def stop(row: dict[str, Any]) -> None:
    if row["epoch"] == 2:
        raise StoppedError


def interrupted(path: Path) -> bytes:
    """Write the checkpoint of a run that was stopped after two epochs, and return its bytes."""
    try:
        Case().fit(path, callback=stop)
    except StoppedError:
        return path.read_bytes()
    raise AssertionError("the run was not stopped")


class RestoredError(Exception):
    """Carries a run that has been restored from its checkpoint, before its first step."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.bits = run, bits_of(run.trainer.state.capture())


def only_restore(run: Run, *args: Any) -> Any:
    """Instead of `Run.finish`."""
    raise RestoredError(run)


def parts_of(file: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint as they are in the file, and its metadata."""
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    return load(file), header["__metadata__"]


def with_checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a well-formed checkpoint of these parts."""
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    metadata = {name: text for name, text in metadata.items() if name != "checksum"}
    return save(tensors, metadata | {"checksum": _checksum(tensors, metadata)})


def rewritten(file: bytes, change: Callable[[dict[str, Tensor], Any], Any]) -> bytes:
    """A well-formed checkpoint with other parts.

    Args:
        file: The bytes of a checkpoint.
        change: Changes tensors and plain data in place, or returns other plain data.
    """
    tensors, metadata = parts_of(file)
    content = json.loads(metadata["content"])
    other = change(tensors, content)
    return with_checksum(tensors, metadata | {"content": json.dumps(content if other is None else other)})

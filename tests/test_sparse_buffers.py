"""Sparse buffers are saved, loaded, resumed and rolled back exactly, in every layout; what cannot be is named first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import bits_of, rewritten
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.safefile import CheckpointError, read_file, write_file
from pyrostoch.training.fit import fit
from pyrostoch.training.optimizer import make_optimizer
from pyrostoch.training.state import TrainingState, module_state, parameter_names
from pyrostoch.training.trainer import NonFiniteLossError

pytestmark = [
    # torch announces once a process that CSR is new, and that indices are not checked unless asked for.
    pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta state:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]
COUNT = 6


def matrix(layout: str, seed: int = 0, fill: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(COUNT, COUNT, generator=generator) * (torch.rand(COUNT, COUNT, generator=generator) < fill)
    if layout == "coo, uncoalesced":
        where = torch.tensor([[5, 0, 0, 2], [1, 1, 1, 2]])
        return torch.sparse_coo_tensor(where, torch.rand(4, generator=generator), (COUNT, COUNT))
    if layout == "coo, hybrid":
        return dense.to_sparse(1)
    kind = getattr(torch, f"sparse_{layout}")
    return dense.to_sparse(layout=kind, **({"blocksize": (2, 3)} if layout.startswith("bs") else {}))


def another(layout: str) -> Tensor:
    """A matrix with other values at other places; in layouts that allow it, with another number of them."""
    if layout.startswith("coo"):
        return matrix(layout, seed=1, fill=0.9)
    kind = getattr(torch, f"sparse_{layout}")
    return (
        matrix(layout)
        .to_dense()
        .mT.flip(0)
        .mul(2)
        .to_sparse(layout=kind, **({"blocksize": (2, 3)} if layout.startswith("bs") else {}))
    )


LAYOUTS = ["coo", "coo, uncoalesced", "coo, hybrid", "csr", "csc", "bsr", "bsc"]


class Graph(nn.Module):
    """A network of one graph, whose adjacency matrix is a buffer."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("adjacency", adjacency)
        self.dense = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.linear(x)
        return self.adjacency.to_dense() @ mixed + self.dense


def build(adjacency: Tensor, **options: Any) -> tuple[ps.BayesianModel, Any]:
    torch.manual_seed(0)
    model = ps.BayesianModel(
        Graph(adjacency), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=COUNT, **options
    )
    return model, ps.guides.Additive(model)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(COUNT, 4, generator=generator), torch.arange(COUNT) % 3


def train(built: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": COUNT, "shuffle": False, "seed": 0, "progress": False}
    return fit(*built, data(), **settings | {"compile": False} | options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_tensor_is_stored_by_its_parts(layout: str, tmp_path: Path) -> None:
    given = {"a": matrix(layout), "b": torch.ones(2), "empty": matrix(layout, fill=0.0)}
    write_file(tmp_path / "f", given, {})
    found, _ = read_file(tmp_path / "f")
    assert bits_of(found) == bits_of(given)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_save_and_load_restore_a_sparse_buffer_in_place(layout: str, tmp_path: Path) -> None:
    model, guide = build(matrix(layout))
    ps.save(tmp_path / "net", model, guide)
    other, other_guide = build(another(layout))
    held = other.net.adjacency
    ps.load(tmp_path / "net", other, other_guide)
    assert other.net.adjacency is held
    assert bits_of(module_state(other, other_guide)) == bits_of(module_state(model, guide))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_restores_a_sparse_buffer(layout: str, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise StoppedError

    whole = build(matrix(layout))
    history = train(whole).history["loss"]
    with pytest.raises(StoppedError):
        train(build(matrix(layout)), checkpoint=tmp_path / "run", callback=stop)
    resumed = build(another(layout))
    result = train(resumed, checkpoint=tmp_path / "run", resume=True)
    assert result.history["loss"] == history
    assert bits_of(module_state(*resumed)) == bits_of(module_state(*whole))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_is_rolled_back_with_its_sparse_buffers(layout: str) -> None:
    model, guide = build(matrix(layout))
    names = parameter_names(model, guide)
    settings = ps.training.settings.Settings(epochs=1)
    state = TrainingState(model, guide, make_optimizer(guide, names, settings), names, torch.device("cpu"))
    before, captured = bits_of(module_state(model, guide)), state.capture()
    held = model.net.adjacency
    held.copy_(another(layout))
    assert bits_of(module_state(model, guide)) != before
    state.restore(captured)
    assert bits_of(module_state(model, guide)) == before and model.net.adjacency is held
    # The copy is one: restored again, it is still the same.
    held.values().mul_(2.0) if held.layout != torch.sparse_coo else held._values().mul_(2.0)
    state.restore(captured)
    assert bits_of(module_state(model, guide)) == before


def test_a_failed_epoch_restores_what_it_changed_of_a_sparse_buffer() -> None:
    def penalty(net: Any) -> Tensor:
        net.adjacency._values().add_(1.0)
        return net.dense + (torch.inf if net.adjacency._values().max() > 6.0 else 0.0)

    model, guide = build(matrix("coo"), penalty=penalty)
    after: list[dict[str, bytes]] = []
    with pytest.raises(NonFiniteLossError):
        train((model, guide), epochs=9, callback=lambda row: after.append(bits_of(module_state(model, guide))))
    assert after and bits_of(module_state(model, guide)) == after[-1]


def test_a_sparse_buffer_is_no_dense_one(tmp_path: Path) -> None:
    model, guide = build(matrix("csr"))
    ps.save(tmp_path / "net", model, guide)
    for other in (matrix("coo"), matrix("csc"), matrix("csr", fill=0.9), matrix("csr").to_dense()):
        built = build(other)
        before = bits_of(module_state(*built))
        with pytest.raises(CheckpointError, match="'model.net.adjacency': expected the shape .6, 6., s.* got shape"):
            ps.load(tmp_path / "net", *built)
        assert bits_of(module_state(*built)) == before


@pytest.mark.parametrize("part", ["crow_indices", "col_indices", "values"])
def test_wrong_parts_are_refused(part: str, tmp_path: Path) -> None:
    model, guide = build(matrix("csr"))
    ps.save(tmp_path / "net", model, guide)

    def change(tensors: dict[str, Tensor], content: Any) -> None:
        name = f"model.net.adjacency:{part}"
        tensors[name] = tensors[name] + 10 if part != "values" else tensors[name][1:]

    (tmp_path / "net").write_bytes(rewritten((tmp_path / "net").read_bytes(), change))
    with pytest.raises(CheckpointError, match="the file is whole, but was not written by pyrostoch as it is"):
        ps.load(tmp_path / "net", model, guide)


ODD: dict[str, tuple[Any, str]] = {
    "expanded": (lambda: torch.zeros(1).expand(3), "one that is expanded"),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex128), "cannot hold the dtype torch.complex128"),
    "mkldnn": (lambda: torch.zeros(2, 2).to_mkldnn(), "one that is of layout _mkldnn"),
    "meta": (lambda: torch.zeros(2, device="meta"), "without data"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_restored_is_named_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    make, message = ODD[kind]
    net = nn.Linear(4, 3)
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=COUNT)
    guide = ps.guides.Additive(model)
    net.register_buffer("odd", make())
    with pytest.raises(TypeError, match=f"model.net.odd: .*{message}"):
        ps.save(tmp_path / "new" / "net", model, guide)
    assert os.listdir(tmp_path) == []


def test_a_dtype_that_no_file_holds_is_named_before_the_first_epoch(tmp_path: Path) -> None:
    model, guide = build(matrix("coo"))
    model.net.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    before = bits_of(module_state(model, guide))
    with pytest.raises(TypeError, match="model.net.odd: a checkpoint cannot hold the dtype torch.complex128"):
        train((model, guide), checkpoint=tmp_path / "new" / "run")
    assert os.listdir(tmp_path) == [] and bits_of(module_state(model, guide)) == before  # no step was made
    assert train((model, guide)).epochs == 3  # without a checkpoint it need not be stored

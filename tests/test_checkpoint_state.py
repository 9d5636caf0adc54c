"""What users' networks and data keep besides parameters: buffers of changing size, extra state, other generators."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import pyrostoch as ps
from pyrostoch.effects.trees import map_tensors, tensors_in
from pyrostoch.safefile import CheckpointError
from pyrostoch.training.trainer import NonFiniteLossError

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].clone()


def build(net: nn.Module, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    likelihood = options.pop("likelihood", ps.likelihoods.Gaussian(0.5))
    model = ps.BayesianModel(net, prior={"*weight*": ps.priors.Normal()}, likelihood=likelihood, num_data=20, **options)
    return model, ps.guides.Additive(model)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def fit(model: Any, guide: Any, data: Any = (X, Y), **options: Any) -> Any:
    return ps.fit(model, guide, data, **{"epochs": 2, "batch_size": 10, "seed": 0, "progress": False, **options})


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Drawing(Dataset[Any]):
    """Items with noise from a generator that is not torch's."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return X[index] + self.draw(), Y[index]


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: random.gauss(0, 1), np.random.randn])
def test_a_resumed_run_draws_what_the_uninterrupted_one_drew(draw: Any, tmp_path: Path) -> None:
    data, schedule = Drawing(draw), {"schedule": "constant"}
    random.seed(3)
    np.random.seed(3)
    whole = build(linear())
    fit(*whole, data, epochs=4, **schedule)
    random.seed(3)
    np.random.seed(3)
    path = tmp_path / "net"
    fit(*build(linear()), data, epochs=2, checkpoint=path, **schedule)
    random.seed(99)
    np.random.seed(99)
    resumed = build(linear())
    fit(*resumed, data, epochs=4, checkpoint=path, resume=True, **schedule)
    assert same(whole[1], resumed[1])


class ExtraState(nn.Linear):
    def get_extra_state(self) -> Tensor:
        return torch.tensor(4.0)

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_state_that_cannot_be_written_into_is_refused_before_the_run(tmp_path: Path) -> None:
    hooked = linear()
    hooked._register_state_dict_hook(lambda module, state, *_: state.update({k: v.clone() for k, v in state.items()}))
    for net in (ExtraState(3, 1), hooked):
        model, guide = build(net)
        with pytest.raises(TypeError, match="is made anew by state_dict"):
            ps.save(tmp_path / "net", model, guide)
        with pytest.raises(TypeError, match="is made anew by state_dict"):
            fit(model, guide)


class Queue(nn.Module):
    """Keeps some of its inputs, more and more of them in training."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.calls = linear(), 0
        self.register_buffer("queue", torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.queue = torch.cat([self.queue, x[:1].detach()])
        return self.last(x)


def test_buffers_that_grow_are_put_back_and_no_unreadable_checkpoint_is_written(tmp_path: Path) -> None:
    model, guide = build(Queue())
    with pytest.raises(TypeError, match="'model.net.queue' has been made, or has changed its size"):
        fit(model, guide, checkpoint=tmp_path / "net", compile=False)
    assert os.listdir(tmp_path) == []
    model, guide = build(Queue())
    result = fit(model, guide, epochs=50, lr=0.5, validation=(X, Y + 3), patience=1, compile=False)
    assert result.best_epoch is not None and len(model.net.queue) == 2 * result.best_epoch
    model, guide = build(Queue())
    with pytest.raises(NonFiniteLossError):
        fit(model, guide, lr=1e30, epochs=5, compile=False)


def test_a_buffer_made_in_the_first_pass_is_hinted_at(tmp_path: Path) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = linear()
            self.register_buffer("table", None)

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(3)
            return self.last(x * self.table)

    model, guide = build(Table())
    fit(model, guide, checkpoint=tmp_path / "net")
    model, guide = build(Table())
    with pytest.raises(CheckpointError, match=r"unknown 'model.net.table' \(if the network makes it in its first pass"):
        ps.load(tmp_path / "net", model, guide)
    model.net(X)
    ps.load(tmp_path / "net", model, guide)


def test_a_run_with_complex_parameters_is_resumed(tmp_path: Path) -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = linear()
            self.filter = nn.Parameter(torch.ones(2, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=3))

    options: dict[str, Any] = {"schedule": "constant", "compile": False}
    whole = build(Fourier())
    fit(*whole, epochs=4, **options)
    fit(*build(Fourier()), checkpoint=tmp_path / "net", **options)
    resumed = build(Fourier())
    fit(*resumed, epochs=4, checkpoint=tmp_path / "net", resume=True, **options)
    assert same(whole[0], resumed[0])


def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(*build(linear()), checkpoint="net", callback=lambda row: os.chdir(tmp_path / "other"))
    assert sorted(os.listdir(tmp_path)) == ["net", "other"] and os.listdir(tmp_path / "other") == []


def test_what_is_trained_is_compared_and_late_parameters_are_named(tmp_path: Path) -> None:
    net = linear()
    net.bias.requires_grad_(False)
    model, guide = build(net)
    with pytest.warns(UserWarning, match="'model.net.bias' got requires_grad=True during the run"):
        fit(model, guide, callback=lambda row: net.bias.requires_grad_(True))
    net.bias.requires_grad_(False)
    fit(model, guide, checkpoint=tmp_path / "net", schedule="constant")
    model, guide = build(linear())
    with pytest.raises(CheckpointError, match="trained="):
        fit(model, guide, checkpoint=tmp_path / "net", resume=True, schedule="constant", epochs=3)


def test_the_validation_loss_counts_the_observed_examples() -> None:
    import pyro.distributions as dist

    known = torch.arange(20) < 5

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = linear()

        def forward(self, x: Tensor, known: Tensor) -> Any:
            return self.last(x), known[:, None]

    data = ((X, known), Y)
    model, guide = build(Masked(), likelihood=lambda out: dist.Normal(out[0], 0.5).mask(out[1]))
    result = fit(model, guide, data, epochs=1, validation=data)
    found = ps.compare(model, guide, data, modes=("mc:8",), seed=0).rows[0].nll
    assert abs(result.history["validation"][0] - found) < 0.5 * abs(found)


def test_a_value_too_large_for_the_model_is_refused(tmp_path: Path) -> None:
    model, guide = build(linear())
    with torch.no_grad():
        model.net.bias.fill_(1e6)
    ps.save(tmp_path / "net", model, guide)
    with pytest.raises(CheckpointError, match="a value of 1e[+]06 is too large for torch.float16"):
        ps.load(tmp_path / "net", model.half(), guide.half())


def test_keys_that_are_no_strings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="save: table is of type dict"):
        ps.save(tmp_path / "net", *build(linear()), table={1: 2, "1": 3})
    ps.save(tmp_path / "net", *build(linear()), table={"a": (1, 2)})


def test_settings_of_numpy_and_empty_loaders() -> None:
    fit(*build(linear()), shuffle=np.bool_(True), checkpoint=None)
    with pytest.raises(TypeError, match="shuffle: expected True or False, got 1"):
        fit(*build(linear()), shuffle=1)

    class Empty(IterableDataset[Any]):
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match="expected batches from the DataLoader, got none"):
        fit(*build(linear()), DataLoader(Empty(), batch_size=None))
    with pytest.raises(ValueError, match="expected batches from the DataLoader, got none"):
        fit(*build(linear()), validation=DataLoader(Empty(), batch_size=None))


def test_containers_of_other_types_are_mapped() -> None:
    from collections import OrderedDict, defaultdict

    class Pair(list[Any]):
        note = "kept"

    ones = torch.ones(2)
    counted: Any = defaultdict(list, {"a": ones})
    for tree in (OrderedDict(a=ones), counted, Pair([ones, (ones,)]), SimpleNamespace(a=ones, b=3)):
        mapped = map_tensors(lambda tensor: tensor + 1, tree)
        assert type(mapped) is type(tree) and all((tensor == 2).all() for tensor in tensors_in(mapped))
        assert len(list(tensors_in(mapped))) == len(list(tensors_in(tree))) > 0
        assert all((tensor == 1).all() for tensor in tensors_in(tree))

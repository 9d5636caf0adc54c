"""fit's data: the same batches from every source, and bad input refused before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SubsetRandomSampler, TensorDataset

import pyrostoch as ps
from pyrostoch.infer.batches import epoch_order
from pyrostoch.infer.data_sets import as_batches, move_to_device
from pyrostoch.prediction.predict import predict
from pyrostoch.training.fit import fit

COUNT = 23
X = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(COUNT) % 2


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(Y[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class SameOrder(Sampler[int]):
    """The order in which fit visits tensors, by seed and epoch."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.seed, self.epoch, COUNT).tolist())


def build(**model: Any) -> tuple[ps.BayesianModel, ps.guides.Additive]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    options = {"prior": ps.priors.Normal(), "likelihood": ps.likelihoods.Categorical(), "num_data": COUNT, **model}
    made = ps.BayesianModel(net, **options)
    return made, ps.guides.Additive(made)


def state(*modules: nn.Module) -> list[Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def train(data: Any, **options: Any) -> list[Tensor]:
    model, guide = build()
    fit(model, guide, data, **{"epochs": 2, "batch_size": 5, "seed": 1, "progress": False, **options})
    return state(model, guide)


@pytest.mark.parametrize("source", ["dataset", "tensor dataset", "list", "loader"])
def test_every_source_gives_the_same_run(source: str) -> None:
    options: dict[str, Any] = {}
    data: Any = {"dataset": Items(), "tensor dataset": TensorDataset(X, Y), "list": [X, Y]}.get(source)
    if source == "loader":
        order = SameOrder(1)
        data = DataLoader(Items(), batch_size=5, sampler=order, generator=torch.Generator())
        order.epoch = 1

        def turn(row: dict[str, Any]) -> None:
            order.epoch = row["epoch"] + 1

        options = {"callback": turn}
    for mine, theirs in zip(train(data, **options), train((X, Y)), strict=True):
        assert torch.equal(mine, theirs)


def test_a_loader_keeps_its_own_batches() -> None:
    sizes: list[int] = []
    model, guide = build(num_data=12)
    model.net.register_forward_pre_hook(lambda net, args: sizes.append(len(args[0])) if net.training else None)
    loader = DataLoader(Items(), batch_size=4, sampler=SubsetRandomSampler(range(12)))
    fit(model, guide, loader, epochs=1, progress=False, estimator="shared")
    assert [size for size in sizes if size == 4] == sizes and len(sizes) >= 3


def test_the_order_is_a_permutation_that_depends_on_epoch_and_seed() -> None:
    orders = [epoch_order(seed, epoch, 40) for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    seen = [int(i) for _, y in as_batches((X, torch.arange(COUNT)), 5).epoch(0, 1) for i in y]
    assert seen == epoch_order(0, 1, COUNT).tolist()


def test_several_inputs_reach_the_network_as_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(1, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.left(a) + self.right(b)

    finals = []
    for data in ((((X, X[:, :1]), Y)), TensorDataset(X, X[:, :1], Y)):
        torch.manual_seed(0)
        model = ps.BayesianModel(
            Two(), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=COUNT
        )
        guide = ps.guides.Additive(model)
        fit(model, guide, data, epochs=1, batch_size=5, seed=0, progress=False)
        finals.append(state(guide))
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


def with_nan() -> Tensor:
    x = X.clone()
    x[7, 1] = float("nan")
    return x


class SpoiltItems(Items):
    """Valid in its first batch only."""

    def __init__(self, label: int = 0, value: float = 0.0) -> None:
        self.label, self.value = label, value

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (X[index], int(Y[index])) if index != 20 else (X[index] + self.value, self.label)


BAD_DATA = {
    "empty": ((X[:0], Y[:0]), ValueError, "data: expected at least one example"),
    "more inputs": ((X, Y[:-1]), ValueError, "got 23 and 22"),
    "num_data": ((X[:20], Y[:20]), ValueError, "num_data=23 examples.*got 20"),
    "NaN": ((with_nan(), Y), ValueError, "data: inputs x: expected finite values, got 1 NaN.*row 7"),
    "label": ((X, Y + 1), ValueError, "data: .*labels from 0 to 1.*among them 2"),
    "late label": (SpoiltItems(label=2), ValueError, "data: .*labels from 0 to 1.*among them 2"),
    "late NaN": (SpoiltItems(value=float("inf")), ValueError, "data: inputs x: expected finite values"),
    "one-hot": ((X, torch.eye(2)[Y]), TypeError, "integer class labels"),
    "target shape": ((X, Y[:, None]), ValueError, r"targets of shape \(5,\).*got \(5, 1\)"),
    "tensor alone": (X, TypeError, r"data: expected \(x, y\) tensors"),
    "triple": ((X, X, Y), TypeError, "got tuple of 3"),
    "no target": ((X, "y"), TypeError, "targets y as a tensor.*got str"),
    "stream": (Stream(), TypeError, "the loader has no length.*steps_per_epoch"),
    "loader of a stream": (DataLoader(Stream(), batch_size=5), TypeError, "the loader has no length.*steps_per_epoch"),
    "loader without batches": (DataLoader(Items(), batch_size=50, drop_last=True), ValueError, "no batch"),
    "items without target": (TensorDataset(X), TypeError, "expected items"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused(case: str) -> None:
    data, error, message = BAD_DATA[case]
    model, guide = build()
    before = state(model, guide)
    noise = torch.get_rng_state()
    with pytest.raises(error, match=message):
        fit(model, guide, data, epochs=1, batch_size=5, seed=0, progress=False)
    assert torch.equal(noise, torch.get_rng_state())
    if not case.startswith("late"):
        assert all(torch.equal(a, b) for a, b in zip(before, state(model, guide), strict=True))


def test_held_out_data_are_checked_too() -> None:
    with pytest.raises(ValueError, match="validation: .*labels from 0 to 1"):
        train((X, Y), validation=(X, Y + 1))
    with pytest.raises(ValueError, match="validation: expected at least one"):
        train((X, Y), validation=(X[:0], Y[:0]))


def test_a_last_batch_of_one_is_refused_where_a_batchnorm_cannot_take_it() -> None:
    with pytest.raises(ValueError, match="batch_size=11 leaves a last batch of one.*BatchNorm1d '1'"):
        train((X, Y), batch_size=11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number from 1 up, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number"),
        ({"lr": -1.0}, "lr: expected a positive"),
        ({"lr_alpha": 0.0}, "lr_alpha: expected a positive"),
        ({"clip": 0.0}, "clip: expected a positive"),
        ({"kl_warmup": -1.0}, "kl_warmup: expected a number of epochs"),
        ({"kl_warmup": (3.0, 1.0)}, "or a pair of them in rising order, got \\(3.0, 1.0\\)"),
        ({"num_particles": 0}, "num_particles: expected"),
        ({"estimator": "locl"}, "estimator: .*did you mean 'local'"),
        ({"schedule": "step"}, "schedule: expected one of 'linear', 'cosine', 'constant'"),
        ({"precision": "fp8"}, "precision: expected one of"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"patience": 3}, "patience=3 needs held-out data"),
        ({"patience": 0, "validation": (X, Y)}, "patience: expected"),
        ({"resume": True}, "resume=True needs the path"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
        ({"device": "meta:x"}, "device 'meta:x' cannot be used"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train((X, Y), **options)


def test_model_and_guide_of_other_kinds_are_refused() -> None:
    model, guide = build()
    with pytest.raises(TypeError, match=r"fit: expected a BayesianModel, got Linear.*SVI"):
        fit(nn.Linear(2, 2), guide, (X, Y), epochs=1)  # type: ignore[arg-type]

    def by_hand(x: Any, y: Any = None) -> None:
        pyro.sample("0.weight", pyro.distributions.Normal(torch.zeros(5, 3), 1.0).to_event(2))

    with pytest.raises(TypeError, match=r"fit: expected a guide that is a torch.nn.Module.*got function"):
        fit(model, by_hand, (X, Y), epochs=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got NoneType.*Additive\(model\) is the empty guide"):
        fit(model, None, (X, Y), epochs=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"guide: expected a Pyro guide, got NoneType.*the empty guide"):
        predict(model, None, X)
    with pytest.raises(ValueError, match="one device, got the model on cpu and the guide on meta"):
        fit(model, guide.to("meta"), (X, Y), epochs=1)


def test_nothing_to_train_is_refused() -> None:
    model, guide = build()
    model.requires_grad_(False)
    guide.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(model, guide, (X, Y), epochs=1, batch_size=5)


@pytest.mark.parametrize(("free", "moved"), [(10**6, True), (79, False)])
def test_data_that_fit_are_kept_on_the_device(monkeypatch, free, moved):
    monkeypatch.setattr("pyrostoch.infer.data_sets._free_memory", lambda device: free)
    x, y = (torch.zeros(5, 2), torch.zeros(5, 1)), torch.arange(5, dtype=torch.int32)
    batches = as_batches((x, y), 2)
    found = move_to_device(batches, torch.device("meta"))
    assert (found is not batches) == moved and (len(found), found.num_data) == (3, 5)
    (first, second), targets = next(iter(found.epoch(None, 0)))
    assert {part.device.type for part in (first, second, targets)} == {"meta" if moved else "cpu"}
    assert (first.shape, second.shape, targets.shape) == ((2, 2), (2, 1), (2,))


def test_only_tensors_are_moved(monkeypatch):
    monkeypatch.setattr("pyrostoch.infer.data_sets._free_memory", lambda device: 10**9)
    batches = as_batches(Items(), 2)
    assert move_to_device(batches, torch.device("meta")) is batches

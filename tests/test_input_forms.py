"""Inputs as users have them: dictionaries, nested tuples, dataclasses, options, packed and sparse tensors, streams."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyrostoch as ps
from pyrostoch._structure import flat_inputs, positional_and_keyword, with_labels

N = 40
QUIET: dict[str, Any] = {"progress": False, "seed": 0, "lr": 0.01, "compile": False}
A, B = torch.randn(N, 3), torch.randn(N, 2)
Y = torch.arange(N) % 3


@dataclasses.dataclass
class Pair:
    one: Tensor
    two: Tensor
    scale: float = 1.0


class Sum(nn.Module):
    """Takes the same two tensors in many forms."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(2, 3)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        parts = [*args, *kwargs.values()]
        (one, two) = (part for part in self._tensors(parts))
        out: Tensor = self.one(one) + self.two(two)
        return out

    def _tensors(self, tree: Any) -> Iterator[Tensor]:
        if isinstance(tree, Tensor):
            yield tree
        elif isinstance(tree, Pair):
            yield from (tree.one, tree.two)
        elif isinstance(tree, dict):
            yield from self._tensors(list(tree.values()))
        elif isinstance(tree, (tuple, list)):
            for part in tree:
                yield from self._tensors(part)


def build(net: nn.Module | None = None, **options: Any) -> tuple[ps.BayesianModel, ps.guides.Additive]:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"likelihood": ps.likelihoods.Categorical(), "num_data": N, **options}
    model = ps.BayesianModel(net or Sum(), prior=ps.priors.Normal(), **settings)
    return model, ps.guides.Additive(model, init_scale=0.1)


FORMS: dict[str, Any] = {
    "tuple": (A, B),
    "list": [A, B],
    "dictionary": {"one": A, "two": B},
    "nested tuple": ((A, (B,)),),
    "nested dictionary": {"one": A, "rest": {"two": B, "mask": None}},
    "dictionary in a tuple": (A, {"two": B}),
    "dataclass": Pair(A, B),
    "dataclass in a dictionary": {"pair": Pair(A, B, 2.0)},
    "options": {"one": A, "flag": True, "name": "sum", "two": B, "nothing": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_results(form: str) -> None:
    expected: list[Any] = []
    found: list[Any] = []
    for x, results in ((FORMS["tuple"], expected), (FORMS[form], found)):
        model, guide = build()
        results.append(ps.fit(model, guide, (x, Y), epochs=2, batch_size=16, **QUIET).history["elbo"])
        results.append(ps.predict(model, guide, x, mode="mc:3", seed=1, batch_size=7).probs.tolist())
        scores = ps.compare(model, guide, (x, Y), modes=("mean", "mc:4", "moments"), seed=2, batch_size=9)
        results.append([(row.nll, row.accuracy) for row in scores.rows])
        torch.manual_seed(3)
        results.append(ps.decompose(model, guide, (x, Y), num_samples=2).elbo)
        results.append(ps.to_arviz(model, guide, (x, Y), draws=2, seed=3).posterior["one.weight"].values.tolist())
        results.append(model.examples_meet(x))
        results.append(ps.predict(model, guide, x, mode="mean").treatments)
    assert found == expected


def test_a_form_is_rebuilt_as_it_was() -> None:
    for name, x in FORMS.items():
        flat = flat_inputs(x)
        args, kwargs = positional_and_keyword(flat if isinstance(flat, tuple) else (flat,), {})
        if name in ("tuple", "list"):
            assert args == tuple(x) and not kwargs
        elif isinstance(x, dict):
            assert not args and kwargs == x
        elif isinstance(x, tuple):
            assert args == x and not kwargs
        else:
            assert args == (x,) and not kwargs
        labels = with_labels(x, Y)
        args, kwargs = positional_and_keyword(labels, {})
        assert args[-1].labels is Y


def test_batches_of_a_declared_axis_and_inputs_of_all_examples() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor, mixing: Tensor, time: Tensor) -> Tensor:
            out: Tensor = self.layer(x @ mixing) + time[0, :, None]
            return out

    x = {"x": A, "mixing": torch.randn(3, 3), "time": torch.randn(2, N)}
    model, guide = build(Mixed(), in_dims={"mixing": None, "time": 1})
    ps.fit(model, guide, (x, Y), epochs=1, batch_size=16, shuffle=False, **QUIET)
    whole = ps.predict(model, guide, x, mode="mean").probs
    for row in (0, 17):
        part = {"x": A[row : row + 1], "mixing": x["mixing"], "time": x["time"][:, row : row + 1]}
        assert torch.allclose(ps.predict(model, guide, part, mode="mean").probs[0], whole[row])
    with pytest.raises(
        ValueError, match=r"in_dims: x has no 'mixin', but 'x', 'mixing', 'time'; did you mean 'mixing'"
    ):
        other, own = build(Mixed(), in_dims={"mixin": None})
        ps.fit(other, own, (x, Y), epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"40 in x\['x'\], 3 in x\['mixing'\], 2 in x\['time'\]"):
        ps.fit(*build(Mixed()), (x, Y), epochs=1, **QUIET)
    with pytest.raises(TypeError, match=r"inputs\['mixing'\]: .* without axes; if .*in_dims=\{'mixing': None\}"):
        ps.fit(*build(Mixed()), ({**x, "mixing": torch.tensor(1.0)}, Y), epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"x\['x'\]: expected finite values"):
        ps.fit(model, guide, ({**x, "x": A * torch.nan}, Y), epochs=1, **QUIET)


class Rows(Dataset[Any]):
    """Items as HuggingFace's data sets have them."""

    def __init__(self, count: int = N) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"one": A[index], "two": B[index], "labels": Y[index]}


class OwnRows:
    """The same without torch's base class."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return Rows()[index]


WHOLE = {"one": A, "two": B, "labels": Y}


@pytest.mark.parametrize("kind", ["tensors", "data set", "own data set", "loader"])
def test_dictionaries_that_hold_the_targets(kind: str) -> None:
    data: Any = {
        "tensors": WHOLE,
        "data set": Rows(),
        "own data set": OwnRows(),
        "loader": DataLoader(Rows(), batch_size=16),
    }[kind]
    model, guide = build(target="labels")
    reference, its_guide = build()
    pairs: Any = DataLoader(TensorDataset(A, B, Y), batch_size=16) if kind == "loader" else ((A, B), Y)
    options = {"epochs": 2, "batch_size": 16, "shuffle": False, **QUIET}
    found, expected = ps.fit(model, guide, data, **options), ps.fit(reference, its_guide, pairs, **options)
    assert found.history["elbo"] == expected.history["elbo"]
    one, other = (ps.compare(*run, seed=0).rows[0] for run in ((model, guide, data), (reference, its_guide, pairs)))
    assert one.nll == pytest.approx(other.nll, abs=1e-6)
    assert ps.decompose(model, guide, data, num_samples=1).num_data == N
    assert ps.to_arviz(model, guide, data, draws=2).observed_data["obs"].shape == (N,)


def test_dictionaries_that_do_not_fit_are_refused() -> None:
    model, guide = build()
    with pytest.raises(TypeError, match=r"dictionaries with 'one', 'two', 'labels'.*BayesianModel\(\.\.\., target="):
        ps.fit(model, guide, Rows(), epochs=1, **QUIET)
    model, guide = build(target="label")
    with pytest.raises(ValueError, match="expected the targets under 'label'.* did you mean 'labels'"):
        ps.fit(model, guide, WHOLE, epochs=1, **QUIET)
    model, guide = build(target="labels")
    with pytest.raises(ValueError, match="got 40 and 39"):
        ps.fit(model, guide, {**WHOLE, "labels": Y[:-1]}, epochs=1, **QUIET)

    class Lists(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"one": A[index].tolist(), "two": B[index], "labels": Y[index]}

    with pytest.raises(TypeError, match="got lists under 'one'; convert them .*with_format"):
        ps.fit(model, guide, Lists(), epochs=1, **QUIET)

    class Keywords(Sum):
        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            return super().forward(one, two)

    model, guide = build(Keywords())
    with pytest.raises(TypeError, match="unexpected keyword argument 'three'"):
        ps.predict(model, guide, {"one": A, "two": B, "three": A})


def test_packed_sequences_are_handed_through() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: PackedSequence) -> Tensor:
            out: Tensor = self.head(self.lstm(x)[1][0][-1])
            return out

    lengths = torch.randint(1, 6, (N,))
    packed = pack_padded_sequence(torch.randn(N, 5, 3), lengths, batch_first=True, enforce_sorted=False)
    model, guide = build(Last())
    ps.fit(model, guide, DataLoader([(packed, Y)], batch_size=None), epochs=1, **QUIET)
    assert ps.predict(model, guide, packed, mode="mc:2").probs.shape == (N, 3)


def test_sparse_inputs_are_cut_by_rows() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(x, self.weight) if x.is_sparse else x @ self.weight

    dense = A * (A > 0)
    losses = []
    for x in (dense, dense.to_sparse()):
        torch.manual_seed(0)
        model, guide = build(Bag())
        losses.append(
            ps.fit(model, guide, (x, Y), epochs=2, batch_size=16, estimator="shared", **QUIET).history["elbo"]
        )
        assert ps.predict(model, guide, x, mode="mean", batch_size=7).probs.shape == (N, 3)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class Counted(IterableDataset[Any]):
    """A stream that tells how often it was begun, and how many items it gave."""

    def __init__(self, items: int | None, length: int | None = None) -> None:
        self.items, self.begun, self.given = items, 0, 0
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        number = 0
        while self.items is None or number < self.items:
            yield A[number % N], B[number % N], Y[number % N]
            self.given += 1
            number += 1


class Sized(Counted):
    def __len__(self) -> int:
        return N


def test_an_iterable_data_set_with_a_length_needs_no_more() -> None:
    model, guide = build()
    result = ps.fit(model, guide, DataLoader(Sized(N), batch_size=10), epochs=2, **QUIET)
    assert result.epochs == 2
    with pytest.raises(ValueError, match="got 40"):
        ps.fit(*build(num_data=39), DataLoader(Sized(N), batch_size=10), epochs=1, **QUIET)


def test_a_stream_goes_on_in_the_next_epoch() -> None:
    stream = Counted(None)
    model, guide = build(num_data=1000)
    ps.fit(model, guide, DataLoader(stream, batch_size=8), epochs=3, steps_per_epoch=5, **QUIET)
    assert stream.begun == 1 and stream.given <= 8 * 15 + 1  # the batch that was looked at first is not lost
    ends = Counted(20)
    ps.fit(*build(num_data=1000), ends, epochs=2, batch_size=8, steps_per_epoch=6, **QUIET)
    assert ends.begun == 4  # three batches each time
    reference, its_guide = build(num_data=1000)
    order = (torch.arange(8 * 15) % N).split(8)
    batches: Any = DataLoader([((A[rows], B[rows]), Y[rows]) for rows in order[:5]], batch_size=None)  # type: ignore[arg-type]
    model, guide = build(num_data=1000)
    found = ps.fit(model, guide, DataLoader(Counted(None), batch_size=8), epochs=1, steps_per_epoch=5, **QUIET)
    expected = ps.fit(reference, its_guide, batches, epochs=1, steps_per_epoch=5, **QUIET)
    assert found.history["elbo"] == expected.history["elbo"]


def test_streams_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="the loader has no length.*steps_per_epoch"):
        ps.fit(*build(), Counted(None), epochs=1, **QUIET)
    with pytest.raises(ValueError, match="the stream has ended, and gives nothing when it is begun anew"):
        ps.fit(*build(), Counted(0), epochs=1, steps_per_epoch=2, **QUIET)
    with pytest.raises(ValueError, match="steps_per_epoch=2 is for a stream"):
        ps.fit(*build(), ((A, B), Y), epochs=1, steps_per_epoch=2, **QUIET)


def test_a_stream_that_ends_is_scored_whole() -> None:
    model, guide = build()
    one = ps.compare(model, guide, DataLoader(Counted(N), batch_size=10), modes=("mean",))
    other = ps.compare(model, guide, ((A, B), Y), modes=("mean",))
    assert one.num_examples == N and one["mean"].nll == pytest.approx(other["mean"].nll, abs=1e-6)


def test_a_resumed_stream_is_named(tmp_path: Any) -> None:
    path = tmp_path / "run.safetensors"
    options: dict[str, Any] = {"steps_per_epoch": 3, "checkpoint": path, "schedule": "constant", **QUIET}
    ps.fit(*build(num_data=1000), DataLoader(Counted(None), batch_size=8), epochs=1, **options)
    with pytest.warns(UserWarning, match="a stream begins anew where a run is resumed"):
        ps.fit(*build(num_data=1000), DataLoader(Counted(None), batch_size=8), epochs=2, resume=True, **options)


def test_known_labels_beside_keywords() -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = ps.layers.Conditional(lambda: nn.Linear(3, 3), 3, where="output")

        def forward(self, *, one: Tensor, two: Tensor) -> Tensor:
            found: Tensor = self.layer(one) + two.sum(1, keepdim=True)
            return found

    torch.manual_seed(0)
    model = ps.BayesianModel(Keyed(), likelihood=ps.likelihoods.Categorical(), num_data=N, target="labels")
    guide = ps.guides.Additive(model)
    result = ps.fit(model, guide, WHOLE, epochs=2, labels="known", **QUIET)
    assert result.labels == "known"
    assert ps.compare(model, guide, WHOLE, modes=("mean",), labels="known").rows[0].labels == "known"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ps.predict(model, guide, {"one": A, "two": B}, labels=Y, mode="mean")
    layer = model.net.get_submodule("layer")
    expected = torch.stack([layer.classes[int(c)](a) for a, c in zip(A, Y, strict=True)]) + B.sum(1, keepdim=True)
    assert torch.allclose(found.probs.float(), expected.softmax(-1), atol=1e-5)

"""Data holders: how examples are divided among them, and what the mean of their weights is."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from federation import plain
from torch import nn

from pyrostoch.federated import average, load_weights, partition, weights_of
from pyrostoch.federated.weights import check_weights, kept_names

ROOT = Path(__file__).resolve().parent.parent
LABELS = torch.arange(200) % 10


@pytest.mark.parametrize("concentration", [None, 1e-3, 0.3, 100.0])
@pytest.mark.parametrize("holders", [1, 5, 200])
def test_each_example_goes_to_exactly_one_holder_and_nobody_is_without(
    concentration: float | None, holders: int
) -> None:
    for seed in range(5):
        parts = partition(LABELS, holders, concentration=concentration, seed=seed)
        assert len(parts) == holders and min(len(part) for part in parts) >= 1
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(200))
        assert all(torch.equal(part, part.sort().values) for part in parts)


def test_alike_parts_are_dealt_out_of_one_shuffle() -> None:
    parts = partition(torch.zeros(103, dtype=torch.long), 5)
    assert sorted(len(part) for part in parts) == [20, 20, 21, 21, 21]
    assert not torch.equal(parts[0], torch.arange(0, 103, 5))


def test_a_seed_repeats_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (partition(LABELS, 5, concentration=0.3, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("concentration", [0.3, 2.0])
def test_the_shares_of_a_class_are_dirichlet(concentration: float) -> None:
    holders, labels = 4, torch.arange(1000) // 500  # two classes, which are drawn each by itself
    draws = [partition(labels, holders, concentration=concentration, seed=seed) for seed in range(600)]
    shares = torch.tensor(
        [[[float((labels[part] == c).sum()) / 500 for part in parts] for c in (0, 1)] for parts in draws]
    )
    mean, variance = 1 / holders, (1 / holders) * (1 - 1 / holders) / (holders * concentration + 1)
    # Mean and variance of a share over 1200 draws, each within five standard errors.
    squares = (shares - mean).square().flatten(0, 1)
    assert (shares.mean((0, 1)) - mean).abs().max() < 5 * (variance / 1200) ** 0.5
    assert ((squares.mean(0) - variance).abs() < 5 * squares.std(0) / 1200**0.5).all()
    # Dirichlet shares of one class repel each other; those of two classes know nothing of each other.
    centered = shares - shares.mean((0, 1))
    covariance = float((centered[:, 0, 0] * centered[:, 0, 1]).mean())
    assert covariance == pytest.approx(-variance / (holders - 1), abs=5 * variance / 600**0.5)
    between = float((centered[:, 0, 0] * centered[:, 1, 0]).mean())
    assert abs(between) < 5 * variance / 600**0.5


def test_a_holder_left_with_too_few_gets_some_of_the_richest() -> None:
    parts = partition(torch.zeros(60, dtype=torch.long), 5, concentration=1e-3, least=7)
    assert sorted(len(part) for part in parts) == [7, 7, 7, 7, 32]


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (LABELS, {"holders": 201}, "201 holders cannot have 1 of 200 examples each"),
        (LABELS, {"holders": 5, "least": 41}, "5 holders cannot have 41 of 200"),
        (LABELS, {"holders": 0}, "holders: expected a whole number from 1 up, got 0"),
        (LABELS, {"holders": 5, "concentration": 0.0}, "concentration: expected a positive finite number, got 0.0"),
        (LABELS, {"holders": 5, "concentration": -0.3}, "concentration: expected a positive finite number"),
        (LABELS, {"holders": 5, "concentration": float("nan")}, "concentration: expected a positive finite number"),
        (LABELS, {"holders": 5, "seed": -1}, "seed: expected a whole number"),
        (
            LABELS.float(),
            {"holders": 5},
            "expected a tensor of whole numbers, the class of each example, got torch.flo",
        ),
        (LABELS.reshape(2, 100), {"holders": 5}, r"expected one class for each example, got shape \(2, 100\)"),
        ([1, 2], {"holders": 2}, "expected a tensor of whole numbers, the class of each example, got list"),
    ],
)
def test_bad_divisions_are_refused(labels: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        partition(labels, **settings)


def test_the_mean_counts_each_holder_by_its_examples() -> None:
    torch.manual_seed(0)
    sizes = {"a": 3, "b": 5, "c": 9}
    for dtype in (torch.float32, torch.float64, torch.float16):
        weights = {name: {"w": torch.randn(4, 3).to(dtype)} for name in sizes}
        exact = [
            sum(Fraction(float(weights[name]["w"].flatten()[i])) * sizes[name] for name in sizes) / sum(sizes.values())
            for i in range(12)
        ]
        mean = average(weights, sizes)["w"]
        assert mean.dtype == dtype
        found = torch.tensor([float(value) for value in exact], dtype=torch.float64)
        assert torch.allclose(mean.flatten().double(), found, rtol=2 * torch.finfo(dtype).eps, atol=1e-15)


def test_what_all_have_alike_stays_to_the_last_bit() -> None:
    torch.manual_seed(0)
    same = {"w": torch.randn(1000, dtype=torch.float64), "flag": torch.tensor([True]), "n": torch.tensor(3)}
    same["w"][0] = float("nan")  # a buffer that is not in use
    mean = average({name: dict(same) for name in "abc"}, {"a": 1, "b": 7, "c": 10})
    assert all(torch.equal(mean[name], same[name]) for name in ("flag", "n")) and mean["n"].dtype == torch.int64
    assert torch.equal(mean["w"].isnan(), same["w"].isnan()) and torch.equal(mean["w"][1:], same["w"][1:])


def test_statistics_of_batch_normalization_are_those_of_all_examples() -> None:
    torch.manual_seed(0)
    parts = {"a": torch.randn(30, 2) + 3, "b": 2 * torch.randn(10, 2) - 1}
    states = {}
    for name, x in parts.items():
        norm = nn.BatchNorm1d(2)
        norm.running_mean, norm.running_var = x.mean(0), x.var(0, correction=0)  # type: ignore[assignment]
        norm.num_batches_tracked = torch.tensor(len(x))  # type: ignore[assignment]
        states[name] = weights_of(norm, nn.Identity())
    mean = average(states, {name: len(x) for name, x in parts.items()})
    together = torch.cat(list(parts.values()))
    assert torch.allclose(mean["model.running_mean"], together.mean(0), atol=1e-6)
    assert torch.allclose(mean["model.running_var"], together.var(0, correction=0), atol=1e-5)
    assert mean["model.num_batches_tracked"].dtype == torch.int64 and int(mean["model.num_batches_tracked"]) == 30


def test_whole_numbers_have_no_mean() -> None:
    with pytest.raises(ValueError, match="'index' holds whole numbers"):
        average({"a": {"index": torch.tensor([1])}, "b": {"index": torch.tensor([2])}}, {"a": 1, "b": 1})
    for weights, sizes in (({}, {}), ({"a": {}}, {"a": 0}), ({"a": {}, "b": {}}, {"a": 1}), ([{}], [1])):
        with pytest.raises(ValueError, match="weights of holders by name, and for each of them a number"):
            average(weights, sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("holder", ["a", "b"])
def test_weights_that_are_not_finite_are_not_averaged(holder: str) -> None:
    weights = {name: {"w": torch.ones(2), "v": torch.ones(1)} for name in "ab"}
    weights[holder]["w"][1] = torch.nan
    with pytest.raises(ValueError, match=rf"holder '{holder}'.*'w'.*NaN"):
        average(weights, {"a": 1, "b": 1})


def test_weights_of_other_networks_are_not_averaged() -> None:
    with pytest.raises(ValueError, match="holder 'b'.*another model or guide"):
        average({"a": {"w": torch.ones(2)}, "b": {"v": torch.ones(2)}}, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="holder 'b'.*shape"):
        average({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(3)}}, {"a": 1, "b": 1})


def test_weights_go_and_come_back() -> None:
    model, guide = plain()
    sent = weights_of(model, guide)
    assert all(not value.requires_grad for value in sent.values())
    for value in (*model.parameters(), *guide.parameters()):
        nn.init.constant_(value, 7.0)
    assert all(bool((value != 7.0).any()) for value in sent.values() if value.is_floating_point())  # they are copies
    load_weights(model, guide, sent)
    assert all(torch.equal(value, sent[name]) for name, value in weights_of(model, guide).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_weights_that_cannot_be_sent_are_named(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"'model.weight': expected dense real numbers .* got {dtype}"):
        weights_of(nn.Linear(2, 2, dtype=dtype), nn.Identity())


def changed(**values: Any) -> dict[str, torch.Tensor]:
    start = {"w": torch.zeros(2), "fixed": torch.ones(2), "index": torch.tensor([1, 2])}
    return {name: values.get(name, value) for name, value in start.items() if values.get(name, 0) is not None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(w=None), "missing 'w', unknown none"),
        ({**changed(), "extra": torch.zeros(1)}, "missing none, unknown 'extra'"),
        (changed(w=torch.zeros(3)), r"'w': expected torch.float32 of shape \(2,\), got torch.float32 of shape \(3,\)"),
        (changed(w=torch.zeros(2).double()), "'w': expected torch.float32 .* got torch.float64"),
        (changed(w=torch.tensor([0.0, float("nan")])), "'w' has 1 NaN or infinite entries"),
        (changed(w=torch.tensor([float("inf"), -float("inf")])), "'w' has 2 NaN or infinite entries"),
        (changed(fixed=torch.tensor([1.0, 1.1])), "'fixed' has changed, though it is fixed"),
        (changed(index=torch.tensor([1, 3])), "'index' has changed"),
    ],
)
def test_weights_that_must_not_be_averaged_are_named(given: dict[str, torch.Tensor], message: str) -> None:
    kept = frozenset({"fixed", "index"})
    check_weights("holder 3", changed(w=torch.ones(2)), changed(), kept)
    with pytest.raises(ValueError, match=f"holder 3: .*{message}"):
        check_weights("holder 3", given, changed(), kept)


def test_what_no_training_changes_is_kept() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    net.register_buffer("index", torch.arange(3))
    assert kept_names(net, nn.Identity()) == {"model.0.bias", "model.index"}


def test_flower_is_not_needed_and_not_loaded() -> None:
    code = "import sys, pyrostoch.federated; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def pins(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if match := re.match(r"([\w-]+)(==.*)", line):
            found.setdefault(match[1], set()).add(match[2])
    return found


def test_the_environment_with_flower_has_the_pins_of_all_others() -> None:
    ours, theirs = pins("constraints.txt"), pins("constraints-federated.txt")
    assert set(theirs) - set(ours) == {"flwr", "click", "packaging"}
    assert {name for name in theirs if name in ours and theirs[name] != ours[name]} == {"typer", "rich"}

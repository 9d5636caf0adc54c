"""Federated rounds without any messages: what a holder gives away, and what the server makes of it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from federation import (
    SETTINGS,
    answer,
    behind_noise,
    blobs,
    examples_holder,
    met,
    plain,
    rounds,
    weights_holder,
)
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.federated import Federated, Holder, QuorumError, average, client_app, serve, weights_of
from pyrostoch.federated import holder as holder_file
from pyrostoch.safefile import CheckpointError, read_file


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_weighted_losses_of_all_holders_are_the_loss_of_all_data() -> None:
    x, y = blobs(60)
    model, guide = plain(60)

    def loss(rows: slice, num_data: int) -> Tensor:
        model.num_data = num_data
        torch.manual_seed(5)  # the same draw of the weights
        return ps.ELBO(estimator="shared")(model, guide)(x[rows], y[rows])

    parts = [(slice(0, 10), 10), (slice(10, 60), 50)]
    whole = loss(slice(0, 60), 60)
    joint = sum((count / 60 * loss(rows, 60) for rows, count in parts), torch.zeros(()))
    assert torch.allclose(joint, whole, rtol=1e-5)
    # With numbers of their own the KL would be counted too heavily.
    apart = sum((count / 60 * 60 / count * loss(rows, count) for rows, count in parts), torch.zeros(()))
    assert apart > whole * 1.1


def test_a_holder_trains_with_the_number_of_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(model: Any, guide: Any, data: Any, **settings: Any) -> Any:
        seen.append((model.num_data, settings["steps_per_epoch"], len(data.dataset), settings["epochs"]))
        return ps.fit(model, guide, data, **settings)

    monkeypatch.setattr(holder_file, "fit", recorded)
    holder = weights_holder("a", blobs(21))
    start = weights_of(holder.model, holder.guide)
    torch.manual_seed(8)
    one, state = holder.train(start, num_data=1000, seed=3), torch.get_rng_state()
    torch.manual_seed(8)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are left alone
    assert seen == [(1000, 3, 21, 2)] and holder.model.num_data == 21
    assert same(one, holder.train(start, num_data=1000, seed=3)) and not same(one, start)
    assert not same(one, holder.train(start, num_data=1000, seed=4))
    assert not same(one, weights_holder("b", blobs(21)).train(start, num_data=1000, seed=3))
    with pytest.raises(ValueError, match="at least the 21 of this one, got 20"):
        holder.train(start, num_data=20, seed=3)


def test_a_network_behind_a_layer_is_trained_in_steps() -> None:
    model, guide = behind_noise(30)
    layer: Any = model.net.stochastic
    layer.selection = ps.layers.GatedSelection(nn.Linear(4, 2))
    epochs = {"clean": 1, "classes": 1, "selection": 1}
    holder = Holder("a", model, guide, blobs(30), epochs=epochs, send="weights", settings=SETTINGS)
    start = weights_of(model, guide)
    end = holder.train(start, num_data=90, seed=0)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert any(name.startswith("model.net.network.") for name in moved)
    assert any(".stochastic.selection." in name for name in moved)
    assert any(".stochastic.classes." in name for name in moved)
    assert layer.selection is not None and not model.net.bypassed
    assert all(p.requires_grad for p in model.net.parameters())


def test_a_single_example_and_a_batch_of_one_are_trained_on() -> None:
    for count in (1, 9):  # batches of eight: the last would be one example, which BatchNorm1d cannot normalize
        net = nn.Sequential(nn.Linear(4, 3), *([nn.BatchNorm1d(3)] if count > 1 else []), nn.Linear(3, 2))
        model, guide = plain(count, net=net)
        holder = Holder("a", model, guide, blobs(count), epochs={"clean": 1}, send="weights", settings=SETTINGS)
        assert holder.train(weights_of(model, guide), num_data=50, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"send": "pictures"}, "send: expected one of 'weights', 'examples', got 'pictures'"),
        ({"epochs": {"clean": 1, "mixed": 2}}, "epochs: expected those of 'clean', got 'clean', 'mixed'"),
        ({"epochs": {"clean": 0}}, r"epochs\['clean'\]: expected a whole number from 1 up"),
        ({"steps": {"classes": {}}}, "steps: expected one of 'clean'"),
        ({"settings": {"seed": 1, "resume": True}}, "settings: 'resume', 'seed' cannot be set here"),
        ({"steps": {"clean": {"batch_size": 1}}}, "settings: 'batch_size' cannot be set here"),
        ({"send": "examples"}, "prepend"),
    ],
)
def test_bad_holders_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        weights_holder("a", blobs(10), **settings)


def test_bad_data_are_refused() -> None:
    x, y = blobs(10)
    for data, message in [
        ((x, y[:9]), "as many labels as inputs, and at least one, got 10 and 9"),
        ((x * float("nan"), y), "finite"),
        ([x], "expected tensors"),
        (x[:2], "expected tensors"),
        ((x, [0] * 10), r"expected tensors \(x, y\)"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            weights_holder("a", data)  # type: ignore[arg-type]


def test_examples_are_drawn_once_and_never_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = blobs(30)
    first = examples_holder("a", data, tmp_path).obfuscated(seed=0)
    assert torch.equal(first.labels, data[1]) and first.inputs.shape == data[0].shape
    assert not bool((first.inputs == data[0]).all(1).any()) and first.noise > 0.1
    # The same examples in another order of rows would be noise anew: each stays beside its own.
    distance = torch.cdist(first.inputs, data[0])
    assert (distance.argmin(1) == torch.arange(30)).double().mean() > 0.3
    with monkeypatch.context() as patch:
        patch.setattr(Holder, "_train", lambda *given: pytest.fail("it was trained again"))
        again = examples_holder("a", data, tmp_path).obfuscated(seed=1)
    assert torch.equal(first.inputs, again.inputs) and torch.equal(first.labels, again.labels)
    with pytest.raises(ValueError, match="was drawn from other examples than these"):
        examples_holder("a", blobs(30, seed=7), tmp_path).obfuscated(seed=0)
    # Neither the seed of the run nor torch's state tells the noise.
    torch.manual_seed(0)
    other = examples_holder("b", data, tmp_path, sent=tmp_path / "other").obfuscated(seed=0)
    assert not torch.allclose(first.inputs, other.inputs)


def test_the_noise_is_not_that_of_any_seed_that_the_server_knows(tmp_path: Path) -> None:
    data, drawn = blobs(30), []
    for number in range(2):
        torch.manual_seed(0)
        drawn.append(examples_holder("a", data, tmp_path, sent=tmp_path / str(number)).obfuscated(seed=0).inputs)
    assert not torch.allclose(*drawn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels_in_clear": False}, "the labels of the examples are sent as they are"),
        ({"sent": None}, "give sent=, a file that keeps the one draw"),
        ({"least_noise": None}, "give least_noise="),
        ({"least_noise": 0.0}, "least_noise: expected a positive finite number"),
    ],
)
def test_a_holder_of_examples_must_agree_to_everything(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        examples_holder("a", blobs(10), tmp_path, **settings)


def test_copies_and_too_little_noise_are_not_sent(tmp_path: Path) -> None:
    x, y = blobs(10)
    with pytest.raises(ValueError, match="2 of 12 examples are copies of others"):
        examples_holder("a", (torch.cat([x, x[:2]]), torch.cat([y, y[:2]])), tmp_path)
    with pytest.raises(ValueError, match="less than least_noise=50, and nothing was sent"):
        examples_holder("a", (x, y), tmp_path, least_noise=50.0).obfuscated(seed=0)
    assert not (tmp_path / "a.safetensors").exists()


def test_what_a_holder_did_not_agree_to_does_not_leave(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="asked for examples, but it agreed to send weights only"):
        weights_holder("a", blobs(10)).obfuscated(seed=0)
    with pytest.raises(ValueError, match="asked for weights, but it agreed to send examples only"):
        examples_holder("a", blobs(10), tmp_path).train({}, num_data=10, seed=0)
    with pytest.raises(ValueError, match="holder 'a' agreed to send examples only"):
        rounds(tmp_path / "s").introduce({10: ("a", 5, "examples")}, {})


def test_a_round_is_the_mean_of_what_holders_train_alone(tmp_path: Path) -> None:
    sizes, server = {"a": 20, "b": 40}, rounds(tmp_path)
    nodes, start = met(server, sizes), weights_of(server.model, server.guide)
    assert server.model.num_data == 60
    alone = {
        name: weights_holder(name, blobs(size, seed=size)).train(start, num_data=60, seed=1)
        for name, size in sizes.items()
    }
    mean = server.average([answer(n, alone[s], sizes[s]) for n, s in zip(nodes, alone, strict=True)][::-1], 1.0)
    assert same(mean, average(alone, sizes)) and same(mean, weights_of(server.model, server.guide))
    name = next(n for n in mean if n.startswith("guide.") and mean[n].is_floating_point())
    assert torch.allclose(mean[name], (alone["a"][name] + 2 * alone["b"][name]) / 3, atol=1e-7)
    (entry,) = server.report.rounds
    assert (entry.answered, entry.examples, entry.missing, entry.failed) == (("a", "b"), 60, {}, False)
    assert entry.score == server.measure() == server.report.score


def test_unusable_answers_are_left_out_and_named(tmp_path: Path) -> None:
    sizes = {"a": 5, "b": 6, "c": 7, "d": 8, "e": 9, "f": 10}
    server = rounds(tmp_path, quorum=1)
    nodes, start = met(server, sizes), weights_of(server.model, server.guide)
    name = next(n for n in start if n.startswith("guide.") and start[n].is_floating_point())
    good = {**start, name: start[name] + 1}
    mean = server.average(
        [
            answer(nodes[0], good, 5),
            answer(nodes[1], {**good, name: start[name] * float("nan")}, 6),
            answer(nodes[2], {**good, name: start[name][:1, :1]}, 7),
            answer(nodes[3], good, 10_000),
            answer(nodes[4], {}, 0, error="ValueError: out of paper"),
            answer(999, good, 3),  # nobody has asked this one
        ],
        30.0,
    )
    assert same(mean, good)
    (entry,) = server.report.rounds
    assert entry.answered == ("a",) and entry.examples == 5
    assert "NaN or infinite" in entry.missing["b"] and name in entry.missing["b"]
    assert "shape" in entry.missing["c"] and "10000 examples now, and 8 before" in entry.missing["d"]
    assert entry.missing["e"] == "ValueError: out of paper" and entry.missing["f"] == "no answer within 30 s"
    assert "round 1: nothing from holder 'f' (10 examples): no answer within 30 s" in str(server.report)
    assert Federated.from_dict(json.loads(json.dumps(server.report.to_dict()))) == server.report


def test_too_few_answers_fail_the_round_and_lose_nothing(tmp_path: Path) -> None:
    sizes, server = {"a": 5, "b": 6, "c": 7}, rounds(tmp_path)
    start = weights_of(server.model, server.guide)
    name = next(n for n in start if n.startswith("guide.") and start[n].is_floating_point())
    better, worse = ({**start, name: start[name] + shift} for shift in (1.0, 2.0))
    nodes = met(server, sizes)
    server.average([answer(nodes[0], better, 5), answer(nodes[1], better, 6)], 1.0)
    server.begin(nodes, 0.0)
    with pytest.raises(
        QuorumError, match=r"round 2: 1 of at least 2 .* b: no answer within 9 s; c: no answer"
    ) as caught:
        server.average([answer(nodes[0], worse, 5)], 9.0)
    assert same(weights_of(server.model, server.guide), better)
    report = caught.value.report
    assert [(entry.number, entry.failed) for entry in report.rounds] == [(1, False), (2, True)]
    assert set(report.rounds[-1].missing) == {"b", "c"} and "2 failed" in str(report)
    again = rounds(tmp_path, resume=True)
    assert again.done == 1 and again.report == report and again.model.num_data == 18
    assert same(weights_of(again.model, again.guide), better)
    nodes = met(again, sizes)
    again.average([answer(node, worse, size) for node, size in zip(nodes, sizes.values(), strict=True)], 1.0)
    assert [(entry.number, entry.failed) for entry in again.report.rounds] == [(1, False), (2, True), (2, False)]


def test_too_few_nodes_fail_the_round_before_it_begins(tmp_path: Path) -> None:
    server = rounds(tmp_path, quorum=2)
    with pytest.raises(QuorumError, match="0 of at least 2 .* node 7: no python"):
        server.introduce({10: ("a", 5, "weights")}, {7: "no python"})
        server.begin([10], 0.0)


def test_a_state_of_another_kind_is_not_gone_on_from(tmp_path: Path) -> None:
    server = rounds(tmp_path, quorum=1)
    nodes, start = met(server, {"a": 5}), weights_of(server.model, server.guide)
    server.average([answer(nodes[0], start, 5)], 1.0)
    with pytest.raises(ValueError, match="is not the state of a training with send='examples'"):
        rounds(tmp_path, send="examples", resume=True)
    other = plain(net=nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match="random sites"):
        rounds(tmp_path, resume=True, made=other)
    assert other[0].num_data == 60


def test_nodes_and_holders_are_told_apart(tmp_path: Path) -> None:
    server = rounds(tmp_path, quorum=1)
    assert met(server, {"a": 5, "b": 6}) == [10, 11] and server.unknown([10, 11, 12]) == [12]
    server.introduce({12: ("b", 6, "weights")}, {})  # it was started anew
    assert server.begin([10, 11, 12], 0.0) == [10, 12] and server.model.num_data == 11
    assert server.begin([11, 12], 0.0) == [12]
    with pytest.raises(ValueError, match="several nodes say that they are holder 'c'"):
        server.introduce({13: ("c", 1, "weights"), 14: ("c", 1, "weights")}, {})
    with pytest.raises(ValueError, match="holder 'b' says that it has 7 examples, and had 6 before"):
        server.introduce({15: ("b", 7, "weights")}, {})


def test_examples_are_kept_and_nobody_is_asked_twice(tmp_path: Path) -> None:
    server = rounds(tmp_path, send="examples", quorum=2)
    nodes = met(server, {"a": 5, "b": 6, "c": 7})
    sent = {size: dict(zip(("inputs", "labels"), blobs(size, seed=size), strict=True)) for size in (5, 6, 7)}
    with pytest.raises(QuorumError):
        server.collect([answer(nodes[0], sent[5], 5)], 1.0)
    again = rounds(tmp_path, send="examples", quorum=2, resume=True)
    assert torch.equal(again.received["a"]["inputs"], sent[5]["inputs"]) and again.done == 0
    assert met(again, {"a": 5, "b": 6, "c": 7}) == [11, 12]
    bad = [
        ({"inputs": sent[7]["inputs"]}, "expected inputs and labels, got 'inputs'"),
        ({**sent[7], "inputs": sent[7]["inputs"].double()}, "as in the validation data, torch.float32 .* got torch.fl"),
        ({**sent[7], "inputs": sent[7]["inputs"][:6]}, "6 inputs and 7 labels do not fit"),
        ({**sent[7], "inputs": sent[7]["inputs"] / 0}, "NaN or infinite entries among the inputs"),
        ({**sent[7], "labels": sent[7]["labels"] + 5}, "expected labels from 0 to 1"),
    ]
    for tensors, message in bad:
        again.begin([11, 12], 0.0)
        again.collect([answer(11, sent[6], 6), answer(12, tensors, 7)], 1.0)
        with pytest.raises(ValueError, match=message):
            raise ValueError(again.report.rounds[-1].missing["c"])
    assert list(again.received) == ["a", "b"] and again.report.rounds[-1].answered == ()
    assert set(read_file(tmp_path / "examples.safetensors")[0]) == {
        f"{name}.{part}" for name in "ab" for part in ("inputs", "labels")
    }


def test_without_flower_the_error_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flwr", None)
    model, guide = plain()
    given: dict[str, Any] = {"validation": blobs(9), "rounds": 1, "folder": tmp_path}
    with pytest.raises(ImportError, match="serve needs Flower 1.42 .* `make federated`"):
        serve(None, model, guide, send="weights", holders=2, quorum=1, **given)
    with pytest.raises(ImportError, match="client_app needs Flower"):
        client_app(lambda node, run: pytest.fail("called"))
    for settings, message in [
        ({"send": "weights", "holders": 2, "quorum": 3}, "3 of 2 data holders can never answer"),
        ({"send": "examples", "holders": 2, "quorum": 1}, "needs epochs="),
        ({"send": "weights", "holders": 2, "quorum": 1, "lr": 0.1}, "with send='weights' each holder has its own"),
    ]:
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
            serve(None, model, guide, **settings, **given)

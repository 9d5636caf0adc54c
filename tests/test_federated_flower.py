"""Federated training on Flower in one process: a grid that hands every message to the app of a data holder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from federation import SETTINGS, behind_noise, blobs, examples_holder, plain, weights_holder

import pyrostoch as ps
from pyrostoch._seeds import mixed_seed
from pyrostoch.federated import Holder, QuorumError, average, client_app, serve, weights_of
from pyrostoch.obfuscate import Screening, bypassed

pytest.importorskip("flwr", reason="flwr is not installed: make federated")
from flwr.app import Context, Error, Message, RecordDict  # noqa: E402 - there may be no flwr
from flwr.serverapp import Grid  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

SIZES = [30, 20, 10]
FIRST = 100
SUPERLINK = 1


class Lab(Grid):
    """Nodes numbered from 100 up, each with a holder; some are lost when they are asked to train."""

    def __init__(self, build: Callable[[Mapping[str, Any], Mapping[str, Any]], Holder], count: int = 3) -> None:
        self.nodes = {FIRST + number: number for number in range(count)}
        self.asked: list[tuple[int, str]] = []
        self.lost: dict[int, str] = {}  # node: "silent", "gone" or "off"
        self.spoil: Callable[[Message], None] = lambda reply: None
        self._app, self._replies, self._count = client_app(build), dict[str, Message](), 0

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *given: Any, **named: Any) -> Any: ...

    def get_node_ids(self) -> list[int]:
        return [node for node in self.nodes if self.lost.get(node) != "off"]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        found = []
        for message in messages:
            self._count += 1
            name, node = str(self._count), message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = name
            found.append(name)
            self.asked.append((node, message.metadata.message_type))
            if message.metadata.message_type == "query.introduce" or node not in self.lost:
                self._replies[name] = self._answer(message, node)
            elif self.lost[node] == "gone":  # as the SuperLink answers for a node without a heartbeat
                reply = Message(Error(5, "Node Unavailable"), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK
                self._replies[name] = reply
        return found

    def _answer(self, message: Message, node: int) -> Message:
        config = {"partition-id": self.nodes[node], "num-partitions": len(self.nodes)}
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
        try:
            reply = self._app(copy.deepcopy(message), context)
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        self.spoil(reply)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Messages are made by a task of a run."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    yield
    TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = None


def sender(node: Mapping[str, Any], run: Mapping[str, Any]) -> Holder:
    number = node["partition-id"]
    return weights_holder(str(number), blobs(SIZES[number], seed=number))


def run(lab: Lab, folder: Path, **settings: Any) -> Any:
    model, guide = settings.pop("made", None) or plain()
    given: dict[str, Any] = {
        "send": "weights",
        "holders": len(lab.nodes),
        "quorum": 2,
        "rounds": 1,
        "validation": blobs(40, seed=99),
        "folder": folder,
        "wait": 0.01,
        "timeout": 5.0,
    }
    return serve(lab, model, guide, **{**given, **settings})


def test_a_round_is_the_mean_of_what_holders_train_alone(tmp_path: Path) -> None:
    made, lab, sent = plain(), Lab(sender), {}
    start = weights_of(*made)
    lab.spoil = lambda reply: sent.update({reply.metadata.src_node_id: reply})
    report = run(lab, tmp_path, made=made, seed=4)
    assert report.holders == {"0": 30, "1": 20, "2": 10} and made[0].num_data == 60
    assert [entry.answered for entry in report.rounds] == [("0", "1", "2")] and report.rounds[0].examples == 60
    # The same without Flower: each holder alone, from the same weights.
    alone = {
        str(number): weights_holder(str(number), blobs(size, seed=number)).train(
            start, num_data=60, seed=mixed_seed(4, 0)
        )
        for number, size in enumerate(SIZES)
    }
    expected, found = average(alone, report.holders), weights_of(*made)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert all(not torch.equal(found[name], start[name]) for name in found if name.startswith("guide."))
    # Nothing but weights, the number of examples, and two words has left the holders.
    for reply in sent.values():
        assert set(reply.content) == {"arrays", "metrics", "words"}
        assert set(reply.content["arrays"]) == set(start) and list(reply.content["metrics"]) == ["num-examples"]


def test_training_gets_better_and_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = run(Lab(sender), tmp_path / "whole", rounds=4)
    assert whole.score > 0.8 and len(whole.rounds) == 4
    first, second = plain(), plain()
    run(Lab(sender), tmp_path / "parts", rounds=2, made=first)
    lab = Lab(sender)
    report = run(lab, tmp_path / "parts", rounds=4, resume=True, made=second)
    assert [entry.number for entry in report.rounds] == [1, 2, 3, 4]
    assert sum(kind == "train" for _, kind in lab.asked) == 6
    assert [entry.score for entry in report.rounds] == [entry.score for entry in whole.rounds]
    assert run(Lab(sender), tmp_path / "parts", rounds=4, resume=True).rounds == report.rounds


@pytest.mark.parametrize(("fate", "reason"), [("silent", "no answer within 5 s"), ("gone", "Node Unavailable")])
def test_a_lost_holder_is_named_and_the_round_ends_without_it(fate: str, reason: str, tmp_path: Path) -> None:
    lab, made = Lab(sender), plain()
    lab.lost = {101: fate}
    report = run(lab, tmp_path, rounds=2, made=made)
    assert [(entry.answered, dict(entry.missing)) for entry in report.rounds] == [(("0", "2"), {"1": reason})] * 2
    assert report.rounds[0].examples == 40 and made[0].num_data == 60
    assert f"round 2: nothing from holder '1' (20 examples): {reason}" in str(report)


def test_a_holder_that_was_started_anew_joins_the_next_round(tmp_path: Path) -> None:
    lab = Lab(sender)
    run(lab, tmp_path, rounds=1)
    lab.lost, lab.nodes = {101: "off"}, {**lab.nodes, 200: 1}
    report = run(lab, tmp_path, rounds=2, resume=True, holders=3)
    assert report.rounds[-1].answered == ("0", "1", "2") and report.holders == {"0": 30, "1": 20, "2": 10}
    assert (200, "train") in lab.asked


def test_too_few_answers_fail_the_run(tmp_path: Path) -> None:
    lab, made = Lab(sender), plain()
    lab.lost = {100: "gone", 101: "silent"}
    start = weights_of(*made)
    with pytest.raises(
        QuorumError, match="round 1: 1 of at least 2 .*Without answer: 0: Node Unavailable; 1: no answer"
    ):
        run(lab, tmp_path, rounds=3, made=made)
    assert all(torch.equal(value, start[name]) for name, value in weights_of(*made).items())
    lab.lost = {}
    report = run(lab, tmp_path, rounds=1, resume=True)
    assert [(entry.number, entry.failed) for entry in report.rounds] == [(1, True), (1, False)]


def test_nobody_is_waited_for_for_ever(tmp_path: Path) -> None:
    lab = Lab(sender)
    lab.lost = {100: "off", 101: "off"}
    with pytest.raises(QuorumError, match="1 of at least 2|0 of at least 2"):
        run(lab, tmp_path)
    assert [kind for _, kind in lab.asked] == ["query.introduce"]


def test_a_holder_that_never_came_is_counted(tmp_path: Path) -> None:
    lab = Lab(sender)
    lab.lost = {102: "off"}
    report = run(lab, tmp_path)
    assert report.rounds[0].missing == {"unknown 1": "it has never been connected"}
    assert report.rounds[0].answered == ("0", "1") and "1        2 of 3" in str(report)


def test_errors_of_a_holder_are_named(tmp_path: Path) -> None:
    def faulty(node: Mapping[str, Any], run: Mapping[str, Any]) -> Holder:
        if node["partition-id"] == 2:
            raise RuntimeError("the disk\nis full")
        return sender(node, run)

    report = run(Lab(faulty), tmp_path)
    assert report.rounds[0].missing == {"node 102": "<class 'RuntimeError'>:<'the disk is full'>"}
    assert report.rounds[0].answered == ("0", "1")


@pytest.mark.parametrize("fault", ["nan", "shape", "name", "number", "nothing"])
def test_spoiled_answers_are_not_averaged(fault: str, tmp_path: Path) -> None:
    from flwr.app import Array, MetricRecord

    def spoil(reply: Message) -> None:
        if reply.metadata.src_node_id != 101 or reply.metadata.message_type != "train":
            return
        arrays = reply.content["arrays"]
        name = next(name for name in arrays if name.startswith("guide.") and arrays[name].numpy().dtype.kind == "f")
        values = arrays[name].numpy().copy()
        if fault == "nan":
            values[..., 0] = float("nan")
            arrays[name] = Array(values)
        elif fault == "shape":
            arrays[name] = Array(values[:1])
        elif fault == "name":
            arrays["other"] = arrays.pop(name)
        elif fault == "number":
            reply.content["metrics"] = MetricRecord({"num-examples": 10**9})
        else:
            del reply.content["arrays"]

    lab, made = Lab(sender), plain()
    lab.spoil = spoil
    report = run(lab, tmp_path, made=made)
    expected = {"nan": "NaN", "shape": "shape", "name": "unknown 'other'", "number": "1000000000", "nothing": "be read"}
    assert report.rounds[0].answered == ("0", "2") and expected[fault] in report.rounds[0].missing["1"]
    assert all(bool(torch.isfinite(value).all()) for value in weights_of(*made).values())


def test_examples_are_sent_once_and_the_network_learns_from_them(tmp_path: Path) -> None:
    clean = {number: blobs(40, seed=number) for number in range(3)}

    def build(node: Mapping[str, Any], run: Mapping[str, Any]) -> Holder:
        number = node["partition-id"]
        return examples_holder(str(number), clean[number], tmp_path)

    lab, made, sent = Lab(build), behind_noise(), []
    lab.lost = {102: "silent"}
    lab.spoil = lambda reply: sent.append(reply)
    learning = {"epochs": 15, "screening": Screening(0.2, patch=1), **SETTINGS}
    report = run(lab, tmp_path / "s", send="examples", rounds=2, made=made, **learning)
    assert [entry.answered for entry in report.rounds] == [("0", "1"), ()]
    assert set(report.rounds[1].missing) == {"2"} and report.start < report.score and report.score > 0.7
    with bypassed(made[0]):
        row = ps.compare(*made, blobs(40, seed=99), modes=("mean",)).rows[0]
    assert row.accuracy == report.score
    asked = [node for node, kind in lab.asked if kind == "query.examples"]
    assert sorted(asked) == [100, 101, 102, 102]  # nobody who has sent is asked again
    # What left is noise on every example, and the labels.
    for reply in sent:
        for array in reply.content["arrays"].values():
            x = torch.from_numpy(array.numpy().copy())
            assert all(not bool((row == data).flatten(1).all(1).any()) for data, _ in clean.values() for row in x) or (
                x.dim() == 1
            )
    lab.lost = {}
    again = run(lab, tmp_path / "s", send="examples", rounds=3, made=behind_noise(), resume=False, **learning)
    assert again.rounds[0].answered == ("0", "1", "2")
    twice = [reply for reply in sent if len(reply.content["arrays"]) and reply.metadata.src_node_id == 100]
    assert len(twice) == 2 and (
        (twice[0].content["arrays"]["inputs"].numpy() == twice[1].content["arrays"]["inputs"].numpy()).all()
    )


def test_a_holder_decides_what_it_sends(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holder '0' agreed to send weights only"):
        run(Lab(sender), tmp_path, send="examples", epochs=1)

"""The server's side of a federated training, whatever carries the messages: who takes part, and what is made of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count, name_list
from pyrostoch._manual import see
from pyrostoch.federated.holder import SENDS
from pyrostoch.federated.report import Federated, FederatedRound, QuorumError
from pyrostoch.federated.weights import average, check_weights, kept_names, load_weights, weights_of
from pyrostoch.layers.embody import Prepended
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate.bypass import bypassed
from pyrostoch.prediction.compare import compare
from pyrostoch.safefile import read_file, write_file
from pyrostoch.training.checkpoint import load, save

__all__ = ["Answer", "Rounds", "Score", "network_alone"]

#: Tells how good a model is; a larger number is better.
Score = Callable[[BayesianModel, Any], float]


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of a request to one node.

    Args:
        node: The node.
        tensors: What it sent, by name; empty where it failed.
        examples: The number of its examples.
        error: Why there is nothing.
    """

    node: int
    tensors: Mapping[str, Tensor]
    examples: int = 0
    error: str | None = None


def network_alone(model: BayesianModel) -> contextlib.AbstractContextManager[None]:
    """A context in which the network is without a stochastic layer in front of it, where there is one.

    Args:
        model: The model.
    """
    return bypassed(model) if isinstance(model.net, Prepended) else contextlib.nullcontext()


class Rounds:
    """Rounds of a federated training: who takes part, what is made of the answers, and what is kept of it.

    Args:
        model: The server's model. Its `num_data` becomes the number of examples of all holders.
        guide: Its guide.
        send: What the holders send.
        holders: Number of data holders.
        quorum: The fewest answers with which a round counts.
        validation: The server's clean data.
        score: A score in place of the accuracy by the mean.
        folder: Where the state is written after every round.
        resume: Whether the state in that folder is gone on from.

    Raises:
        CheckpointError: That state belongs to another model or guide.
        ValueError: It belongs to a training of another kind.
    """

    def __init__(
        self,
        model: BayesianModel,
        guide: nn.Module,
        *,
        send: str,
        holders: int,
        quorum: int,
        validation: tuple[Tensor, Tensor],
        score: Score | None,
        folder: Path,
        resume: bool,
    ) -> None:
        self.model, self.guide, self.quorum = model, guide, check_count("quorum", quorum)
        self.send, self.folder = check_choice("send", send, SENDS), folder
        self._expected = check_count("holders", holders)
        self.validation, self._score = validation, score
        self.received: dict[str, dict[str, Tensor]] = {}
        self._nodes: dict[str, int] = {}
        self._asked: dict[int, str] = {}
        self._unknown: dict[str, str] = {}
        self._began = 0.0
        weights_of(model, guide)  # refuses what cannot be sent before anybody is asked
        self._report = Federated(send, {}, quorum, None, (), None)
        if resume and self.path.exists():
            self._resume()
        else:
            self._report = self._changed(start=self.measure())

    @property
    def path(self) -> Path:
        """The file with the state of the server."""
        return self.folder / "federated.safetensors"

    @property
    def done(self) -> int:
        """Number of rounds that counted."""
        return sum(not entry.failed for entry in self._report.rounds)

    @property
    def report(self) -> Federated:
        """The training so far."""
        return self._report

    def measure(self) -> float:
        """The score of the network now, on clean data and without a stochastic layer in front of it."""
        with network_alone(self.model):
            if self._score is not None:
                return float(self._score(self.model, self.guide))
            row: Any = compare(self.model, self.guide, self.validation, modes=("mean",)).rows[0]
        if not hasattr(row, "accuracy"):
            raise ValueError(
                "federated score: the model's targets have no accuracy; give score=, a function of (model, guide), "
                f"such as the negative error on held-out data{see('how-to/federated')}"
            )
        return float(row.accuracy)

    def unknown(self, nodes: Iterable[int]) -> list[int]:
        """The nodes among some that have not said who they are.

        Args:
            nodes: The nodes that are connected.
        """
        return [node for node in nodes if node not in self._nodes.values()]

    def introduce(self, given: Mapping[int, tuple[str, int, str]], errors: Mapping[int, str]) -> None:
        """Take down which holder is behind a node; a holder that was started anew takes the place of its old node.

        Args:
            given: For each node, the name of its holder, the number of its examples, and what it agrees to send.
            errors: For each node that did not say so, why.

        Raises:
            ValueError: Two nodes have the same holder, or one does not send what is asked for.
        """
        names = [name for name, _, _ in given.values()]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"federated: several nodes say that they are holder {name_list(twice)}; give every node its own part "
                f"of the data{see('how-to/federated')}"
            )
        sizes = dict(self._report.holders)
        for node, (name, examples, send) in given.items():
            if send != self.send:
                raise ValueError(
                    f"federated send={self.send!r}: holder {name!r} agreed to send {send} only{see('how-to/federated')}"
                )
            if examples < 1 or sizes.get(name, examples) != examples:
                raise ValueError(
                    f"federated: holder {name!r} says that it has {examples} examples, and had {sizes.get(name, 1)} "
                    f"before; begin a new training with other data{see('how-to/federated')}"
                )
            sizes[name], self._nodes[name] = examples, node
        self._unknown = {f"node {node}": reason for node, reason in errors.items()}
        for number in range(self._expected - len(sizes) - len(errors)):
            self._unknown[f"unknown {number + 1}"] = "it has never been connected"
        self._report = self._changed(holders=sizes)
        self.model.num_data = max(sum(sizes.values()), 1)

    def begin(self, connected: Iterable[int], began: float) -> list[int]:
        """Begin a round, and return the nodes to ask: those of all holders that are connected and have not sent.

        Args:
            connected: The nodes that are connected.
            began: When the round began, by `time.perf_counter`.

        Raises:
            QuorumError: They are too few.
        """
        here, self._began = set(connected), began
        self._asked = {node: name for name, node in self._nodes.items() if node in here and name not in self.received}
        if len(self._asked) + len(self.received) < self.quorum:
            self._close(
                {}, {name: "it was asked for nothing, as too few are connected" for name in self._asked.values()}
            )
        return list(self._asked)

    def average(self, answers: Iterable[Answer], timeout: float) -> dict[str, Tensor]:
        """End a round in which weights were sent: their mean becomes the state of the server.

        Args:
            answers: The answers.
            timeout: How long the server waited, for the report.

        Returns:
            The mean.

        Raises:
            QuorumError: Too few sent weights that can be averaged; nothing was changed.
        """
        start, kept = weights_of(self.model, self.guide), kept_names(self.model, self.guide)
        good, faults = self._sorted(answers, timeout, lambda who, given: check_weights(who, given, start, kept))
        if len(good) >= self.quorum:
            load_weights(self.model, self.guide, average(good, self._report.holders))
        self._close(good, faults)
        return weights_of(self.model, self.guide)

    def collect(self, answers: Iterable[Answer], timeout: float) -> None:
        """End a round in which obfuscated examples were sent; they are kept in a file.

        Args:
            answers: The answers.
            timeout: How long the server waited, for the report.

        Raises:
            QuorumError: Too few have sent examples by now. What was received is kept nonetheless.
        """
        good, faults = self._sorted(answers, timeout, self._check_examples)
        self.received.update({name: dict(tensors) for name, tensors in good.items()})
        tensors = {f"{name}.{part}": value for name, own in self.received.items() for part, value in own.items()}
        write_file(self.folder / "examples.safetensors", tensors, {"holders": list(self.received)})
        self._close(good, faults)

    def finish(self, score: float) -> Federated:
        """The report with the score at the end, which is written with the state of the server.

        Args:
            score: The score.
        """
        self._report = self._changed(score=score)
        self._write()
        return self._report

    def _sorted(
        self, answers: Iterable[Answer], timeout: float, check: Callable[[str, Mapping[str, Tensor]], None]
    ) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, str]]:
        """Usable answers by holder, in the order of their names, and why others are none."""
        faults = {name: f"no answer within {timeout:g} s" for name in self._asked.values()}
        good = {}
        for answer in answers:
            name = self._asked.get(answer.node)
            if name is None:
                continue
            faults[name] = answer.error or ""
            if answer.error is None:
                try:
                    if answer.examples != self._report.holders[name]:
                        raise ValueError(
                            f"it counts {answer.examples} examples now, and {self._report.holders[name]} before"
                        )
                    check(f"holder {name!r}", answer.tensors)
                    good[name] = answer.tensors
                    del faults[name]
                except ValueError as error:
                    faults[name] = f"refused: {error}"
        return {name: good[name] for name in sorted(good)}, faults

    def _check_examples(self, who: str, given: Mapping[str, Tensor]) -> None:
        x, y = self.validation
        if set(given) != {"inputs", "labels"}:
            raise ValueError(f"{who}: expected inputs and labels, got {name_list(given)}")
        for name, own, other in (("inputs", given["inputs"], x), ("labels", given["labels"], y)):
            if (own.shape[1:], own.dtype) != (other.shape[1:], other.dtype):
                raise ValueError(
                    f"{who}: expected {name} as in the validation data, {other.dtype} of shape "
                    f"{tuple(other.shape[1:])}, got {own.dtype} of shape {tuple(own.shape[1:])}"
                )
        if len(given["inputs"]) != len(given["labels"]) or not len(given["inputs"]):
            raise ValueError(f"{who}: {len(given['inputs'])} inputs and {len(given['labels'])} labels do not fit")
        if not bool(torch.isfinite(given["inputs"]).all()):
            raise ValueError(f"{who}: NaN or infinite entries among the inputs")
        low, high = y.min(), y.max()
        if bool(((given["labels"] < low) | (given["labels"] > high)).any()):
            raise ValueError(f"{who}: expected labels from {low:g} to {high:g}, as in the validation data, got others")

    def _close(self, good: Mapping[str, Any], faults: Mapping[str, str]) -> None:
        """End the round: it is counted, or it has failed; either way it is written down."""
        away = {name: "it was not connected" for name in self._report.holders if name not in (*good, *faults)}
        missing = {**{n: why for n, why in away.items() if n not in self.received}, **faults, **self._unknown}
        failed = len({*good, *self.received}) < self.quorum
        score = None if failed or self.send == "examples" else self.measure()
        examples = sum(self._report.holders[name] for name in good)
        seconds = time.perf_counter() - self._began
        entry = FederatedRound(self.done + 1, tuple(good), missing, examples, score, seconds, failed)
        self._unknown = {}
        self._report = self._changed(rounds=(*self._report.rounds, entry), score=score)
        self._write()
        if failed:
            count = len({*good, *self.received})
            raise QuorumError(
                f"federated round {entry.number}: {count} of at least {self.quorum} data holders gave a usable answer; "
                "the state before the round stands, and resume=True goes on from it. Without answer: "
                f"{'; '.join(f'{name}: {why}' for name, why in missing.items()) or 'nobody was connected'}"
                f"{see('how-to/federated')}",
                self._report,
            )

    def _changed(self, **fields: Any) -> Federated:
        parts = {name: getattr(self._report, name) for name in Federated.__dataclass_fields__}
        return Federated(**{**parts, **fields})

    def _write(self) -> None:
        save(self.path, self.model, self.guide, federated=self._report.to_dict())

    def _resume(self) -> None:
        _, content = read_file(self.path)
        found = content.get("extra", {}).get("federated")
        if not isinstance(found, dict) or found.get("send") != self.send:
            raise ValueError(
                f"federated resume: {self.path} is not the state of a training with send={self.send!r}; give another "
                f"folder{see('how-to/federated')}"
            )
        before, self.model.num_data = self.model.num_data, content["num_data"]
        try:
            load(self.path, self.model, self.guide)
        except ValueError:
            self.model.num_data = before
            raise
        self._report = Federated.from_dict({**found, "quorum": self.quorum})
        file = self.folder / "examples.safetensors"
        if self.send == "examples" and file.exists():
            tensors, kept = read_file(file)
            self.received = {
                name: {part: tensors[f"{name}.{part}"] for part in ("inputs", "labels")} for name in kept["holders"]
            }

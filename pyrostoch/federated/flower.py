"""The two ends of a federated training on Flower: the app of a data holder, and the rounds of the server.

Flower is imported inside the functions; `constraints-federated.txt` has the versions beside which pyrostoch was tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pyrostoch._checks import check_count, check_positive
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch.federated.holder import Holder
from pyrostoch.federated.report import Federated
from pyrostoch.federated.rounds import Answer, Rounds, Score, network_alone
from pyrostoch.federated.weights import weights_of
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate.bypass import LAYER
from pyrostoch.obfuscate.examples import MixedExamples
from pyrostoch.obfuscate.screening import Screening
from pyrostoch.training.fit import fit
from pyrostoch.training.fixed import fixed, parameters_below

__all__ = ["client_app", "serve"]

_POLL = 0.5

#: Makes a data holder from the configuration of its node and that of the run.
Build = Callable[[Mapping[str, Any], Mapping[str, Any]], Holder]


def client_app(build: Build) -> Any:
    """The Flower app of a data holder, which answers the requests of `serve`.

    It says who it is, trains in a round, or sends obfuscated examples, as far as the holder agreed to that.

    Args:
        build: Makes the holder from the configuration of its node, such as `{"partition-id": 3, ...}`, and that of the
            run. It is called for every request, each of which Flower runs in a process of its own. What leaves the
            holder should be decided there and not by the run, whose configuration comes from the server.

    Returns:
        A `flwr.clientapp.ClientApp`.

    Raises:
        ImportError: Flower is not installed.
    """
    flwr = _flower("client_app")
    app = flwr.ClientApp()

    def reply(message: Any, holder: Holder, tensors: Mapping[str, Tensor]) -> Any:
        records = {
            "arrays": _arrays(flwr, tensors),
            "metrics": flwr.MetricRecord({"num-examples": holder.examples_held}),
            "words": flwr.ConfigRecord({"holder": holder.name, "send": holder.send}),
        }
        return flwr.Message(flwr.RecordDict(records), reply_to=message)

    @app.query("introduce")
    def introduce(message: Any, context: Any) -> Any:
        holder = build(context.node_config, context.run_config)
        return reply(message, holder, {})

    @app.train()
    def train(message: Any, context: Any) -> Any:
        holder, config = build(context.node_config, context.run_config), message.content["config"]
        weights = _tensors(message.content["arrays"])
        return reply(message, holder, holder.train(weights, num_data=config["num-data"], seed=config["seed"]))

    @app.query("examples")
    def examples(message: Any, context: Any) -> Any:
        holder = build(context.node_config, context.run_config)
        sent = holder.obfuscated(seed=message.content["config"]["seed"])
        return reply(message, holder, {"inputs": sent.inputs, "labels": sent.labels})

    return app


def serve(
    grid: Any,
    model: BayesianModel,
    guide: nn.Module,
    *,
    # What.
    send: Literal["weights", "examples"],
    holders: int,
    quorum: int,
    validation: tuple[Tensor, Tensor],
    score: Score | None = None,
    # How long.
    rounds: int,
    timeout: float = 3600.0,
    wait: float = 60.0,
    # How.
    screening: Screening | None = Screening(),  # noqa: B008 - it is frozen
    epochs: int | None = None,
    seed: int = 0,
    folder: str | Path,
    resume: bool = False,
    **settings: Any,
) -> Federated:
    r"""Train a network over data holders that are connected to a Flower grid, who send weights or obfuscated examples.

    With `send="weights"`, each round all holders train on from the server's weights, and the server takes the mean,
    each counted by its number of examples (federated averaging). With `send="examples"`, each holder sends its
    obfuscated examples once; those who did not are asked again in the next round. Then the server trains the network on
    them, while parts of them are hidden at random at every iteration.

    A holder that does not answer, or whose answer cannot be used, is left out of a round, and the report names it. A
    round with fewer answers than the quorum fails: it changes nothing, and raises. The state of the server is written
    to a file after every round.

    Args:
        grid: The Flower grid that a `ServerApp` gets.
        model: The server's model. Its `num_data` becomes the number of examples of all holders.
        guide: Its guide.
        send: What the holders send.
        holders: Number of data holders; the first round waits for all of them, up to `wait` seconds.
        quorum: The fewest answers with which a round counts; below the number of holders, so that one of them may fail.
        validation: The server's clean data `(x, y)` for scores; hold them out.
        score: Another score of `(model, guide)` than the accuracy by the mean; a larger one is better. The network is
            without a stochastic layer in front of it while it runs.
        rounds: Number of rounds of training, or the largest number of rounds in which missing examples are asked for.
        timeout: Seconds that a round waits for answers.
        wait: Seconds that a round waits for enough holders to be connected.
        screening: What is hidden of obfuscated examples; `None` for nothing.
        epochs: Number of epochs of the server's training on obfuscated examples.
        seed: Seed of everything that is random, but for the noise on examples.
        folder: A folder for the state of the server.
        resume: Go on from the state in this folder, if there is any; rounds that it counted are not done again.
        **settings: Settings of `fit` for the server's training on obfuscated examples.

    Returns:
        Who answered in each round, and scores.

    Raises:
        ImportError: Flower is not installed.
        QuorumError: Too few holders answered; its `report` says which did not.
        ValueError: A setting does not fit, or a holder does not send what is asked for.

    References:
        McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
    """
    check_count("serve holders", holders)
    check_count("serve rounds", rounds)
    check_positive("serve timeout", timeout)
    if check_count("serve quorum", quorum) > holders:
        raise ValueError(f"serve quorum: {quorum} of {holders} data holders can never answer{see('how-to/federated')}")
    if (send == "examples") != (epochs is not None) or (settings and send == "weights"):
        raise ValueError(
            "serve: epochs= and settings of fit are those of the server's training on send='examples', which needs "
            f"epochs=; with send='weights' each holder has its own{see('how-to/federated')}"
        )
    flwr = _flower("serve")
    server = Rounds(
        model,
        guide,
        send=send,
        holders=holders,
        quorum=quorum,
        validation=validation,
        score=score,
        folder=Path(folder),
        resume=resume,
    )
    line = _Line(flwr, grid, server, holders, timeout, wait, seed)
    if send == "weights":
        if server.done < rounds:
            strategy = _strategy(flwr, line)
            strategy.start(
                grid, _arrays(flwr, weights_of(model, guide)), num_rounds=rounds - server.done, timeout=timeout
            )
        return server.report
    while server.done < rounds and len(server.received) < holders:
        nodes = line.begin()
        server.collect(line.ask(nodes, "query.examples", {"seed": seed}), timeout)
    _train_on(server, screening, check_count("serve epochs", epochs), mixed_seed(seed, 1), resume, settings)
    return server.finish(server.measure())


class _Line:
    """Messages between the server and the nodes."""

    def __init__(
        self, flwr: Any, grid: Any, server: Rounds, holders: int, timeout: float, wait: float, seed: int
    ) -> None:
        self.flwr, self.grid, self.server, self.timeout = flwr, grid, server, timeout
        self.seed, self._wanted, self._wait = seed, holders, wait
        self._sent: list[Any] = []

    def begin(self) -> list[int]:
        """Wait for enough nodes, ask new ones who they are, begin a round, and return the nodes that take part."""
        server, began = self.server, time.perf_counter()
        while len(nodes := list(self.grid.get_node_ids())) < self._wanted and time.perf_counter() - began < self._wait:
            time.sleep(_POLL)
        self._wanted = server.quorum  # the first round waits for all
        new = server.unknown(nodes)
        known: dict[int, tuple[str, int, str]] = {}
        errors = {node: f"no answer within {self.timeout:g} s" for node in new}
        for reply in self._replies(new, "query.introduce", {}):
            node = self._node_of(reply)
            errors[node] = _reason(reply) if reply.has_error() else ""
            if not reply.has_error():
                words, count = reply.content["words"], reply.content["metrics"]["num-examples"]
                known[node] = (str(words["holder"]), int(count), str(words["send"]))
                del errors[node]
        server.introduce(known, errors)
        return server.begin(nodes, began)

    def ask(self, nodes: Iterable[int], kind: str, config: Mapping[str, Any]) -> list[Answer]:
        """Ask nodes, and wait for their answers."""
        return [self.answer(reply) for reply in self._replies(nodes, kind, config)]

    def answer(self, reply: Any) -> Answer:
        """A reply as the server's side reads it."""
        node = self._node_of(reply)
        if reply.has_error():
            return Answer(node, {}, error=_reason(reply))
        try:
            return Answer(node, _tensors(reply.content["arrays"]), int(reply.content["metrics"]["num-examples"]))
        except (KeyError, ValueError, TypeError) as error:
            return Answer(node, {}, error=f"its answer cannot be read: {error}")

    def _replies(self, nodes: Iterable[int], kind: str, config: Mapping[str, Any]) -> Iterable[Any]:
        messages = self.messages(nodes, kind, {"config": self.flwr.ConfigRecord(dict(config))})
        return self.grid.send_and_receive(messages, timeout=self.timeout) if messages else []

    def messages(self, nodes: Iterable[int], kind: str, content: Mapping[str, Any]) -> list[Any]:
        """Messages with the same content to several nodes."""
        self._sent = [self.flwr.Message(self.flwr.RecordDict(dict(content)), node, kind) for node in nodes]
        return self._sent

    def _node_of(self, reply: Any) -> int:
        """The node that was asked; a reply that the SuperLink gives for a node that is gone does not name it."""
        asked = {message.metadata.message_id: message.metadata.dst_node_id for message in self._sent}
        return asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)


def _strategy(flwr: Any, line: _Line) -> Any:
    """Federated averaging of Flower, whose rounds fail where too few answered, and which waits for nobody for ever."""
    server = line.server

    class QuorumFedAvg(flwr.FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
            nodes = line.begin()
            config["num-data"], config["seed"] = server.model.num_data, mixed_seed(line.seed, server.done)
            return line.messages(nodes, "train", {self.arrayrecord_key: arrays, self.configrecord_key: config})

        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
            mean = server.average([line.answer(reply) for reply in replies], line.timeout)
            last = server.report.rounds[-1]
            return _arrays(flwr, mean), flwr.MetricRecord({"score": last.score, "num-examples": last.examples})

    return QuorumFedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)


def _train_on(
    server: Rounds, screening: Screening | None, epochs: int, seed: int, resume: bool, settings: Mapping[str, Any]
) -> None:
    """Train the network on what was sent, as it is: it has passed a layer before."""
    model, guide, own = server.model, server.guide, list(server.received.values())
    x, y = (torch.cat([tensors[part] for tensors in own]) for part in ("inputs", "labels"))
    mixed = MixedExamples(TensorDataset(x[:0], y[:0]), x, list(y), screening)
    model.num_data = len(mixed)
    with network_alone(model), fixed(parameters_below(model, guide, LAYER)):
        checkpoint = server.folder / "network.safetensors"
        fit(model, guide, mixed, epochs=epochs, seed=seed, checkpoint=checkpoint, resume=resume, **settings)


def _arrays(flwr: Any, tensors: Mapping[str, Tensor]) -> Any:
    return flwr.ArrayRecord({name: flwr.Array(value.numpy()) for name, value in tensors.items()})


def _tensors(arrays: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}


def _reason(reply: Any) -> str:
    """The beginning of an error that came in place of an answer, on one line."""
    return " ".join(str(reply.error.reason or "").split())[:400] or f"error {reply.error.code}"


def _flower(what: str) -> Any:
    """The parts of Flower that are used here."""
    try:
        from flwr import app, clientapp
        from flwr.serverapp import strategy
    except ImportError as error:
        raise ImportError(
            f"{what} needs Flower 1.42 or newer, which was not found ({error}): pip install -c "
            "constraints-federated.txt flwr, in an environment of its own, as `make federated` does"
            f"{see('how-to/federated')}"
        ) from error
    parts = {name: getattr(app, name) for name in app.__all__}
    return SimpleNamespace(**parts, ClientApp=clientapp.ClientApp, FedAvg=strategy.FedAvg)

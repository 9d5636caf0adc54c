"""A trial of an audited case: LeNet5 for "greater than 5", trained under noise, and what is read of what it sends."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.files import read_json, save_figure, write_json
from pyrostoch.bench.published.privacy_networks import (
    SPLITS,
    Choice,
    bottleneck,
    by_class,
    clean_network,
    isotropic,
    with_noise,
)
from pyrostoch.bench.published.privacy_scores import audit_numbers
from pyrostoch.bench.recipe import AuditRecipe
from pyrostoch.bench.trial import train_test_data
from pyrostoch.guides import Additive
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate import Client, audit
from pyrostoch.obfuscate.attackers import Attribute, Sent, read_by, train_attacker
from pyrostoch.obfuscate.sender import Sender
from pyrostoch.prediction.compare import compare
from pyrostoch.prediction.readouts import seeded
from pyrostoch.report import audit_pictures
from pyrostoch.training.fit import fit

__all__ = ["QUERIES", "AuditTrial"]

#: Numbers of queries that attackers read.
QUERIES = (1, 10, 100)
# Share of the training images on which strengths are chosen.
_HELD_OUT = 0.1

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Part:
    """Images, their digits, and whether these are greater than 5."""

    x: Tensor
    digit: Tensor

    @property
    def task(self) -> Pair:
        return self.x, (self.digit > 5).long()

    def first(self, count: int) -> _Part:
        return _Part(self.x[:count], self.digit[:count])


class AuditTrial:
    """What all kinds of noise have in common: the data, the network without noise, training, and what is kept of it.

    Args:
        context: The trial.
        at: Name of the layer whose activations are sent.
        kind: The kind of noise.
    """

    def __init__(self, context: TrialContext, at: str, kind: str) -> None:
        if not isinstance(context.recipe, AuditRecipe):
            raise TypeError(f"case {context.case.name}: expected an AuditRecipe, got {type(context.recipe).__name__}")
        self.context, self.recipe, self.at, self.kind = context, context.recipe, at, kind
        self.device = torch.device(context.setting.device)
        train, test = train_test_data(context.require_split(), self.recipe, self.device)
        held = round(_HELD_OUT * len(train[0]))
        self.train = _Part(train[0][:-held], train[1][:-held])
        self.held_out, self.test = _Part(train[0][-held:], train[1][-held:]), _Part(*test)
        self._file = context.checkpoint().with_name("steps.json")
        self._steps: dict[str, Any] = read_json(self._file) if self._file.is_file() else {}
        self.clean = self._clean()

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """What a step has found, now or before the trial was interrupted.

        Args:
            name: Name of the step.
            compute: Computes it, as plain data.
        """
        if name not in self._steps:
            self._steps[name] = compute()
            write_json(self._file, self._steps)
        return self._steps[name]

    def _settings(self, name: str) -> dict[str, Any]:
        # Compiling a step takes longer than these few epochs save.
        return self.context.settings(name) | {"compile": False}

    def _model(self, network: nn.Module) -> tuple[BayesianModel, Additive]:
        model = BayesianModel(network, likelihood=Categorical(), num_data=len(self.train.x)).to(self.device)
        return model, Additive(model)

    def _clean(self) -> nn.Sequential:
        with seeded(self.context.seed, self.device):
            network = clean_network().to(self.device)
        model, guide = self._model(network)
        fit(model, guide, self.train.task, epochs=self.recipe.clean_epochs, **self._settings("clean"))
        return network

    def trained(self, strength: float) -> Client:
        """The client after training under noise of a strength, with the rest of the network.

        Args:
            strength: The weight of the rate, or the standard deviation beside the size of the activations.
        """
        name, epochs = f"{self.kind}.{strength:.4g}", self.recipe.epochs
        with seeded(self.context.seed, self.device):
            noise = self._noise(strength)
        network = with_noise(self.clean, self.at, noise)
        model, guide = self._model(network)
        settings: dict[str, Any] = {} if self.kind == "isotropic" else {"rate_weight": strength}
        if self.kind != "predicted":
            fit(model, guide, self.train.task, epochs=2 * epochs, **settings, **self._settings(name))
            return Client(model, guide, at="noise.draw" if self.kind == "isotropic" else "noise")
        fit(model, guide, self.train.task, epochs=epochs, **settings, **self._settings(name))
        # The gate chooses from now on, and what it reads stays as it was.
        layer: Any = noise
        layer.selection = Choice(layer.selection.gate)
        client = [network.get_submodule(part) for part in list(SPLITS)[: list(SPLITS).index(self.at) + 1]]
        nn.ModuleList([*client, layer.selection]).requires_grad_(False)
        fit(model, guide, self.train.task, epochs=epochs, **settings, **self._settings(f"{name}.choice"))
        return Client(model, guide, at="noise")

    def _noise(self, strength: float) -> nn.Module:
        if self.kind == "isotropic":
            return isotropic(self.at, self.norm, self.scale(strength))
        return bottleneck(self.at) if self.kind == "bottleneck" else by_class(self.at)

    @property
    def norm(self) -> float:
        """The median norm of the clean activations, to which isotropic noise clips them."""
        return float(self.activations(self.train.first(self.recipe.attackers)).flatten(1).norm(dim=1).median())

    def scale(self, strength: float) -> float:
        """The standard deviation of isotropic noise: a multiple of the size of clipped activations.

        Args:
            strength: The multiple.
        """
        return strength * self.norm / torch.Size(SPLITS[self.at]).numel() ** 0.5

    @torch.no_grad()
    def activations(self, part: _Part) -> Tensor:
        """What the clean network computes up to the cut.

        Args:
            part: Images.
        """
        client = self.clean[: list(SPLITS).index(self.at) + 1]
        return torch.cat([client(x) for x in part.x.split(1000)])

    def accuracy(self, client: Client, part: _Part, mode: str = "mc:1") -> float:
        """The share of right answers to the task from what is sent once.

        Args:
            client: The client.
            part: Images.
            mode: How many queries.
        """
        row: Any = compare(client.model, client.guide, part.task, modes=(mode,), seed=self.context.seed).rows[0]
        return float(row.accuracy)

    def digits_read(self, client: Client) -> dict[str, float]:
        """The share of digits that an attacker reads from one query, of held-out and of test images.

        Args:
            client: The client.
        """
        own = self.train.first(self.recipe.attackers)
        count = round(0.9 * len(own.x))
        parts = {
            "train": own.first(count),
            "validation": _Part(own.x[count:], own.digit[count:]),
            "held-out": self.held_out,
            "test": self.test,
        }
        senders = {name: Sender(client, part.x) for name, part in parts.items()}

        def send(name: str, seed: int) -> Sent:
            return senders[name].send(1, seed=seed)

        attack = Attribute(10)
        found = train_attacker(
            attack,
            send,
            {name: parts[name].digit for name in ("train", "validation")},
            epochs=self.recipe.most_epochs,
            until_it_stops=True,
            seed=self.context.seed,
        )
        return {
            name: float(attack.score(read_by(found.network, send(name, self.context.seed)), parts[name].digit).mean())
            / 100.0
            for name in ("held-out", "test")
        }

    def probe(self, client: Client) -> float:
        """How often a linear map of what would be sent without noise tells the task: what the client could compute.

        Args:
            client: The client.
        """
        count = round(0.9 * len(self.train.x))
        parts = {
            "train": self.train.first(count),
            "validation": _Part(self.train.x[count:], self.train.digit[count:]),
            "test": self.test,
        }
        sent = {name: Sender(client, part.x).noise_free() for name, part in parts.items()}
        attack = _Linear(2)
        found = train_attacker(
            attack,
            lambda name, seed: sent[name],
            {name: parts[name].task[1] for name in ("train", "validation")},
            epochs=self.recipe.most_epochs,
            until_it_stops=True,
            seed=self.context.seed,
        )
        return float(attack.score(read_by(found.network, sent["test"]), self.test.task[1]).mean()) / 100.0

    def audited(self, client: Client) -> dict[str, float]:
        """The whole audit on test images, as numbers.

        Args:
            client: The client.
        """
        own = self.train.first(self.recipe.attackers)
        found = audit(
            client,
            own.task,
            self.test.task,
            private={"digit": (own.digit, self.test.digit)},
            queries=QUERIES,
            epochs=self.recipe.attack_epochs,
            most_epochs=self.recipe.most_epochs,
            inverted=self.recipe.inverted,
            seed=self.context.seed,
        )
        setting = self.context.setting
        if self.context.seed == 0 and self.kind == "gate" and not setting.holdout:
            name = f"privacy-{self.at}-{setting.preset}.png"
            save_figure(audit_pictures(found), setting.out / "figures" / name)
        metrics = audit_numbers(found) | {"probe": self.probe(client)}
        clean, guide = self._model(copy.deepcopy(self.clean))
        row: Any = compare(clean, guide, self.test.task, modes=("mean",)).rows[0]
        return metrics | {"accuracy/clean": float(row.accuracy)}


class _Linear(Attribute):
    """A linear map of what is sent."""

    def network(self, sent: Sent) -> nn.Module:
        return _Flat(sum(part[0].numel() for part in sent), self.num_classes)


class _Flat(nn.Module):
    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(size, num_classes)

    def forward(self, sent: Sent) -> Tensor:
        found: Tensor = self.last(torch.cat([part.flatten(1) for part in sent], 1))
        return found

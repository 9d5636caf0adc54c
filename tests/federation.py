"""Small networks, data and holders for the tests of federated training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.federated import Holder
from pyrostoch.federated.rounds import Answer, Rounds

SETTINGS: dict[str, Any] = {"batch_size": 8, "lr": 0.02, "progress": False, "compile": False}
EPOCHS = {"clean": 2, "classes": 2}


def blobs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of two classes, none twice."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, (x[:, 0] > 0).long()


def plain(num_data: int = 60, **made: Any) -> tuple[ps.BayesianModel, nn.Module]:
    """A network with random weights."""
    torch.manual_seed(1)
    net = made.get("net") or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=num_data)
    return model, ps.guides.Additive(model)


def behind_noise(num_data: int = 60, scale: float = 0.5) -> tuple[ps.BayesianModel, nn.Module]:
    """A network behind a layer of noise for each class."""
    torch.manual_seed(1)
    layer = ps.layers.Conditional(lambda: ps.layers.StochasticAdditive(4, scale=scale), 2, where="output")
    net = ps.layers.embody.prepend(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), layer)
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=num_data)
    return model, ps.guides.Additive(model)


def weights_holder(name: str, data: tuple[Tensor, Tensor], **settings: Any) -> Holder:
    """A holder of a plain network, who sends weights."""
    model, guide = plain(len(data[0]))
    given: dict[str, Any] = {"epochs": {"clean": 2}, "send": "weights", "settings": SETTINGS}
    return Holder(name, model, guide, data, **{**given, **settings})


def examples_holder(name: str, data: tuple[Tensor, Tensor], folder: Path, **settings: Any) -> Holder:
    """A holder who sends obfuscated examples."""
    model, guide = behind_noise(len(data[0]))
    given: dict[str, Any] = {
        "epochs": EPOCHS,
        "send": "examples",
        "settings": SETTINGS,
        "labels_in_clear": True,
        "least_noise": 0.1,
        "sent": folder / f"{name}.safetensors",
    }
    return Holder(name, model, guide, data, **{**given, **settings})


def rounds(folder: Path, send: str = "weights", quorum: int = 2, resume: bool = False, **made: Any) -> Rounds:
    """The server's side."""
    model, guide = made.get("made") or (plain() if send == "weights" else behind_noise())
    return Rounds(
        model,
        guide,
        send=send,
        holders=made.get("holders", 1),
        quorum=quorum,
        validation=blobs(40, seed=99),
        score=made.get("score"),
        folder=folder,
        resume=resume,
    )


def met(server: Rounds, sizes: dict[str, int]) -> list[int]:
    """Introduce holders, whose nodes are numbered from 10 up, and begin a round."""
    server.introduce({10 + i: (name, size, server.send) for i, (name, size) in enumerate(sizes.items())}, {})
    return server.begin(range(10, 10 + len(sizes)), 0.0)


def answer(node: int, tensors: dict[str, Tensor], examples: int, error: str | None = None) -> Answer:
    """What came of a request."""
    return Answer(node, tensors, examples, error)

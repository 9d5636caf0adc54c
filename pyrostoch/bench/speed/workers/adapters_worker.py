"""Adapters of a large network that is fixed: a step with random ones, and the same step with ordinary ones."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch.guides import Additive
from pyrostoch.infer import ELBO
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Normal

from .common import data_term, waiter
from .task import LR, NUM_DATA, SCALE, Task, TimedStep

__all__ = ["Encoder", "build"]

_LAYERS, _WIDTH, _HEADS, _TOKENS, _WORDS, _RANK, _CLASSES = 6, 256, 4, 64, 1000, 8, 3
# Number of different batches, which are used in turn.
_BATCHES = 4


class _Adapted(nn.Module):
    """A linear layer plus a product of two small ones that starts at zero (Hu et al., "LoRA", 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.lora_A, self.lora_B = nn.Linear(width, _RANK, bias=False), nn.Linear(_RANK, width, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.lora_B(self.lora_A(x))


class _Layer(nn.Module):
    """A layer of an encoder, with adapters of queries and values."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = _Adapted(_WIDTH), nn.Linear(_WIDTH, _WIDTH), _Adapted(_WIDTH)
        self.out, self.up, self.down = (
            nn.Linear(before, width) for before, width in ((_WIDTH, _WIDTH), (_WIDTH, 4 * _WIDTH), (4 * _WIDTH, _WIDTH))
        )
        self.first, self.second = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        met = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = self.first(x + self.out(met))
        return self.second(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """An encoder of six layers, of which adapters and head are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(_WORDS, _WIDTH), nn.Parameter(torch.randn(_TOKENS, _WIDTH))
        self.layers = nn.Sequential(*(_Layer() for _ in range(_LAYERS)))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.head = nn.Linear(_WIDTH, _CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of sequences of words."""
        out: Tensor = self.head(self.layers(self.words(tokens) + self.places)[:, 0])
        return out


def build(task: Task) -> TimedStep:
    """The implementations `adapters-plain` and `adapters-random`."""
    pyro.enable_validation(False)
    torch.manual_seed(task.seed)
    net = Encoder().to(task.device)
    data = [
        (
            torch.randint(_WORDS, (task.examples, _TOKENS), device=task.device),
            torch.randint(_CLASSES, (task.examples,), device=task.device),
        )
        for _ in range(_BATCHES)
    ]

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return data_term(net(x), y)

    loss: Any = plain
    trained: nn.Module = net
    if task.implementation == "adapters-random":
        prior = {"*.lora_[AB].weight": Normal(0.0, 0.1)}
        model = BayesianModel(net, prior=prior, likelihood=Categorical(), num_data=NUM_DATA)
        loss = trained = ELBO()(model, Additive(model, init_scale=SCALE).to(task.device))
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], lr=LR)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(*data[number % len(data)])
        value.backward()
        optimizer.step()
        return value

    return TimedStep(step, waiter(task.device))

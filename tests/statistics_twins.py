"""What tests of running statistics compare with: networks of torch alone, with the weights and buffers of a member."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.guides.statistics import statistics_of

SETTINGS: dict[str, Any] = {"batch_size": 8, "lr": 1e-2, "seed": 0, "progress": False, "compile": False}
SGD: dict[str, Any] = {**SETTINGS, "lr": 1e-4, "optimizer": torch.optim.SGD, "schedule": "constant"}


def everywhere(name: str, value: Tensor) -> ps.priors.Prior:
    return ps.priors.Normal(0.0, 1.0)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).double()


def data(kind: str = "dense", count: int = 40) -> tuple[Tensor, Tensor]:
    x = 1.5 + 2.0 * (torch.randn(count, 3) if kind == "dense" else torch.randn(count, 1, 6, 6)).double()
    return x, torch.stack([x.flatten(1)[:, 0].sin(), x.flatten(1).mean(1)], 1)


def model_of(net: nn.Module | None = None, num_data: int = 40) -> ps.BayesianModel:
    net = dense() if net is None else net
    return ps.BayesianModel(net, prior=everywhere, likelihood=ps.likelihoods.Gaussian(0.5), num_data=num_data)


def state_of(member: Any) -> dict[str, Tensor]:
    """Weights and buffers of a point."""
    own = statistics_of(member)
    buffers = {} if own is None else own.values()
    weights = {name: member.parameters_for(name)["loc"] for name in member.site_names}
    return {name: value.detach().clone() for name, value in {**weights, **buffers}.items()}


def plain(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A network of torch alone."""
    copied = copy.deepcopy(net).requires_grad_(False)
    copied.load_state_dict(state, strict=False)
    return copied.eval()


def passed(net: nn.Module, weights: dict[str, Tensor], x: Tensor, batch_size: int) -> nn.Module:
    """A network of torch alone after a pass in training mode, with the mean over batches weighted by their size."""
    copied: Any = plain(net, weights)
    norms = [part for part in copied.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    for part in norms:
        part.reset_running_stats()
        part.train()
    seen = 0
    with torch.no_grad():
        for batch in x.split(batch_size):
            seen += len(batch)
            for part in norms:
                part.momentum = len(batch) / seen
            copied(batch)
    return copied.eval()

"""Models with random activations, and comparisons of averages, for several tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pyrostoch as ps

F64 = torch.float64
N, B = 40, 8


def data(batch: int = B, features: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, features, dtype=F64), torch.randint(0, 2, (batch,))


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).double()


def model_of(net: nn.Module, prior: Any = None, likelihood: Any = None) -> ps.BayesianModel:
    likelihood = ps.likelihoods.Categorical() if likelihood is None else likelihood
    return ps.BayesianModel(net.double(), prior=prior, likelihood=likelihood, num_data=N)


def mean_and_error(draw: Callable[[], Any], count: int) -> tuple[Tensor, Tensor]:
    values = torch.stack([torch.as_tensor(draw(), dtype=F64).detach() for _ in range(count)])
    return values.mean(0), values.std(0) / math.sqrt(count)


def assert_same_mean(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], sigmas: float = 5.0) -> None:
    error = (one[1].square() + other[1].square()).sqrt()
    assert ((one[0] - other[0]).abs() <= sigmas * error + 1e-9).all(), (one, other)

"""A network with two heads, its data and its likelihood, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.likelihoods import Categorical, Gaussian, Joint

F64 = torch.float64
N = 24
QUIET: dict[str, Any] = {"progress": False, "seed": 0, "lr": 0.01, "compile": False}


class Heads(nn.Module):
    """A body with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x).tanh()
        return {"kind": self.kind(features), "size": self.size(features)}


def data_of(dtype: torch.dtype = F64) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.randn(N, 3, dtype=dtype)
    return x, {"kind": torch.randint(0, 3, (N,)), "size": torch.randn(N, 2, dtype=dtype)}


def model_of(likelihood: Any, net: nn.Module | None = None, *, prior: Any = None, **settings: Any) -> ps.BayesianModel:
    return ps.BayesianModel(
        (net or Heads()).to(F64), prior=prior, likelihood=likelihood, **({"num_data": N} | settings)
    )


def joint() -> Joint:
    return Joint({"kind": Categorical(), "size": Gaussian(0.7)})

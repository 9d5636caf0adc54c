"""Layers: torch's own with priors on their parameters, and dropout that interpretations control.

| layer | what it is |
| --- | --- |
| `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d`, `Embedding`, `LSTM`, `GRU`, `MultiheadAttention` | torch's layer of that name, its signature plus `prior=` and `name=` |
| `RandomWeights` | the mixin that makes any layer one of these |
| `Stochastic` | a module of your own that holds such layers, as guides want it |
| `MCDropout`, `MCDropout2d` | dropout that is on while sampling and off under mean propagation |

Inside a `BayesianModel` the model draws the weights; used alone in a Pyro model a layer draws its own.
"""  # noqa: E501

from __future__ import annotations

from pyrostoch.layers.dropout import MCDropout, MCDropout2d
from pyrostoch.layers.standard import (
    GRU,
    LSTM,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    Linear,
    MultiheadAttention,
)
from pyrostoch.layers.stochastic import Stochastic
from pyrostoch.layers.weights import RandomWeights

__all__ = [
    "GRU",
    "LSTM",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Linear",
    "MCDropout",
    "MCDropout2d",
    "MultiheadAttention",
    "RandomWeights",
    "Stochastic",
]

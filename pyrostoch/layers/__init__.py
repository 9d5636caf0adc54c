"""Layers: torch's own with priors on their parameters, and noise that interpretations control.

| layer | what it is |
| --- | --- |
| `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d` | torch's layer of that name, with `prior=` and `name=` |
| `Embedding`, `LSTM`, `GRU`, `MultiheadAttention` | the same; one draw serves every token or time step |
| `RandomWeights` | the mixin that makes any layer one of these |
| `PyroNetwork` | a module of your own that holds such layers, as guides want it |
| `MCDropout`, `MCDropout2d` | dropout that is on while sampling and off under mean propagation |
| `KState`, `Ternary`, `Binary` | neurons with k states behind noise: drawn, averaged, or carried by moments |
| `ThresholdNeuron` | those of 0 and 1, with correlated noise, and a gain and a bias for homeostasis |
| `RateNetwork` | recurrent rectified-power rates driven by noise with memory: trajectories, or their moments |

Inside a `BayesianModel` the model draws the weights; used alone in a Pyro model a layer draws its own.
"""

from __future__ import annotations

from pyrostoch.layers.dropout import MCDropout, MCDropout2d
from pyrostoch.layers.kstate import Binary, KState, Ternary
from pyrostoch.layers.network import PyroNetwork
from pyrostoch.layers.neuron import ThresholdNeuron
from pyrostoch.layers.recurrent import RateMoments, RateNetwork
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
from pyrostoch.layers.weights import RandomWeights

__all__ = [
    "GRU",
    "LSTM",
    "Binary",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "KState",
    "Linear",
    "MCDropout",
    "MCDropout2d",
    "MultiheadAttention",
    "RandomWeights",
    "RateMoments",
    "RateNetwork",
    "PyroNetwork",
    "Ternary",
    "ThresholdNeuron",
]

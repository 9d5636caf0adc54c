"""Layers: torch's layers with priors on their parameters, and random activations that interpretations control.

| layer | what it is |
| --- | --- |
| `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d` | torch's layer of that name, with `prior=` and `name=` |
| `Embedding`, `LSTM`, `GRU`, `MultiheadAttention` | the same; all tokens or time steps share one draw |
| `RandomWeights` | the mixin that adds `prior=` and `name=` to any other layer |
| `PyroNetwork` | wraps your own module with such layers, so that guides can be built for it |
| `MCDropout`, `MCDropout2d` | dropout that is on while sampling and off under mean propagation |
| `KState`, `Ternary`, `Binary` | stochastic neurons with k states: drawn, or replaced by their mean or moments |
| `ThresholdNeuron` | stochastic neurons with states 0 and 1, correlated noise, and gain and bias for homeostasis |
| `StochasticLinear`, `StochasticConv1d/2d/3d` | kernels that give the parameters of an activation's distribution |
| `StochasticConvTranspose1d/2d/3d`, `StochasticLayer` | the same with transposed convolutions, and with any module |
| `StochasticLSTM`, `StochasticGRU` | recurrent networks whose activations are drawn; draws may feed the next step |
| `StochasticTransformerEncoderLayer` | an encoder layer of a transformer whose outputs are drawn |
| `StochasticSVM` | a linear machine whose margin is random |
| `StochasticAdditive` | noise with a mean and a standard deviation for each entry, added to the input |
| `Conditional` | a layer of its own for every class, chosen by labels or combined by a selection |
| `HardSelection`, `SoftSelection`, `GatedSelection` | known classes; learned tensors; a gate on the input |
| `PixelClasses` | the class of every pixel, from boxes or masks |
| `SelectedAt` | a network whose conditional layer is selected at another of its modules |
| `accept_labels` | lets a network take known classes as one more input |
| `make_stochastic` | turns linear layers and convolutions of a network into stochastic ones |
| `make_conditional` | gives every class a copy of layers of a network |
| `activations`, `embody` | the distributions of activations; stochastic layers around an existing network |
| `WithExposure` | a network of counts in times or areas that differ between examples |
| `RateNetwork` | recurrent network of rate neurons driven by colored noise: trajectories, or their moments |

In a `BayesianModel` the model draws the weights. Used alone in a Pyro model, a layer draws its own weights.
"""

from __future__ import annotations

from pyrostoch.layers import activations, embody
from pyrostoch.layers.conditional import (
    Conditional,
    GatedSelection,
    HardSelection,
    PixelClasses,
    SelectedAt,
    SoftSelection,
    accept_labels,
    make_conditional,
)
from pyrostoch.layers.convert import make_stochastic
from pyrostoch.layers.dropout import MCDropout, MCDropout2d
from pyrostoch.layers.exposure import WithExposure
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
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.layers.stochastic_additive import StochasticAdditive
from pyrostoch.layers.stochastic_kernels import (
    StochasticConv1d,
    StochasticConv2d,
    StochasticConv3d,
    StochasticConvTranspose1d,
    StochasticConvTranspose2d,
    StochasticConvTranspose3d,
    StochasticLinear,
)
from pyrostoch.layers.stochastic_recurrent import StochasticGRU, StochasticLSTM
from pyrostoch.layers.stochastic_svm import StochasticSVM
from pyrostoch.layers.stochastic_transformer import StochasticTransformerEncoderLayer
from pyrostoch.layers.weights import RandomWeights

__all__ = [
    "GRU",
    "LSTM",
    "Binary",
    "Conditional",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "GatedSelection",
    "HardSelection",
    "KState",
    "Linear",
    "MCDropout",
    "MCDropout2d",
    "MultiheadAttention",
    "PixelClasses",
    "PyroNetwork",
    "RandomWeights",
    "RateMoments",
    "RateNetwork",
    "SelectedAt",
    "SoftSelection",
    "StochasticAdditive",
    "StochasticConv1d",
    "StochasticConv2d",
    "StochasticConv3d",
    "StochasticConvTranspose1d",
    "StochasticConvTranspose2d",
    "StochasticConvTranspose3d",
    "StochasticGRU",
    "StochasticLSTM",
    "StochasticLayer",
    "StochasticLinear",
    "StochasticSVM",
    "StochasticTransformerEncoderLayer",
    "Ternary",
    "ThresholdNeuron",
    "accept_labels",
    "activations",
    "embody",
    "make_conditional",
    "make_stochastic",
    "WithExposure",
]

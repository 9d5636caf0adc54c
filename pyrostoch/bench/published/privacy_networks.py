"""The networks of the audited cases: LeNet5 for "greater than 5", with a layer of noise behind one of its layers."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from pyrostoch.layers import (
    Conditional,
    GatedSelection,
    StochasticAdditive,
    StochasticConv2d,
    StochasticLayer,
    StochasticLinear,
)

__all__ = ["SPLITS", "Choice", "bottleneck", "by_class", "clean_network", "isotropic", "with_noise"]

#: What the layers give that a client may send, for images of 28 x 28.
SPLITS: dict[str, tuple[int, ...]] = {"conv1": (6, 12, 12), "conv2": (16, 4, 4), "dense1": (120,)}

_CLASSES = 2
# Where learned noise starts; activations are about as large.
_SCALE = 0.3


def clean_network() -> nn.Sequential:
    """LeNet5 for two classes: 6 and 16 convolutions of 5 x 5, and 120 neurons."""
    parts = OrderedDict[str, nn.Module](
        conv1=nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        conv2=nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        dense1=nn.Sequential(nn.Flatten(), nn.Linear(256, 120), nn.ReLU()),
        dense2=nn.Linear(120, _CLASSES),
    )
    return nn.Sequential(parts)


def with_noise(network: nn.Sequential, at: str, noise: nn.Module) -> nn.Sequential:
    """A copy of a network with a module `noise` behind one of its parts.

    Args:
        network: The network.
        at: Name of the part.
        noise: The module.
    """
    found = OrderedDict[str, nn.Module]()
    for name, part in copy.deepcopy(network).named_children():
        found[name] = part
        if name == at:
            found["noise"] = noise
    return nn.Sequential(found)


def by_class(at: str) -> Conditional:
    """Noise of its own for each class, and a learned marginal: for maps, of each unit; else of a kernel.

    Its soft selection is a gate that is linear in what the client computes.

    Args:
        at: Name of the layer behind which it stands.
    """
    shape = SPLITS[at]
    gate = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), _CLASSES))

    def of_class() -> StochasticLayer:
        return StochasticAdditive(shape, scale=_SCALE, prior="learned") if len(shape) == 3 else bottleneck(at)

    return Conditional(of_class, _CLASSES, GatedSelection(gate), where="output")


class Choice(nn.Module):
    """A hard selection by the class that a gate finds likeliest.

    Args:
        gate: The gate.
    """

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """1 for the likeliest class, and 0 for others.

        Args:
            x: What the gate reads.
        """
        logits = self.gate(x)
        return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)


def bottleneck(at: str) -> StochasticLayer:
    """The plain information bottleneck: a linear map to means and standard deviations, and a learned marginal.

    Args:
        at: Name of the layer behind which it stands.
    """
    size = SPLITS[at][0]
    layer = (
        StochasticConv2d(size, size, 1, prior="learned")
        if len(SPLITS[at]) == 3
        else StochasticLinear(size, size, prior="learned")
    )
    with torch.no_grad():  # starts near the activation itself, under noise as large as that of the others
        weight, bias = layer.get_parameter("kernel.weight"), layer.get_parameter("kernel.bias")
        weight.mul_(0.1)
        weight[torch.arange(size), torch.arange(size)] += 1.0
        bias[size:] = torch.tensor(_SCALE).expm1().log()
    return layer


class Clipped(nn.Module):
    """Activations of which none is longer than a norm, which bounds how far two of them are apart.

    Args:
        norm: The largest norm of an example.
    """

    def __init__(self, norm: float) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Shorten those that are longer.

        Args:
            x: Activations, examples on their first axis.
        """
        length = x.flatten(1).norm(dim=1).clamp(min=self.norm)
        return x * (self.norm / length).reshape(-1, *([1] * (x.dim() - 1)))


def isotropic(at: str, norm: float, scale: float) -> nn.Sequential:
    """The Gaussian mechanism: activations clipped to a norm, under noise of one size, which is not trained.

    Args:
        at: Name of the layer behind which it stands.
        norm: The norm.
        scale: Standard deviation of the noise.
    """
    noise = StochasticAdditive(SPLITS[at], scale=scale).requires_grad_(False)
    return nn.Sequential(OrderedDict(clip=Clipped(norm), draw=noise))

"""The networks of the bench `conditional`: a layer of noise for each class, in or before a small convolutional one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pyrostoch.data import DataSplit
from pyrostoch.layers import Conditional, GatedSelection, SoftSelection, StochasticAdditive, StochasticConv2d, embody

__all__ = ["Build", "classifier", "conditional_network", "gate"]

_MAPS = 16
#: Where the noise starts: about as large as the images' standard deviation.
_SCALE = 0.3


@dataclass(frozen=True)
class Build:
    """A network with a conditional layer.

    Args:
        network: The whole.
        layer: The layer.
        selection: Makes its selection for unknown classes.
    """

    network: nn.Module
    layer: Conditional
    selection: Callable[[], nn.Module]


def classifier(channels: int, size: int) -> nn.Sequential:
    """Two convolutions and two fully connected layers, for square images with 10 classes.

    Args:
        channels: Number of channels.
        size: Height and width.
    """
    side = ((size - 4) // 2 - 4) // 2
    parts = OrderedDict[str, nn.Module](
        first=nn.Sequential(nn.Conv2d(channels, _MAPS, 5), nn.ReLU(), nn.MaxPool2d(2)),
        second=nn.Sequential(nn.Conv2d(_MAPS, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        third=nn.Sequential(nn.Linear(32 * side * side, 128), nn.ReLU()),
        last=nn.Linear(128, 10),
    )
    return nn.Sequential(parts)


def gate(channels: int, size: int) -> nn.Module:
    """A linear gate on averages over squares of an input; it has far fewer parameters than the network.

    Args:
        channels: Number of channels of what it reads.
        size: Its height and width.
    """
    side = size // 4
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(channels * side * side, 10))


def conditional_network(split: DataSplit, embodiment: str, kernel: str, selection: str) -> Build:
    """A classifier with a layer of noise for each class.

    Args:
        split: The data set, of square images.
        embodiment: `"prepend"`, `"merge_then_sample"` or `"sample_then_merge"`.
        kernel: `"additive"` or `"convolution"`.
        selection: `"gate"` or `"static"`.
    """
    channels, size = split.x_train.shape[1], split.x_train.shape[2]
    network = classifier(channels, size)
    inside = embodiment != "prepend"
    maps, side = (_MAPS, (size - 4) // 2) if inside else (channels, size)

    def of_class() -> nn.Module:
        if kernel == "additive":
            return StochasticAdditive((maps, side, side), scale=_SCALE)
        layer = StochasticConv2d(maps, maps, 5, padding=2)
        with torch.no_grad():  # starts near the image itself, under noise of the same size as that of the additive one
            weight, bias = layer.get_parameter("kernel.weight"), layer.get_parameter("kernel.bias")
            weight.mul_(0.1)
            weight[torch.arange(maps), torch.arange(maps), 2, 2] += 1.0
            bias[maps:] = -1.05
        return layer

    layer = Conditional(of_class, 10, where="output")
    if inside:
        branch = nn.Sequential(nn.Conv2d(channels, maps, 5), nn.MaxPool2d(2))
        whole: nn.Module = getattr(embody, embodiment)(network, "first", layer, branch, example=split.x_train[:2])
    else:
        whole = embody.prepend(network, layer)

    def make() -> nn.Module:
        return (
            GatedSelection(gate(maps, side))
            if selection == "gate"
            else SoftSelection(10, (maps, side, side), "softmax")
        )

    return Build(whole, layer, make)

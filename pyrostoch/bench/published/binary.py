"""Networks of binary neurons, as the benchmarks build them."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from pyrostoch.data import DataSplit
from pyrostoch.layers import ThresholdNeuron

__all__ = ["NOISE", "binary_cnn", "binary_mlp"]

#: Deviation of the neurons' noise; batch normalization gives their inputs a variance of 1. Of 0.5 and 1, the better one
#: on held-out training images.
NOISE = 0.5


def binary_mlp(
    split: DataSplit, widths: tuple[int, ...] = (500, 500), noise: float = NOISE, correlation: float = 0.0
) -> nn.Module:
    """Layers of binary neurons between an image and linear class scores; a fifth of the pixels is dropped in training.

    Args:
        split: The data set.
        widths: Neurons of each layer.
        noise: Deviation of their noise.
        correlation: Correlation of the noise of a layer's neurons.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(), dropout=nn.Dropout(0.2))
    sizes = (math.prod(split.input_shape), *widths)
    for index, (before, after) in enumerate(zip(sizes, widths, strict=False), 1):
        layers[f"fc{index}"] = nn.Linear(before, after, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm1d(after)
        layers[f"neurons{index}"] = ThresholdNeuron(noise, correlation=correlation)
    layers["scores"] = nn.Linear(sizes[-1], split.num_classes or 1)
    return nn.Sequential(layers)


def binary_cnn(split: DataSplit, channels: tuple[int, int] = (20, 50), hidden: int = 500) -> nn.Module:
    """LeNet5 with binary neurons: two convolutions, each pooled by the mean, and a dense layer.

    Args:
        split: The data set.
        channels: Channels of the convolutions.
        hidden: Neurons of the dense layer.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, height, width = split.input_shape
    for index, after in enumerate(channels, 1):
        layers[f"conv{index}"] = nn.Conv2d(before, after, 5, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(after)
        layers[f"neurons{index}"] = ThresholdNeuron(NOISE)
        layers[f"pool{index}"] = nn.AvgPool2d(2)
        before, height, width = after, (height - 4) // 2, (width - 4) // 2
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before * height * width, hidden, bias=False)
    layers["bn"] = nn.BatchNorm1d(hidden)
    layers["neurons"] = ThresholdNeuron(NOISE)
    layers["scores"] = nn.Linear(hidden, split.num_classes or 1)
    return nn.Sequential(layers)

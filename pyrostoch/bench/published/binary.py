"""The networks of binary neurons of the benches `moments` and `homeostasis`."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from pyrostoch.data import DataSplit
from pyrostoch.layers import ThresholdNeuron

__all__ = ["NOISE", "binary_cnn", "binary_mlp"]

#: Standard deviation of the neurons' noise; batch normalization gives their inputs a variance of 1. The better one of
#: 0.5 and 1 on held-out training images.
NOISE = 0.5


def binary_mlp(
    split: DataSplit, widths: tuple[int, ...] = (500, 500), noise: float = NOISE, correlation: float = 0.0
) -> nn.Module:
    """Layers of binary neurons and linear class scores; a fifth of the pixels is dropped in training.

    Args:
        split: The data set.
        widths: Number of neurons in each layer.
        noise: Standard deviation of their noise.
        correlation: Correlation of the noise between neurons of a layer.
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
    """LeNet5 with binary neurons: two convolutions with average pooling, and a dense layer.

    Args:
        split: The data set.
        channels: Channels of the convolutions.
        hidden: Number of neurons in the dense layer.
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

"""Networks of ternary neurons, and the discrete gradients they are trained with, as the benchmark builds them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import nn

from pyrostoch.data import DataSplit
from pyrostoch.layers import Ternary
from pyrostoch.models import CropAndFlip, TriDeNT, TriDeNTConv
from pyrostoch.quantize import BinaryGradient, DiscreteGradient, TernaryGradient

__all__ = ["BINARY", "TERNARY", "MakeGradient", "ternary_cnn", "ternary_mlp"]

MakeGradient = Callable[[], DiscreteGradient]

#: Discrete gradients limited as in TernGrad, chosen on held-out images: the largest of 1.6 million gradients makes a
#: scale at which most draws are 0. What the limit takes off is a bias.
TERNARY: MakeGradient = partial(TernaryGradient, clip=2.5)
BINARY: MakeGradient = partial(BinaryGradient, clip=2.5)

# Deviation of the neurons' noise, and pixels by which training images are shifted at most; chosen on held-out images.
_NOISE, _SHIFT = 0.3, 1


def ternary_mlp(
    split: DataSplit,
    noise: float = _NOISE,
    gradient: MakeGradient | None = None,
    plain: bool = False,
    shift: int = _SHIFT,
) -> nn.Module:
    """784-2000-10 (`net`) behind random shifts (`augment`).

    Args:
        split: The data set.
        noise: Deviation of the neurons' noise.
        gradient: Makes the error signal that comes back to the neurons, and the parameters' gradients, discrete.
        plain: Whether normalization and dropout are left out.
        shift: Pixels by which training images are shifted, at most.
    """
    net = TriDeNT(
        math.prod(split.input_shape),
        2000,
        split.num_classes or 1,
        neurons=partial(Ternary, noise=noise),
        gradient=gradient,
        batch_norm=not plain,
        dropout=0.0 if plain else 0.2,
    )
    if gradient is not None:
        gradient().attach(net)
    return _shifted(net, shift)


def ternary_cnn(split: DataSplit) -> nn.Module:
    """Two convolutions and a dense layer behind random shifts.

    Args:
        split: The data set.
    """
    channels, height, width = split.input_shape
    neurons = partial(Ternary, noise=_NOISE)
    return _shifted(TriDeNTConv(channels, split.num_classes or 1, (height, width), neurons=neurons), _SHIFT)


def _shifted(net: nn.Module, shift: int) -> nn.Module:
    return nn.Sequential(OrderedDict(augment=CropAndFlip(shift, flip=False), net=net))

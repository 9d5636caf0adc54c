"""The networks of ternary neurons of the bench `trident`, and the discrete gradients they are trained with."""

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

#: Discrete gradients with clipping as in TernGrad (Wen et al. 2017), chosen on held-out images. Without it the largest
#: of 1.6 million gradients sets the scale, at which most draws are 0; with it the gradients are biased.
TERNARY: MakeGradient = partial(TernaryGradient, clip=2.5)
BINARY: MakeGradient = partial(BinaryGradient, clip=2.5)

# Standard deviation of the neurons' noise, and the largest random shift of training images in pixels; both chosen on
# held-out images.
_NOISE, _SHIFT = 0.3, 1


def ternary_mlp(
    split: DataSplit,
    noise: float = _NOISE,
    gradient: MakeGradient | None = None,
    plain: bool = False,
    shift: int = _SHIFT,
) -> nn.Module:
    """Random shifts of the training images (`augment`), then the network 784-2000-10 (`net`).

    Args:
        split: The data set.
        noise: Standard deviation of the neurons' noise.
        gradient: Makes the discrete gradient, applied to the error signal at the neurons and to the gradients of all
            parameters; exact gradients by default.
        plain: Whether to leave out batch normalization and dropout.
        shift: Largest shift of training images, in pixels.
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
    """Random shifts of the training images, then two convolutions and a dense layer.

    Args:
        split: The data set.
    """
    channels, height, width = split.input_shape
    neurons = partial(Ternary, noise=_NOISE)
    return _shifted(TriDeNTConv(channels, split.num_classes or 1, (height, width), neurons=neurons), _SHIFT)


def _shifted(net: nn.Module, shift: int) -> nn.Module:
    return nn.Sequential(OrderedDict(augment=CropAndFlip(shift, flip=False), net=net))

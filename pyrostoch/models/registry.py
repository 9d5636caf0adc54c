"""Networks by name, for the command line and for saved runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from pyrostoch._checks import check_choice
from pyrostoch.models.lenet import LeNet5
from pyrostoch.models.mlp import MLP
from pyrostoch.models.vgg import VGG

__all__ = ["NAMES", "build"]

_CONVOLUTIONAL: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "vgg": VGG,
    "vgg-narrow": partial(VGG, width=0.25),
}

#: The names that `build` knows.
NAMES = ("mlp", *_CONVOLUTIONAL)


def build(name: str, *, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """A network by its name.

    Args:
        name: `"mlp"`, `"lenet5"`, `"vgg"`, or `"vgg-narrow"`, which is `VGG` with a quarter of the width.
        input_shape: Shape of one example, without the batch axis.
        num_outputs: Number of outputs: classes, or the likelihood's parameters per example.

    Returns:
        The network, freshly initialized.

    Raises:
        ValueError: The name is unknown, or the network does not take such examples.

    Example:
        >>> build("mlp", input_shape=(1, 8, 8), num_outputs=10).fc1
        Linear(in_features=64, out_features=400, bias=True)
    """
    check_choice("model", name, NAMES)
    shape = tuple(input_shape)
    if name == "mlp":
        return MLP(math.prod(shape), out_features=num_outputs)
    if len(shape) != 3:
        raise ValueError(
            f"model {name!r}: expected images of shape (channels, height, width), got examples of shape {shape}; "
            "use 'mlp'"
        )
    return _CONVOLUTIONAL[name](shape[0], num_outputs, image_size=shape[1:])

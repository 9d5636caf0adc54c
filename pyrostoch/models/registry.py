"""Networks by name, for the command line and for saved runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from pyrostoch._checks import check_choice
from pyrostoch.models.lenet import LeNet5
from pyrostoch.models.mlp import MLP

__all__ = ["NAMES", "build"]


def _mlp(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return MLP(math.prod(shape), out_features=num_outputs)


def _lenet5(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    if len(shape) != 3:
        raise ValueError(
            f"model 'lenet5': expected images of shape (channels, height, width), got examples of shape {shape}; "
            "use 'mlp'"
        )
    return LeNet5(shape[0], num_outputs, image_size=(shape[1], shape[2]))


_BUILDERS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"mlp": _mlp, "lenet5": _lenet5}

#: The names that `build` knows.
NAMES = tuple(_BUILDERS)


def build(name: str, *, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """A network by its name.

    Args:
        name: `"mlp"` or `"lenet5"`.
        input_shape: Shape of one example, without the batch axis.
        num_outputs: Number of outputs: classes, or the likelihood's parameters per example.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: The name is unknown, or the network does not take such examples.

    Example:
        >>> build("mlp", input_shape=(1, 8, 8), num_outputs=10).fc1
        Linear(in_features=64, out_features=400, bias=True)
    """
    return _BUILDERS[check_choice("model", name, _BUILDERS)](tuple(input_shape), num_outputs)

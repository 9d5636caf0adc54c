"""The multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyrostoch._checks import check_choice
from pyrostoch.layers import MCDropout

__all__ = ["MLP"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class MLP(nn.Module):
    """A multilayer perceptron with layers `fc1`, `act1`, `fc2`, ...

    Args:
        in_features: Number of values of one example, over all its axes; the input is flattened.
        hidden: Widths of the hidden layers; empty for a linear model.
        out_features: Number of outputs.
        activation: `"relu"`, `"leaky_relu"`, `"elu"`, `"gelu"`, `"silu"`, `"softplus"`, `"sigmoid"`, `"tanh"`, or a
            module class without arguments.
        batch_norm: Whether hidden layers have batch normalization (`bn1`, ...); they then have no biases.
        dropout: Probability of `MCDropout` after each activation (`drop1`, ...); 0 means no such layer.

    Raises:
        ValueError: A size is not positive, or the activation is unknown.

    Example:
        >>> import torch
        >>> net = MLP(784, hidden=(400, 400), out_features=10)
        >>> net(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in net.named_parameters()][:2]
        ['fc1.weight', 'fc1.bias']
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (400, 400),
        out_features: int = 10,
        activation: str | Callable[[], nn.Module] = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        if any(not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError(f"MLP: expected positive whole numbers for the widths, got {widths}")
        if isinstance(activation, str):
            activation = _ACTIVATIONS[check_choice("activation", activation, _ACTIVATIONS)]
        self.in_features = in_features
        for index, (before, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
            last = index == len(widths) - 1
            self.add_module(f"fc{index}", nn.Linear(before, width, bias=last or not batch_norm))
            if last:
                break
            if batch_norm:
                self.add_module(f"bn{index}", nn.BatchNorm1d(width))
            self.add_module(f"act{index}", activation())
            if dropout:
                self.add_module(f"drop{index}", MCDropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, ...)` to `(batch, out_features)`."""
        if math.prod(x.shape[1:]) != self.in_features:
            raise ValueError(
                f"MLP: expected {self.in_features} values per example, got inputs of shape {tuple(x.shape)}, "
                f"{math.prod(x.shape[1:])} per example"
            )
        h = x.reshape(x.shape[0], self.in_features)
        for module in self.children():  # in the order they were added
            h = module(h)
        return h

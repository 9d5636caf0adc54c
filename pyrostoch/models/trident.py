"""TriDeNT networks: neurons with three states, dense and convolutional."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrostoch.layers import Ternary
from pyrostoch.models.sizes import check_sizes

__all__ = ["TriDeNT", "TriDeNTConv"]

_KERNEL = 5

#: Makes a new layer at each call.
MakeLayer = Callable[[], nn.Module]


class TriDeNT(nn.Module):
    """Linear layers with batch-normalized ternary neurons between them: `fc1`, `bn1`, `neurons1`, ..., `scores`.

    Args:
        in_features: Number of values of one example, over all its axes; the input is flattened.
        hidden: Number of neurons of the hidden layer, or of each hidden layer.
        out_features: Number of scores.
        neurons: Makes a layer of neurons, such as the class `Ternary`.
        gradient: Makes a layer that follows each layer of neurons (`error1`, ...), such as the class
            `quantize.TernaryGradient`, which makes the gradients that the neurons receive discrete.
        batch_norm: Whether the neurons' inputs are batch-normalized; the linear layers then have no biases.
        dropout: Probability that an input is dropped in training.

    Raises:
        ValueError: A size is not positive.

    References:
        "TriDeNT (Tri-state Stochastic Deep Neural Network)" (note): 784-2000-10, 96.22 % on MNIST.

    Example:
        >>> import torch
        >>> net = TriDeNT(784, 2000, 10)
        >>> net(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: int | Sequence[int] = 2000,
        out_features: int = 10,
        *,
        neurons: MakeLayer = Ternary,
        gradient: MakeLayer | None = None,
        batch_norm: bool = True,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        widths = [in_features, *([hidden] if isinstance(hidden, int) else hidden), out_features]
        if any(not isinstance(width, int) or width < 1 for width in widths) or len(widths) < 3:
            raise ValueError(f"TriDeNT: expected positive whole numbers for at least three widths, got {widths}")
        self.in_features = in_features
        self.dropout = nn.Dropout(dropout)
        for index, (before, width) in enumerate(pairwise(widths[:-1]), 1):
            self.add_module(f"fc{index}", nn.Linear(before, width, bias=not batch_norm))
            if batch_norm:
                self.add_module(f"bn{index}", nn.BatchNorm1d(width))
            self.add_module(f"neurons{index}", neurons())
            if gradient is not None:
                self.add_module(f"error{index}", gradient())
        self.scores = nn.Linear(widths[-2], out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, ...)` to `(batch, out_features)`."""
        if math.prod(x.shape[1:]) != self.in_features:
            raise ValueError(
                f"TriDeNT: expected {self.in_features} values per example, got inputs of shape {tuple(x.shape)}"
            )
        h = x.reshape(x.shape[0], self.in_features)
        for module in self.children():  # in the order they were added
            h = module(h)
        return h


class TriDeNTConv(nn.Module):
    """Two convolutions with pooling and a dense layer, each batch-normalized and followed by ternary neurons.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of scores.
        image_size: Height and width of the images in pixels, at least 16; one number if they are equal.
        widths: Channels of the two convolutions, and neurons of the dense layer.
        neurons: Makes a layer of neurons, such as the class `Ternary`.
        gradient: Makes a layer that follows each layer of neurons; see `TriDeNT`.

    Raises:
        ValueError: The images are too small, or a width is not positive.

    Example:
        >>> import torch
        >>> TriDeNTConv()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int | tuple[int, int] = 28,
        widths: tuple[int, int, int] = (32, 64, 512),
        *,
        neurons: MakeLayer = Ternary,
        gradient: MakeLayer | None = None,
    ) -> None:
        super().__init__()
        height, width = check_sizes("TriDeNTConv", "TriDeNT", image_size, in_channels, num_classes, widths)
        self.image_shape = (in_channels, height, width)

        def add_block(index: int, layer: nn.Module, norm: nn.Module, convolution: bool) -> None:
            self.add_module(f"conv{index}" if convolution else "fc", layer)
            if convolution:
                self.add_module(f"pool{index}", nn.MaxPool2d(2))
            self.add_module(f"bn{index}", norm)
            self.add_module(f"neurons{index}", neurons())
            if gradient is not None:
                self.add_module(f"error{index}", gradient())

        before = in_channels
        for index, channels in enumerate(widths[:2], 1):
            add_block(index, nn.Conv2d(before, channels, _KERNEL, bias=False), nn.BatchNorm2d(channels), True)
            before, height, width = channels, (height - _KERNEL + 1) // 2, (width - _KERNEL + 1) // 2
        self.flatten = nn.Flatten()
        add_block(3, nn.Linear(before * height * width, widths[2], bias=False), nn.BatchNorm1d(widths[2]), False)
        self.scores = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(batch, channels, height, width)` to `(batch, num_classes)`."""
        if tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"TriDeNTConv: expected images of shape (batch, {expected}), got {tuple(x.shape)}")
        for module in self.children():  # in the order they were added
            x = module(x)
        return x

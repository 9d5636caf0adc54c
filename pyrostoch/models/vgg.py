"""The VGG-like network for CIFAR: thirteen convolutions and two dense layers."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pyrostoch._checks import check_positive
from pyrostoch.layers import MCDropout

__all__ = ["VGG"]

#: Channels of the convolutions, block by block; each block ends with a 2 x 2 max pool.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_DENSE = 512
_SHRINK = 2 ** len(_BLOCKS)
#: Probability of dropout after layer k, where layer 14 is `dense1`.
_DROPOUT = {1: 0.3, 3: 0.4, 5: 0.4, 6: 0.4, 8: 0.4, 9: 0.4, 13: 0.5, 14: 0.5}
_DROPOUT_IN_LAST_BLOCK = {11: 0.4, 12: 0.4}


class VGG(nn.Module):
    r"""Thirteen 3x3 convolutions in five blocks, a hidden dense layer and the output layer, for images of CIFAR's size.

    The convolutions have widths 64-64, 128-128, 256-256-256, 512-512-512, 512-512-512 and padding 1; each block ends
    with a 2x2 max pool. The hidden dense layer has 512 neurons; only the output layer has a bias. Batch normalization
    and ReLU follow every layer but the last. Weights are initialized from $U(\pm 1/\sqrt{\text{fan-in}})$.

    The weights are named `conv1.weight` to `conv13.weight`, `dense1.weight` and `dense2.weight`, so that patterns can
    choose the random ones. `VGG.VARIATIONAL` holds the patterns `"conv1[123].weight"` and `"dense1.weight"`: the last
    three convolutions and the hidden dense layer, which are random in the published variance network and make up 49 %
    of all weights.

    Dropout is where the published code has it, for its dropout network and for its variance network alike: with
    probability .3 after conv1, .4 after each convolution of blocks two to four but the block's last, .5 before and
    after dense1. No input of conv11, conv12 or conv13 is dropped. The layers are `MCDropout`, which is active while
    sampling and not under mean propagation, in training and in evaluation mode.

    | width | parameters | of them in `VARIATIONAL` | multiplications per 32 x 32 image |
    | --- | --- | --- | --- |
    | 1 | 14,987,210 | 7,340,032 | 313 million |
    | 0.25 | 939,770 | 458,752 | 19.9 million |

    In float32 a training step stores about 3.6 MiB per image for the backward pass at width 1, and 0.9 MiB at 0.25.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        image_size: Height and width of the images in pixels, at least 32; one number if they are equal. After pooling,
            `(height // 32) * (width // 32)` pixels enter the dense layer.
        width: Factor on all widths; 0.25 makes a narrow network for the CPU.
        dropout: Whether there is dropout.
        dropout_in_last_block: Whether conv11 and conv12 are followed by dropout of .4 too, as in Zagoruyko's network.

    Raises:
        ValueError: The images are smaller than 32 x 32, or a number is not positive.

    References:
        Zagoruyko, "92.45% on CIFAR-10 in Torch", 2015 (the network, after Simonyan, Zisserman 2014).
        Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", 2017.
        Neklyudov et al., "Variance networks: when expectation does not meet your expectations", 2018.

    Example:
        >>> import torch
        >>> net = VGG(num_classes=20, width=0.25)
        >>> net(torch.zeros(2, 3, 32, 32)).shape, net.conv13, net.dense1.out_features
        (torch.Size([2, 20]), Conv2d(128, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), 128)
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(net, prior=dict.fromkeys(VGG.VARIATIONAL, ps.priors.LogUniform()),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=50_000)
        >>> list(model.sites)
        ['conv11.weight', 'conv12.weight', 'conv13.weight', 'dense1.weight']
    """

    #: Patterns of the weights that are random in the published variance network.
    VARIATIONAL: ClassVar[tuple[str, ...]] = ("conv1[123].weight", "dense1.weight")

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int | tuple[int, int] = 32,
        width: float = 1.0,
        dropout: bool = True,
        dropout_in_last_block: bool = False,
    ) -> None:
        super().__init__()
        rows, columns = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(rows, columns) < _SHRINK:
            raise ValueError(
                f"VGG: expected images of at least {_SHRINK} x {_SHRINK} pixels, since five poolings halve them, got "
                f"{rows} x {columns}; use pyrostoch.models.LeNet5 for smaller ones"
            )
        if min(in_channels, num_classes) < 1:
            raise ValueError(
                f"VGG: expected positive numbers of channels and classes, got in_channels={in_channels}, "
                f"num_classes={num_classes}"
            )
        check_positive("VGG width", width)
        self.image_shape = (in_channels, rows, columns)
        rates = {}
        if dropout:
            rates = _DROPOUT | (_DROPOUT_IN_LAST_BLOCK if dropout_in_last_block else {})

        def add_activation(index: int) -> None:
            self.add_module(f"act{index}", nn.ReLU())
            if index in rates:
                self.add_module(f"drop{index}", MCDropout(rates[index]))

        # Torch's own initialization of both kinds of layer is U(+-1/sqrt(fan_in)).
        before, index = in_channels, 0
        for block, channels in enumerate(_BLOCKS, 1):
            for position, full in enumerate(channels, 1):
                index, scaled = index + 1, _scaled(full, width)
                self.add_module(f"conv{index}", nn.Conv2d(before, scaled, 3, padding=1, bias=False))
                self.add_module(f"bn{index}", nn.BatchNorm2d(scaled))
                if position == len(channels):
                    # Pooling commutes with ReLU; pooling first leaves ReLU a quarter of the values.
                    self.add_module(f"pool{block}", nn.MaxPool2d(2))
                add_activation(index)
                before = scaled
        hidden = _scaled(_DENSE, width)
        self.flatten = nn.Flatten()
        self.dense1 = nn.Linear(before * (rows // _SHRINK) * (columns // _SHRINK), hidden, bias=False)
        self.bn14 = nn.BatchNorm1d(hidden)
        add_activation(14)
        self.dense2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(batch, channels, height, width)` to `(batch, num_classes)`."""
        if tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"VGG: expected images of shape (batch, {expected}), got {tuple(x.shape)}")
        h = x
        for module in self.children():  # in the order they were added
            h = module(h)
        return h


def _scaled(full: int, width: float) -> int:
    """A width times the factor, at least 1."""
    return max(1, round(full * width))

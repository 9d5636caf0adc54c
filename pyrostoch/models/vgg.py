"""The VGG-like network of CIFAR experiments: thirteen convolutions and two dense layers."""

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
#: Probability of dropout behind layer k, the dense one counted as the fourteenth.
_DROPPED = {1: 0.3, 3: 0.4, 5: 0.4, 6: 0.4, 8: 0.4, 9: 0.4, 13: 0.5, 14: 0.5}
_DROPPED_IN_LAST_BLOCK = {11: 0.4, 12: 0.4}


class VGG(nn.Module):
    r"""Thirteen 3x3 convolutions in five blocks, a hidden dense layer and the output layer, for images of CIFAR's size.

    Widths 64-64, 128-128, 256 three times, 512 three times, 512 three times; padding 1; a 2x2 max pool ends each block;
    then dense 512 and the output layer, the only one with a bias. Batch normalization and ReLU stand behind every layer
    but the last. Weights start from $U(\pm 1/\sqrt{\text{fan-in}})$.

    The weights are `conv1.weight` to `conv13.weight`, `dense1.weight` and `dense2.weight`, so that patterns choose the
    random ones. `VGG.VARIATIONAL`, the patterns `"conv1[123].weight"` and `"dense1.weight"`, are the last three
    convolutions and the hidden dense layer: those of the published variance network, 49 % of all weights.

    Dropout of probability .3, .4 and .5 stands where the published code has it, for its dropout network and for its
    variance network alike: .3 behind conv1, .4 behind each convolution of blocks two to four that is not its block's
    last, .5 on both sides of dense1. No input of conv11, conv12 or conv13 is dropped. It is `MCDropout`, on while
    sampling and off under mean propagation, whatever `train()` and `eval()` say.

    | width | parameters | of them in `VARIATIONAL` | multiplications an image of 32 x 32 |
    | --- | --- | --- | --- |
    | 1 | 14,987,210 | 7,340,032 | 313 million |
    | 0.25 | 939,770 | 458,752 | 19.9 million |

    A training step in float32 keeps about 3.6 MiB an image at width 1 for the backward pass, and 0.9 MiB at 0.25.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        image_size: Height and width of the images in pixels, at least 32; a pair where they differ. What is left of
            them, `(height // 32) * (width // 32)` pixels, enters the dense layer.
        width: Factor on all widths; 0.25 makes a narrow network for the CPU.
        dropout: Whether there is dropout.
        dropout_in_last_block: Whether dropout of .4 stands behind conv11 and conv12 too, as in Zagoruyko's network.

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
        dropped = {}
        if dropout:
            dropped = _DROPPED | (_DROPPED_IN_LAST_BLOCK if dropout_in_last_block else {})

        def finish(index: int) -> None:
            self.add_module(f"act{index}", nn.ReLU())
            if index in dropped:
                self.add_module(f"drop{index}", MCDropout(dropped[index]))

        # Torch's own initialization of both kinds of layer is U(+-1/sqrt(fan_in)).
        before, index = in_channels, 0
        for block, channels in enumerate(_BLOCKS, 1):
            for position, full in enumerate(channels, 1):
                index, here = index + 1, _scaled(full, width)
                self.add_module(f"conv{index}", nn.Conv2d(before, here, 3, padding=1, bias=False))
                self.add_module(f"bn{index}", nn.BatchNorm2d(here))
                if position == len(channels):
                    # Pooling commutes with ReLU, which then has a quarter of the values to pass on.
                    self.add_module(f"pool{block}", nn.MaxPool2d(2))
                finish(index)
                before = here
        hidden = _scaled(_DENSE, width)
        self.flatten = nn.Flatten()
        self.dense1 = nn.Linear(before * (rows // _SHRINK) * (columns // _SHRINK), hidden, bias=False)
        self.bn14 = nn.BatchNorm1d(hidden)
        finish(14)
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

"""LeNet5 in the version of the variance networks paper."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch.layers import MCDropout
from pyrostoch.models.sizes import check_sizes

__all__ = ["LeNet5"]

_KERNEL = 5


class LeNet5(nn.Module):
    r"""LeNet5: 20 convolutions of 5x5, pooling, 50 of 5x5, pooling, 800-500-10; no padding, no biases, ReLU.

    Batch normalization follows every layer but the last. Weights are initialized from
    $U(\pm 1/\sqrt{\text{fan-in}})$.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        image_size: Height and width of the images in pixels, at least 16; one number if they are equal.
        widths: Channels of the two convolutions, and neurons of the hidden dense layer.
        batch_norm: Whether there is batch normalization.
        dropout: Probability of `MCDropout` on the inputs of `dense1` (layer `drop2`, after the second convolution's
            pooling and ReLU), for comparison with networks that have random weights there. 0 means no such layer.

    Raises:
        ValueError: The images are too small for two convolutions and two poolings, a width is not positive, or the
            probability is outside [0, 1).

    References:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
        Neklyudov et al., "Variance networks: when expectation does not meet your expectations", 2018.

    Example:
        >>> import torch
        >>> net = LeNet5(in_channels=3, image_size=32)
        >>> net(torch.zeros(2, 3, 32, 32)).shape, net.dense1
        (torch.Size([2, 10]), Linear(in_features=1250, out_features=500, bias=False))
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int | tuple[int, int] = 28,
        widths: tuple[int, int, int] = (20, 50, 500),
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = check_sizes("LeNet5", "MLP", image_size, in_channels, num_classes, widths)
        first, second, dense = widths
        self.image_shape = (in_channels, height, width)
        # Torch's own initialization of both kinds of layer is U(+-1/sqrt(fan_in)).
        self.conv1 = nn.Conv2d(in_channels, first, _KERNEL, bias=False)
        self.bn1 = nn.BatchNorm2d(first) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, _KERNEL, bias=False)
        self.bn2 = nn.BatchNorm2d(second) if batch_norm else nn.Identity()
        self.drop2 = MCDropout(dropout) if dropout else None
        self.dense1 = nn.Linear(second * _pooled_size(height) * _pooled_size(width), dense, bias=False)
        self.bn3 = nn.BatchNorm1d(dense) if batch_norm else nn.Identity()
        self.dense2 = nn.Linear(dense, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(batch, channels, height, width)` to `(batch, num_classes)`."""
        if tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"LeNet5: expected images of shape (batch, {expected}), got {tuple(x.shape)}")
        # Pooling commutes with ReLU; pooling first leaves ReLU a quarter of the values.
        h = F.relu(F.max_pool2d(self.bn1(self.conv1(x)), 2))
        h = F.relu(F.max_pool2d(self.bn2(self.conv2(h)), 2)).flatten(1)
        if self.drop2 is not None:
            h = self.drop2(h)
        h = F.relu(self.bn3(self.dense1(h)))
        logits: Tensor = self.dense2(h)
        return logits


def _pooled_size(pixels: int) -> int:
    """Size of one axis after two convolutions and two poolings."""
    return ((pixels - _KERNEL + 1) // 2 - _KERNEL + 1) // 2

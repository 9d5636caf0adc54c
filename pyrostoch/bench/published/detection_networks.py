"""The networks of the cases `detection/*`: a detector with a layer of noise for each class of pixels, and its gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrostoch.layers import Conditional, StochasticConv2d, embody
from pyrostoch.models import Detector

__all__ = ["ObjectNetwork", "PixelGate", "noise_kernels", "object_network"]


class PixelGate(nn.Module):
    """The gate of a selection by pixel: three convolutions at a quarter of the resolution, logits for each class.

    Args:
        channels: Channels of what it reads.
        num_classes: Number of classes with the background.
        width: Channels inside.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width // 2, 5, 2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 5, 2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 16 * num_classes, 1),
            nn.PixelShuffle(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, classes, 1, height, width).

        Args:
            x: What the layer reads, (batch, channels, height, width), of sizes that are multiples of 4.
        """
        logits: Tensor = self.layers(x)
        return logits[:, :, None]


@dataclass(frozen=True)
class ObjectNetwork:
    """A detector, clean or under noise.

    Args:
        network: The whole.
        layer: Its conditional layer; `None` for a clean one.
        channels: Channels of what the layer reads.
        stride: Pixels of the image to a position of the layer.
    """

    network: nn.Module
    layer: Conditional | None
    channels: int
    stride: int = 1


def noise_kernels(channels: int, scale: float) -> StochasticConv2d:
    """Kernels that start near the identity, under noise of one standard deviation: 5 x 5 for one channel, else 1 x 1.

    Args:
        channels: Number of channels.
        scale: The standard deviation.
    """
    size = 5 if channels == 1 else 1
    layer = StochasticConv2d(channels, channels, size, padding=size // 2)
    with torch.no_grad():
        weight, bias = layer.get_parameter("kernel.weight"), layer.get_parameter("kernel.bias")
        weight.mul_(0.1)
        own = torch.arange(channels)
        weight[own, own, size // 2, size // 2] += 1.0
        bias[channels:] = torch.tensor(scale).expm1().log()
    return layer


def object_network(
    embodiment: str | None, num_classes: int, size: int, width: int, scale: float, where: str = "output"
) -> ObjectNetwork:
    """A detector with a head of pixels and, but for a clean one, kernels of noise for each class and the background.

    In front they are 5 x 5. Inside they are 1 x 1, behind the detector's second convolution: all that it computes
    later, the head of pixels too, reads what is behind the noise.

    Args:
        embodiment: `"prepend"`, `"merge_then_sample"`, `"sample_then_merge"`, or `None` for a clean one.
        num_classes: Number of classes without the background.
        size: Height and width of the images.
        width: Channels of the detector's first convolution.
        scale: Standard deviation at which the noise starts.
        where: What the selection multiplies, `"input"` or `"output"`.
    """
    detector = Detector(num_classes=num_classes, width=width, pixels=True)
    if embodiment is None:
        return ObjectNetwork(detector, None, 1)
    channels = 1 if embodiment == "prepend" else 2 * width
    layer = Conditional(lambda: noise_kernels(channels, scale), num_classes, where=where, background="class")  # type: ignore[arg-type]
    if embodiment == "prepend":
        return ObjectNetwork(embody.prepend(detector, layer), layer, channels)
    branch = nn.Conv2d(1, channels, 3, 2, padding=1)
    whole = getattr(embody, embodiment)(detector, "norm2", layer, branch, example=torch.zeros(2, 1, size, size))
    return ObjectNetwork(whole, layer, channels, stride=2)

"""Random crops and flips of image batches, as a module in front of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CropAndFlip"]


class CropAndFlip(nn.Module):
    r"""Data augmentation: pads images with zeros, crops them at random to their size, and flips half of them.

    This happens in training mode only; in evaluation mode images pass unchanged. Each image has its own offset and
    flip, drawn on the images' device, so that no worker processes are needed. The data term of an ELBO is then its
    expectation over these transformations.

    Args:
        padding: Pixels added on each side.
        flip: Whether images are flipped from left to right with probability 1/2; not for digits and letters.

    Raises:
        ValueError: `padding` is not a whole number from 0 up.

    Example:
        >>> images = torch.ones(5, 3, 8, 8)
        >>> layer = CropAndFlip(padding=2)
        >>> layer(images).shape, layer.eval()(images) is images
        (torch.Size([5, 3, 8, 8]), True)

    References:
        He, Zhang, Ren, Sun, "Deep residual learning for image recognition", 2016, section 4.2.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        super().__init__()
        if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
            raise ValueError(f"CropAndFlip: expected a whole number of pixels from 0 up, got {padding!r}")
        self.padding, self.flip = padding, flip

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(batch, channels, height, width)` to images of the same shape.

        Raises:
            ValueError: In training mode, `x` does not have four axes.
        """
        if not self.training:
            return x
        if x.dim() != 4:
            raise ValueError(
                f"CropAndFlip: expected images (batch, channels, height, width), got shape {tuple(x.shape)}"
            )
        count, _, height, width = x.shape
        padded = F.pad(x, (self.padding,) * 4)
        top, left = torch.randint(0, 2 * self.padding + 1, (2, count, 1), device=x.device)
        rows = top + torch.arange(height, device=x.device)
        columns = left + torch.arange(width, device=x.device)
        if self.flip:
            flips = torch.rand(count, 1, device=x.device) < 0.5
            columns = torch.where(flips, columns.flip(1), columns)
        picked = torch.arange(count, device=x.device)[:, None, None]
        # Indexing puts axes that a slice separates first: (batch, height, width, channels).
        return padded[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """The padding, and whether images are flipped."""
        return f"padding={self.padding}, flip={self.flip}"

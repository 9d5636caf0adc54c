"""Checks of the image size and widths of networks with two convolutions and a dense layer."""

from __future__ import annotations

__all__ = ["check_sizes"]

# The smallest image of which two 5 x 5 convolutions and two poolings leave at least one pixel.
_SMALLEST = 16


def check_sizes(
    who: str, instead: str, image_size: int | tuple[int, int], channels: int, classes: int, widths: tuple[int, ...]
) -> tuple[int, int]:
    """Check the sizes of such a network, and return height and width of its images.

    Args:
        who: Name of the network, for the error.
        instead: Name of a network for smaller images, for the error.
        image_size: Height and width, or one number for both.
        channels: Channels of the images.
        classes: Number of outputs.
        widths: Channels of the two convolutions, and neurons of the dense layer.

    Raises:
        ValueError: The images are too small, or a number is not positive.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < _SMALLEST:
        raise ValueError(
            f"{who}: expected images of at least {_SMALLEST} x {_SMALLEST} pixels, got {height} x {width}; use "
            f"pyrostoch.models.{instead} for smaller ones"
        )
    if len(widths) != 3 or min(channels, classes, *widths) < 1:
        raise ValueError(
            f"{who}: expected positive numbers of channels and classes and three positive widths, got "
            f"in_channels={channels}, num_classes={classes}, widths={tuple(widths)}"
        )
    return height, width

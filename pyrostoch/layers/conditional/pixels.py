"""The class of every pixel, from targets that tell of objects: boxes or masks, with a class for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pyrostoch._checks import as_mask, check_choice, check_count, name_list
from pyrostoch._manual import see
from pyrostoch.data.objects import are_within, check_pixel_units, in_image
from pyrostoch.layers.conditional.hard import check_classes, covered

__all__ = ["PixelClasses"]


@dataclass(frozen=True)
class PixelClasses:
    r"""Reads the class of every pixel from targets with objects: which pixels lie in a box, or a mask, of each class.

    It is what `fit(labels=)`, `compare(labels=)` and the others take in place of `"known"` where targets are objects:
    conditional layers with a background then get a hard selection of pixels. What no object covers is the last class,
    the background. A pixel in boxes of several classes belongs to all of them.

    Args:
        num_classes: Number of classes without the background.
        by: `"boxes"`, the target with boxes (batch, most, 4) as left, top, right and bottom edge in pixels; or
            `"masks"`, the target with masks (batch, most, height, width).
        size: Height and width of the images, for boxes; masks have it.
        stride: Pixels of the image to a position of the conditional layer, along each axis, for a layer behind others
            that make the image smaller. A position has the classes of the boxes in which its center lies, or of the
            masks that have one of its pixels.
        labels: The target with the class of each object, (batch, most), -1 as padding.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 2.0, 1.0], [torch.nan] * 4]])
        >>> classes = PixelClasses(2, size=(2, 3))({"boxes": boxes, "labels": torch.tensor([[1, -1]])})
        >>> classes.shape, classes[0, 1, 0].int().tolist()
        (torch.Size([1, 3, 1, 2, 3]), [[1, 1, 0], [0, 0, 0]])
    """

    num_classes: int
    by: Literal["boxes", "masks"] = "boxes"
    size: tuple[int, int] | None = field(default=None, kw_only=True)
    stride: int = field(default=1, kw_only=True)
    labels: str = field(default="labels", kw_only=True)

    def __post_init__(self) -> None:
        check_count("PixelClasses num_classes", self.num_classes)
        check_count("PixelClasses stride", self.stride)
        check_choice("PixelClasses by", self.by, ["boxes", "masks"])
        size, stride = self.size, self.stride
        if (size is None) == (self.by == "boxes"):
            raise ValueError(
                f"PixelClasses size: expected height and width of the images for boxes, and none for masks, got {size}"
            )
        if size is not None and (size[0] % stride or size[1] % stride):
            raise ValueError(f"PixelClasses stride: expected a divisor of the sizes {size}, got {stride}")

    def __call__(self, targets: Mapping[str, Tensor]) -> Tensor:
        """The selection of pixels, boolean, (batch, num_classes + 1, 1, height, width).

        Args:
            targets: Targets by name.

        Raises:
            TypeError: The targets are no dictionary.
            ValueError: One is missing, shapes do not fit, a class is unknown, or a box has no area in the image.
        """
        if not isinstance(targets, Mapping):
            raise TypeError(
                f"PixelClasses: expected targets by name, with {self.by!r} and {self.labels!r}, got "
                f"{type(targets).__name__}{see('how-to/detect_objects')}"
            )
        if missing := [name for name in (self.by, self.labels) if name not in targets]:
            raise ValueError(f"PixelClasses: no targets {missing[0]!r}, but {name_list(targets)}")
        objects, labels = targets[self.by], targets[self.labels]
        wanted = (*labels.shape, 4) if self.by == "boxes" else (*labels.shape, *objects.shape[2:])
        if labels.dim() != 2 or objects.dim() != (3 if self.by == "boxes" else 4) or tuple(objects.shape) != wanted:
            shape = "4" if self.by == "boxes" else "height, width"
            raise ValueError(
                f"PixelClasses: expected {self.by!r} of shape (batch, most, {shape}) and {self.labels!r} of shape "
                f"(batch, most), got {tuple(objects.shape)} and {tuple(labels.shape)}{see('how-to/detect_objects')}"
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"PixelClasses {self.labels!r}: expected whole numbers, got {labels.dtype}")
        there = labels >= 0
        check_classes(labels[labels != -1], self.num_classes, f"PixelClasses {self.labels!r}")
        inside = self._in_boxes(objects, there) if self.by == "boxes" else self._in_masks(objects)
        inside = inside & there[..., None, None]
        classes = torch.arange(self.num_classes, device=labels.device)
        own = (labels[:, None] == classes[:, None]).to(torch.float32)  # (batch, classes, most)
        found = (own @ inside.flatten(2).to(torch.float32) > 0).unflatten(2, inside.shape[2:])
        return torch.cat([found, ~found.any(1, keepdim=True)], 1)[:, :, None]

    def _in_masks(self, masks: Tensor) -> Tensor:
        """Which positions have a pixel of each mask."""
        masks = as_mask(masks, "PixelClasses")
        if self.stride == 1:
            return masks
        if masks.shape[-1] % self.stride or masks.shape[-2] % self.stride:
            raise ValueError(
                f"PixelClasses stride: expected a divisor of the masks' sizes {tuple(masks.shape[-2:])}, got "
                f"{self.stride}"
            )
        squares = masks.unflatten(-1, (-1, self.stride)).unflatten(-3, (-1, self.stride))
        return squares.any(-1).any(-2)

    def _in_boxes(self, boxes: Tensor, there: Tensor) -> Tensor:
        """Which pixels lie in each box, (batch, most, height, width)."""
        height, width = self.size or (0, 0)
        given = boxes[there]
        known = are_within(given, (height, width))
        if not bool(known.all()):
            first = (~known).nonzero()[0, 0]
            image, number = there.nonzero()[first].tolist()
            raise ValueError(
                f"boxes of image {image}: expected {in_image((height, width))}, got "
                f"{given[first].tolist()} as box {number}{see('how-to/detect_objects')}"
            )
        check_pixel_units(given, "PixelClasses")
        edges = torch.where(there[..., None], boxes, 0.0).to(torch.float64).flatten(0, 1)[:, :, None] / self.stride
        height, width = height // self.stride, width // self.stride
        columns, rows = covered(edges[:, 0], edges[:, 2], width), covered(edges[:, 1], edges[:, 3], height)
        return (rows[:, :, None] & columns[:, None, :]).reshape(*there.shape, height, width)

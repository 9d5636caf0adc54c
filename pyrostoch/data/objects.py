"""Objects in images as targets: lists of boxes, classes and masks, padded to one number for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrostoch._checks import as_mask
from pyrostoch._manual import see

__all__ = ["are_within", "check_pixel_units", "in_image", "pad_objects", "pixel_labels"]


def pad_objects(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    size: tuple[int, int],
    masks: Sequence[Tensor] | None = None,
    most: int | None = None,
) -> dict[str, Tensor]:
    """Boxes and classes of the objects of each image as tensors, padded to one number of objects.

    Args:
        boxes: For each image its boxes, (number, 4), as left, top, right and bottom edge in pixels; none is (0, 4).
        labels: For each image the class of each box, (number,).
        size: Height and width of the images.
        masks: For each image the mask of each object, (number, height, width), 0 or 1 or boolean.
        most: Number of objects that there is room for; by default the largest that occurs.

    Returns:
        `boxes`, (images, most, 4), padded with NaN; `labels`, (images, most), padded with -1; `count`, (images,); and
        `masks`, (images, most, height, width), where they are given.

    Raises:
        TypeError: An image has something else than tensors.
        ValueError: An image has more objects than there is room for; a box has no area or no part in its image; a
            class is negative; or shapes do not fit.

    Example:
        >>> none, one = torch.zeros(0, 4), torch.tensor([[2.0, 1.0, 5.0, 7.0]])
        >>> targets = pad_objects([none, one], [torch.zeros(0).long(), torch.tensor([3])], size=(8, 8))
        >>> targets["labels"].tolist(), targets["count"].tolist(), targets["boxes"].shape
        ([[-1], [3]], [0, 1], torch.Size([2, 1, 4]))
    """
    page = see("how-to/detect_objects")
    counts = {"boxes": len(boxes), "labels": len(labels)} | ({} if masks is None else {"masks": len(masks)})
    if len(set(counts.values())) > 1 or not len(boxes):
        raise ValueError(f"pad_objects: expected boxes, labels and masks of as many images, got {counts}{page}")
    largest = max(len(each) for each in boxes)
    room = max(largest, 1) if most is None else most
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"pad_objects size: expected (height, width), got {size!r}{page}")
    height, width = size
    given = [*boxes, *labels, *(masks or ())]
    if wrong := [type(each).__name__ for each in given if not isinstance(each, Tensor)]:
        raise TypeError(
            f"pad_objects: expected a tensor for each image, got {wrong[0]}; torch.as_tensor makes one{page}"
        )
    found = {
        "boxes": torch.full((len(boxes), room, 4), torch.nan),
        "labels": torch.full((len(boxes), room), -1),
        "count": torch.tensor([len(each) for each in boxes]),
    }
    if masks is not None:
        found["masks"] = torch.zeros(len(boxes), room, height, width, dtype=torch.bool)
    for image, (own, classes) in enumerate(zip(boxes, labels, strict=True)):
        where, number = f"pad_objects, image {image}", len(own)
        if tuple(own.shape) != (number, 4) or tuple(classes.shape) != (number,) or classes.is_floating_point():
            raise ValueError(
                f"{where}: expected boxes (number, 4) and a whole number for each as its class, got shapes "
                f"{tuple(own.shape)} and {tuple(classes.shape)} of {classes.dtype}; an image without objects has "
                f"torch.zeros(0, 4) and torch.zeros(0, dtype=torch.int64){page}"
            )
        if number > room:
            raise ValueError(
                f"{where}: it has {number} objects, and there is room for {room}; give most={largest}, which all of "
                f"these images need{page}"
            )
        known = are_within(own, size)
        if not bool(known.all()):
            raise ValueError(f"{where}: expected {in_image(size)}, got {own[~known][0].tolist()}{page}")
        if number and int(classes.min()) < 0:
            raise ValueError(f"{where}: expected classes from 0 up, got {int(classes.min())}{page}")
        found["boxes"][image, :number], found["labels"][image, :number] = own.to(found["boxes"].dtype), classes
        if masks is not None:
            if tuple(masks[image].shape) != (number, height, width):
                raise ValueError(
                    f"{where}: expected masks of shape {(number, height, width)}, got {tuple(masks[image].shape)}{page}"
                )
            found["masks"][image, :number] = as_mask(masks[image], where)
    check_pixel_units(torch.cat([each.to(torch.float32) for each in boxes]), "pad_objects")
    return found


def are_within(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which boxes are finite and have an area of which some lies within the image, (...).

    Args:
        boxes: Boxes, (..., 4), as left, top, right and bottom edge in pixels.
        size: Height and width of the image.

    Example:
        >>> are_within(torch.tensor([[-1.0, 0.0, 2.0, 2.0], [3.0, 0.0, 3.0, 2.0], [9.0, 0.0, 12.0, 2.0]]), (4, 8))
        tensor([ True, False, False])
    """
    height, width = size
    left, top, right, bottom = boxes.unbind(-1)
    inside = (left < right) & (top < bottom) & (right > 0) & (bottom > 0) & (left < width) & (top < height)
    return inside & boxes.isfinite().all(-1)


def in_image(size: tuple[int, int]) -> str:
    """What is expected of boxes, in words.

    Args:
        size: Height and width of the image.
    """
    return f"left < right and top < bottom, and a part within {size[1]} x {size[0]} pixels"


def check_pixel_units(boxes: Tensor, what: str) -> None:
    """Raise an error for boxes that seem to be in parts of the image's size: all lie within the first pixel.

    Args:
        boxes: Boxes, (number, 4).
        what: Whose they are, for the message.

    Raises:
        ValueError: All edges are from 0 to 1, and not all are 0 or 1.
    """
    if boxes.numel() and bool(((boxes >= 0) & (boxes <= 1)).all()) and bool((boxes != boxes.round()).any()):
        raise ValueError(
            f"{what}: all boxes lie within the first pixel, as {boxes[0].tolist()}; edges are expected in pixels: "
            f"multiply by width and height{see('how-to/detect_objects')}"
        )


def pixel_labels(masks: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The class of each pixel, by the masks of objects; what none covers is the background, class `num_classes`.

    Args:
        masks: Masks, (..., most, height, width), 0 or 1 or boolean; of masks that overlap, the first one counts.
        labels: The class of each, (..., most), -1 as padding.
        num_classes: Number of classes without the background.

    Returns:
        Classes, (..., height, width).

    Raises:
        ValueError: Shapes do not fit, or a class is unknown.

    Example:
        >>> mask = torch.tensor([[[True, False, False]], [[True, True, False]]])
        >>> pixel_labels(mask, torch.tensor([4, 1]), 5).tolist()
        [[4, 1, 5]]
    """
    if masks.shape[:-2] != labels.shape:
        raise ValueError(
            "pixel_labels: expected masks (..., most, height, width) and labels (..., most), got shapes "
            f"{tuple(masks.shape)} and {tuple(labels.shape)}"
        )
    if len(wrong := labels[(labels < -1) | (labels >= num_classes)]):
        raise ValueError(f"pixel_labels: expected classes from 0 to {num_classes - 1}, got {int(wrong[0])}")
    if labels.is_floating_point():
        raise ValueError(f"pixel_labels: expected whole numbers as labels, got {labels.dtype}")
    there = as_mask(masks, "pixel_labels") & (labels >= 0)[..., None, None]
    found = torch.full(masks.shape[:-3] + masks.shape[-2:], num_classes, dtype=torch.int64, device=masks.device)
    for number in reversed(range(masks.shape[-3])):
        found = torch.where(there[..., number, :, :], labels[..., number, None, None].to(torch.int64), found)
    return found

"""Intersection over union of boxes and of masks."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrostoch._checks import as_mask

__all__ = ["box_overlaps", "check_overlaps", "mask_overlaps"]

_ROUNDING = 1e-3


def box_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes.

    Args:
        one: Boxes (n, 4), as left, top, right and bottom edge.
        other: Boxes (m, 4).

    Returns:
        Numbers from 0 to 1, (n, m).

    Raises:
        ValueError: Shapes do not fit.

    Example:
        >>> box_overlaps(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])).tolist()
        [[0.3333333432674408]]
    """
    for boxes in (one, other):
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"box_overlaps: expected boxes (number, 4), got shape {tuple(boxes.shape)}")
    # Whole numbers may be unsigned, and areas too large for half precision.
    one, other = (boxes if boxes.dtype == torch.float64 else boxes.to(torch.float32) for boxes in (one, other))
    lowest = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    highest = torch.maximum(one[:, None, :2], other[None, :, :2])
    shared = (lowest - highest).clamp_min(0.0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp_min(0.0).prod(-1) for boxes in (one, other)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp_min(1e-12)


def mask_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of masks; 0 where both are empty.

    Args:
        one: Masks (n, height, width), boolean, or of 0 and one other number.
        other: Masks (m, height, width).

    Returns:
        Numbers from 0 to 1, (n, m).

    Raises:
        ValueError: A mask has other values, or shapes do not fit.

    Example:
        >>> mask_overlaps(torch.tensor([[[True, True]]]), torch.tensor([[[True, False]]])).tolist()
        [[0.5]]
    """
    if one.dim() != 3 or other.dim() != 3 or one.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"mask_overlaps: expected masks (number, height, width) of one size, got shapes {tuple(one.shape)} and "
            f"{tuple(other.shape)}"
        )
    first, second = (as_mask(masks, "mask_overlaps").flatten(1).double() for masks in (one, other))
    shared = first @ second.T
    return shared / (first.sum(1)[:, None] + second.sum(1)[None] - shared).clamp_min(1e-12)


def check_overlaps(overlaps: Tensor, what: str) -> None:
    """Raise an error for numbers that are no overlaps.

    Args:
        overlaps: The numbers.
        what: Whose they are, for the message.

    Raises:
        ValueError: One is not from 0 to 1.
    """
    wrong = ~((overlaps >= 0.0) & (overlaps <= 1.0 + _ROUNDING))
    if bool(wrong.any()):
        raise ValueError(
            f"{what}: expected overlaps from 0 to 1, got {float(overlaps[wrong][0]):g}; leave padded objects out"
        )

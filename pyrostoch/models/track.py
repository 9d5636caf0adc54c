"""Objects followed through the frames of a clip: detections of one object get one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch.metrics import box_overlaps
from pyrostoch.metrics.tracking import assignment
from pyrostoch.models.detector import Detections

__all__ = ["track"]


@dataclass
class _Track:
    """An object that is followed."""

    number: int
    box: Tensor
    step: Tensor
    frame: int


def track(frames: Sequence[Detections], *, overlap: float = 0.1, gap: int = 2) -> list[Tensor]:
    """Number the objects of a clip by their overlap from frame to frame.

    The box of each object is expected where its last step leads to; detections are assigned to the expected boxes so
    that the sum of overlaps is largest. What is left begins a new track. Classes and scores are not looked at: leave
    out detections with low scores before (`detect(threshold=0.3)`), and all but one of those that overlap, whatever
    their class (`nms`).

    Args:
        frames: What was found in each frame.
        overlap: Smallest intersection over union of an expected box and a detection of the same object.
        gap: Number of frames in which an object may be missed without losing its number.

    Returns:
        For each frame the number of each detection, (found,).

    Example:
        >>> one = Detections(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.ones(1), torch.zeros(1))
        >>> two = Detections(torch.tensor([[8.0, 8.0, 9.0, 9.0], [1.0, 0.0, 5.0, 4.0]]), torch.ones(2), torch.zeros(2))
        >>> [found.tolist() for found in track([one, two])]
        [[0], [1, 0]]

    References:
        Bewley, Ge, Ott, Ramos, Upcroft, "Simple online and realtime tracking", 2016.
    """
    if not 0.0 < overlap <= 1.0 or gap < 0:
        raise ValueError(f"track: expected an overlap in (0, 1] and a gap from 0 up, got {overlap} and {gap}")
    tracks: list[_Track] = []
    numbers: list[Tensor] = []
    count = 0
    for now, each in enumerate(frames):
        boxes = each.boxes.detach().double().cpu()
        tracks = [one for one in tracks if now - one.frame <= gap + 1]
        found = torch.full((len(boxes),), -1)
        if tracks and len(boxes):
            expected = torch.stack([one.box + (now - one.frame) * one.step.repeat(2) for one in tracks])
            close = box_overlaps(expected, boxes).numpy()
            for row, column in assignment(close * (close >= overlap)):
                if close[row, column] >= overlap:
                    one, box = tracks[row], boxes[column]
                    one.step = (box - one.box).unflatten(0, (2, 2)).mean(0) / (now - one.frame)
                    one.box, one.frame, found[column] = box, now, one.number
        for column in (found < 0).nonzero().flatten().tolist():
            tracks.append(_Track(count, boxes[column], torch.zeros(2, dtype=boxes.dtype), now))
            found[column] = count
            count += 1
        numbers.append(found)
    return numbers

"""Average precision of detections, by boxes or by masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrostoch.metrics.overlaps import check_overlaps
from pyrostoch.records import Record

__all__ = ["AveragePrecision", "DetectionScores"]

# Recalls at which precision is read, and the most detections of an image that count, as in COCO's evaluation.
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100


@dataclass(frozen=True)
class DetectionScores(Record):
    """Average precision.

    Args:
        ap50: Mean over classes of the average precision where an overlap of .5 counts as found.
        ap: The mean of that over the thresholds .5, .55, ..., .95: AP50:95.
        by_class: AP50 of each class; NaN for one that has no object.
        num_objects: Number of objects.
        num_images: Number of images.
    """

    ap50: float
    ap: float
    by_class: tuple[float, ...]
    num_objects: int
    num_images: int


class AveragePrecision:
    r"""Average precision of detections as COCO's evaluation defines it, added image by image.

    Of each class, detections in falling order of their scores are matched with the object of the largest overlap that
    is not taken, if it reaches the threshold; the others are false. With the precision made falling in the recall, AP
    is its mean at the recalls 0, .01, ..., 1. At most 100 detections of a class count in an image.

    What is kept are the scores of detections and whether they were right, so that memory grows with their number, and
    not with the images.

    Args:
        num_classes: Number of classes.

    Example:
        >>> from pyrostoch.metrics import box_overlaps
        >>> metric = AveragePrecision(2)
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> metric.update(box_overlaps(boxes, boxes), torch.tensor([0.9]), torch.tensor([1]), torch.tensor([1]))
        >>> metric.compute().ap50, metric.compute().num_objects
        (1.0, 1)

    References:
        Lin et al., "Microsoft COCO: common objects in context", 2014.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"AveragePrecision needs num_classes >= 1, got {num_classes}")
        self.num_classes = num_classes
        self.thresholds = np.linspace(0.5, 0.95, 10)
        self.num_images = 0
        self._objects = np.zeros(num_classes, dtype=np.int64)
        self._scores: list[list[NDArray[np.float64]]] = [[] for _ in range(num_classes)]
        self._right: list[list[NDArray[np.bool_]]] = [[] for _ in range(num_classes)]

    def update(self, overlaps: Tensor, scores: Tensor, labels: Tensor, targets: Tensor) -> None:
        """Add an image.

        Args:
            overlaps: Overlap of each detection with each object, (detections, objects), of boxes or masks.
            scores: Scores of the detections, (detections,).
            labels: Their classes, (detections,).
            targets: Classes of the objects, (objects,).

        Raises:
            ValueError: Shapes do not fit, a class is out of range, or a number is not finite.
        """
        count, objects = len(scores), len(targets)
        if overlaps.shape != (count, objects) or labels.shape != (count,) or targets.dim() != 1:
            raise ValueError(
                f"AveragePrecision expects overlaps (detections, objects), got {tuple(overlaps.shape)} for {count} "
                f"scores, {tuple(labels.shape)} labels and {tuple(targets.shape)} targets"
            )
        if labels.is_floating_point() or targets.is_floating_point():
            raise ValueError(
                f"AveragePrecision expects whole numbers as classes, got {labels.dtype} labels and {targets.dtype} "
                "targets"
            )
        every = torch.cat([labels.flatten(), targets.flatten()])
        if len(every) and not 0 <= int(every.min()) <= int(every.max()) < self.num_classes:
            raise ValueError(
                f"AveragePrecision expects classes from 0 to {self.num_classes - 1}, got {int(every.min())} to "
                f"{int(every.max())}; leave padding out"
            )
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("AveragePrecision expects finite scores")
        check_overlaps(overlaps, "AveragePrecision")
        self.num_images += 1
        by_score, by_overlap = scores.detach().double().cpu().numpy(), overlaps.detach().double().cpu().numpy()
        found, given = labels.cpu().numpy(), targets.cpu().numpy()
        for label in range(self.num_classes):
            rows, columns = np.flatnonzero(found == label), np.flatnonzero(given == label)
            self._objects[label] += len(columns)
            rows = rows[np.argsort(-by_score[rows], kind="stable")][:_MOST]
            if len(rows):
                self._scores[label].append(by_score[rows])
                self._right[label].append(self._matched(by_overlap[np.ix_(rows, columns)]))

    def _matched(self, overlaps: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each detection of a class finds an object, in falling order of scores, (detections, thresholds)."""
        right = np.zeros((len(overlaps), len(self.thresholds)), dtype=bool)
        for place, threshold in enumerate(self.thresholds):
            free = np.ones(overlaps.shape[1], dtype=bool)
            for row, own in enumerate(overlaps):
                candidates = np.where(free & (own >= threshold - 1e-10), own, -1.0)
                if candidates.size and candidates.max() > 0:
                    # Of equal overlaps the last one, as in COCO's evaluation.
                    best = len(candidates) - 1 - int(candidates[::-1].argmax())
                    free[best], right[row, place] = False, True
        return right

    def merge(self, other: AveragePrecision) -> None:
        """Add another accumulator, of other images.

        Args:
            other: The accumulator, which is not changed.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"AveragePrecision has {self.num_classes} classes, the other one {other.num_classes}")
        self.num_images += other.num_images
        self._objects += other._objects
        for label in range(self.num_classes):
            self._scores[label] += other._scores[label]
            self._right[label] += other._right[label]

    def compute(self) -> DetectionScores:
        """The scores of all images so far; NaN where there was no object."""
        table = np.full((self.num_classes, len(self.thresholds)), np.nan)
        for label in np.flatnonzero(self._objects):
            table[label] = self._precisions(int(label))
        known = table[self._objects > 0]
        ap50, ap = (float(known[:, 0].mean()), float(known.mean())) if len(known) else (float("nan"), float("nan"))
        by_class = tuple(float(value) for value in table[:, 0])
        return DetectionScores(ap50, ap, by_class, int(self._objects.sum()), self.num_images)

    def _precisions(self, label: int) -> NDArray[np.float64]:
        """Average precision of a class, by threshold."""
        if not self._scores[label]:
            return np.zeros(len(self.thresholds))
        scores, right = np.concatenate(self._scores[label]), np.concatenate(self._right[label])
        right = right[np.argsort(-scores, kind="stable")]
        hits = right.cumsum(0)
        recall = hits / self._objects[label]
        precision = hits / np.arange(1, len(hits) + 1)[:, None]
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        found = np.zeros(len(self.thresholds))
        for place in range(len(found)):
            at = np.searchsorted(recall[:, place], _RECALLS, side="left")
            found[place] = np.where(
                at < len(precision), precision[np.minimum(at, len(precision) - 1), place], 0.0
            ).mean()
        return found

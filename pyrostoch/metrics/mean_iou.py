"""Mean intersection over union of classes, for segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pyrostoch.metrics.streaming import StreamingMetric
from pyrostoch.records import Record

__all__ = ["MeanIoU", "SegmentationScores"]


@dataclass(frozen=True)
class SegmentationScores(Record):
    """Overlap of predicted and true classes.

    Args:
        mean_iou: Mean over the classes that occur, as a label or as a prediction, of their intersection over union.
        by_class: That of each class; NaN for one that does not occur.
        accuracy: Fraction of positions whose class is right.
    """

    mean_iou: float
    by_class: tuple[float, ...]
    accuracy: float


class MeanIoU(StreamingMetric[SegmentationScores]):
    r"""Mean intersection over union: of each class $n_{cc} / (\sum_k n_{ck} + \sum_k n_{kc} - n_{cc})$.

    With $n_{ck}$ the number of positions of class c that were predicted as k, over all examples together. Positions of
    images are given one by one: flatten log-probabilities to (positions, C), and leave out those that are not to count.

    Args:
        num_classes: Number of classes; taken from the first batch when `None`.

    Example:
        >>> metric = MeanIoU()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]).log(), torch.tensor([0, 1, 1]))
        >>> metric.compute().by_class
        (0.5, 0.5)

    References:
        Everingham et al., "The Pascal visual object classes challenge: a retrospective", 2015.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__(num_classes)
        self._counts = torch.zeros(0, dtype=torch.int64)

    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        classes = log_probs.shape[1]
        # What is NaN is wrong whatever its label, so that it counts as the class after the label.
        bad = log_probs.isnan().any(-1)
        found = torch.where(bad, (labels + 1) % classes, log_probs.argmax(-1))
        counts = torch.bincount(labels * classes + found, minlength=classes**2)
        self._counts = counts if not len(self._counts) else self._counts + counts

    def _merge(self, other: Self) -> None:
        if len(other._counts):
            self._counts = self._counts + other._counts if len(self._counts) else other._counts.clone()

    def _result(self) -> SegmentationScores:
        classes = self.num_classes or 1
        table = self._counts.reshape(classes, classes).double().cpu()
        right = table.diagonal()
        union = table.sum(0) + table.sum(1) - right
        overlap = torch.where(union > 0, right / union.clamp_min(1.0), torch.nan)
        share = float(right.sum() / table.sum())
        return SegmentationScores(float(overlap.nanmean()), tuple(overlap.tolist()), share)

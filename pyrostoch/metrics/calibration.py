"""Calibration: are predictions with a confidence of 80 % correct 80 % of the time?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pyrostoch.metrics.accuracy import correct
from pyrostoch.metrics.streaming import StreamingMetric

__all__ = ["Calibration", "Reliability"]


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in each bin of confidence.

    Args:
        confidence: Mean probability of the predicted class in each bin; NaN where the bin is empty.
        accuracy: Fraction of correct predictions in each bin; NaN where the bin is empty.
        count: Number of examples in each bin.
        examples: Number of all examples, including those with a NaN prediction, which are in no bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]
    examples: int

    @property
    def gaps(self) -> tuple[float, ...]:
        """|accuracy - confidence| of each bin; NaN where the bin is empty."""
        return tuple(abs(a - c) for a, c in zip(self.accuracy, self.confidence, strict=True))

    @property
    def ece(self) -> float:
        """Expected calibration error: the gaps, weighted by the counts; NaN if a prediction was NaN."""
        if sum(self.count) != self.examples:
            return math.nan
        return sum(n * gap for n, gap in zip(self.count, self.gaps, strict=True) if n) / self.examples

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap of a bin that is not empty; NaN if a prediction was NaN."""
        if sum(self.count) != self.examples:
            return math.nan
        return max(gap for n, gap in zip(self.count, self.gaps, strict=True) if n)

    def to_dict(self) -> dict[str, Any]:
        """`confidence`, `accuracy` and `count` as lists for JSON, with `None` in empty bins."""
        return {
            "confidence": [c if n else None for c, n in zip(self.confidence, self.count, strict=True)],
            "accuracy": [a if n else None for a, n in zip(self.accuracy, self.count, strict=True)],
            "count": list(self.count),
        }

    def __str__(self) -> str:
        bins = len(self.count)
        lines = ["confidence bin   count  confidence  accuracy"]
        for i, (c, a, n) in enumerate(zip(self.confidence, self.accuracy, self.count, strict=True)):
            if n:
                lines.append(f"({i / bins:.3f}, {(i + 1) / bins:.3f}]  {n:6d}  {c:10.4f}  {a:8.4f}")
        return "\n".join(lines)


class Calibration(StreamingMetric[Reliability]):
    r"""Reliability of the predicted class, in bins of equal width $((b-1)/B, b/B]$ of its probability.

    The expected calibration error is $\sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|$, the maximum
    calibration error the largest $|\mathrm{acc}_b - \mathrm{conf}_b|$.

    Args:
        num_classes: Number of classes; taken from the first batch when `None`.
        bins: Number of bins B.

    Example:
        >>> calibration = Calibration(bins=10)
        >>> calibration.update(torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log(), torch.tensor([0, 0]))
        >>> round(calibration.compute().ece, 4)
        0.25

    References:
        Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.
    """

    def __init__(self, num_classes: int | None = None, bins: int = 15) -> None:
        super().__init__(num_classes)
        if bins < 1:
            raise ValueError(f"Calibration needs bins >= 1, got {bins}")
        self.bins = bins
        # Rows: count, sum of confidences, number of correct; shape (3, bins).
        self._sums: Tensor | None = None

    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        confidence = log_probs.exp().amax(-1)
        edges = torch.linspace(0.0, 1.0, self.bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
        index = torch.bucketize(confidence.contiguous(), edges)
        # A matrix product, not index_add_, whose sums on an accelerator depend on the order of the threads.
        member = (index.unsqueeze(1) == torch.arange(self.bins, device=index.device)) & ~confidence.isnan().unsqueeze(1)
        columns = torch.stack(
            [torch.ones_like(confidence), confidence.nan_to_num(), correct(log_probs, labels).double()]
        )
        self._accumulate(columns @ member.double())

    def _accumulate(self, sums: Tensor) -> None:
        self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)

    def _merge(self, other: Self) -> None:
        if other.bins != self.bins:
            raise ValueError(f"Calibration with {self.bins} bins cannot merge one with {other.bins} bins")
        if other._sums is not None:
            self._accumulate(other._sums)

    def _result(self) -> Reliability:
        if self._sums is None:
            raise ValueError("Calibration has seen no examples")
        counts, confidences, corrects = self._sums.tolist()
        return Reliability(
            confidence=tuple(c / n if n else math.nan for c, n in zip(confidences, counts, strict=True)),
            accuracy=tuple(c / n if n else math.nan for c, n in zip(corrects, counts, strict=True)),
            count=tuple(int(n) for n in counts),
            examples=self.count,
        )

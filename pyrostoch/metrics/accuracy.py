"""Accuracy over a stream."""

from __future__ import annotations

import math

from torch import Tensor

from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.metrics.streaming import StreamingMetric

__all__ = ["Accuracy", "correct"]


def correct(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Whether the most probable class is the label; a row with NaN is wrong.

    Args:
        log_probs: Shape (n, C). Among equally probable classes one is taken, as `torch.argmax` does.
        labels: Class indices, shape (n,).

    Returns:
        Booleans, shape (n,).
    """
    return (log_probs.argmax(-1) == labels) & ~log_probs.isnan().any(-1)


class Accuracy(StreamingMetric[Estimate]):
    r"""Fraction $p$ of examples whose most probable class is the label, with the binomial error $\sqrt{p(1-p)/n}$.

    Args:
        num_classes: Number of classes; taken from the first batch when `None`.

    Example:
        >>> import torch
        >>> accuracy = Accuracy()
        >>> accuracy.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([0, 0]))
        >>> accuracy.compute().value
        0.5
    """

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__(num_classes)
        self._hits = RunningMean()

    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        self._hits.update(correct(log_probs, labels))

    def _join(self, other: Accuracy) -> None:
        self._hits.merge(other._hits)

    def _result(self) -> Estimate:
        p = self._hits.compute().value
        return Estimate(p, math.sqrt(max(p * (1.0 - p), 0.0) / self.count), self.count)

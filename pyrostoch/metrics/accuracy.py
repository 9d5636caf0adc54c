"""Accuracy over batches."""

from __future__ import annotations

import math
from typing import Self

from torch import Tensor

from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.metrics.streaming import StreamingMetric

__all__ = ["Accuracy", "correct"]


def correct(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Whether the most probable class is the label; False for a row with NaN.

    Args:
        log_probs: Log-probabilities, shape (n, C). Ties are broken as in `torch.argmax`.
        labels: Class indices, shape (n,).

    Returns:
        Booleans, shape (n,).

    Example:
        >>> import torch
        >>> correct(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([0, 0]))
        tensor([ True, False])
    """
    return (log_probs.argmax(-1) == labels) & ~log_probs.isnan().any(-1)


class Accuracy(StreamingMetric[Estimate]):
    r"""Fraction $p$ of examples whose most probable class is the label; its standard error is $\sqrt{p(1-p)/n}$.

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
        self._correct = RunningMean()

    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        self._correct.update(correct(log_probs, labels))

    def _merge(self, other: Self) -> None:
        self._correct.merge(other._correct)

    def _result(self) -> Estimate:
        p = self._correct.compute().value
        return Estimate(p, math.sqrt(max(p * (1.0 - p), 0.0) / self.count), self.count)

"""The Brier score over batches."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.metrics.streaming import StreamingMetric

__all__ = ["Brier"]


class Brier(StreamingMetric[Estimate]):
    r"""Multiclass Brier score: $\frac1n \sum_i \sum_c (p_{ic} - [y_i = c])^2$, between 0 and 2.

    The squares are summed over the classes, as in Brier's paper; for two classes this is twice the score that uses the
    probability of one class only.

    Args:
        num_classes: Number of classes; taken from the first batch when `None`.

    Example:
        >>> import torch
        >>> brier = Brier()
        >>> brier.update(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]))
        >>> round(brier.compute().value, 4)
        0.5

    References:
        Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review, 1950.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__(num_classes)
        self._scores = RunningMean()

    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        errors = log_probs.exp()
        errors.scatter_add_(1, labels.unsqueeze(1), errors.new_full((len(labels), 1), -1.0))
        self._scores.update(errors.square().sum(-1))

    def _merge(self, other: Self) -> None:
        self._scores.merge(other._scores)

    def _result(self) -> Estimate:
        return self._scores.compute()

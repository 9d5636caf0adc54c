"""Negative log-likelihood over batches."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.metrics.streaming import StreamingMetric

__all__ = ["NegativeLogLikelihood"]


class NegativeLogLikelihood(StreamingMetric[Estimate]):
    r"""Mean of $-\log p(y_i \mid x_i)$ in nats per example, with its standard error.

    It is infinite if a label has probability zero.

    Args:
        num_classes: Number of classes; taken from the first batch when `None`.

    Example:
        >>> import torch
        >>> nll = NegativeLogLikelihood()
        >>> nll.update(torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log(), torch.tensor([0, 1]))
        >>> round(nll.compute().value, 4)
        0.6931
    """

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__(num_classes)
        self._losses = RunningMean()

    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        self._losses.update(-log_probs.gather(1, labels.unsqueeze(1)))

    def _merge(self, other: Self) -> None:
        self._losses.merge(other._losses)

    def _result(self) -> Estimate:
        return self._losses.compute()

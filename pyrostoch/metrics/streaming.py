"""What every streaming metric of classification shares: checked batches, a count, update, merge, compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["StreamingMetric", "check_normalized"]

Result = TypeVar("Result")

# Half-precision log-softmax is off by up to about 0.02; logits handed over by mistake are off by far more.
NORMALIZATION_TOLERANCE = 0.05


def _is_at_hand(tensor: Tensor) -> bool:
    """Whether a value can be read without waiting for an accelerator."""
    return tensor.device.type == "cpu"


def _deviation(log_probs: Tensor) -> Tensor:
    """Largest |log-sum-exp| over the rows; rows with NaN are left to show up in the scores."""
    return log_probs.logsumexp(-1).abs().nan_to_num(nan=0.0).amax()


def _raise_unnormalized(deviation: float) -> None:
    if deviation > NORMALIZATION_TOLERANCE:
        raise ValueError(
            f"log_probs must be normalized over the last axis (log-sum-exp 0), but a row has |log-sum-exp| = "
            f"{deviation:.4g}; pass logits through log_softmax(-1) first"
        )


def check_normalized(log_probs: Tensor) -> None:
    """Refuse log-probabilities that do not sum to one; on an accelerator nothing is checked, as that would wait for it.

    Args:
        log_probs: Shape (..., C).

    Raises:
        ValueError: A row is not normalized.
    """
    if _is_at_hand(log_probs) and log_probs.numel():
        _raise_unnormalized(_deviation(log_probs).item())


class StreamingMetric(ABC, Generic[Result]):
    """Base of the classification metrics: examples come in batches, memory stays constant.

    A subclass writes `_add` (a checked batch), `_join` (another accumulator of its class) and `_result`. Labels out of
    range and unnormalized rows are refused by `update` on the CPU, and by `compute` on an accelerator, where looking at
    once would stall the device at every batch.

    Args:
        num_classes: Number of classes C; taken from the first batch when `None`.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"{type(self).__name__} needs num_classes >= 1, got {num_classes}")
        self.num_classes = num_classes
        self.count = 0
        # Smallest label, largest label, largest |log-sum-exp| seen on an accelerator; shape (3,).
        self._seen: Tensor | None = None

    def update(self, log_probs: Tensor, labels: Tensor) -> None:
        """Add a batch of predictions.

        Args:
            log_probs: Normalized log-probabilities, shape (n, C); `-inf` is allowed.
            labels: Class indices 0..C-1, integers of shape (n,).

        Raises:
            TypeError: Labels are not integers.
            ValueError: A shape is wrong, a label is out of range, or a row is not normalized.
        """
        log_probs, labels = self._check(log_probs, labels)
        if len(labels):
            self._absorb(log_probs, labels)

    def _absorb(self, log_probs: Tensor, labels: Tensor) -> None:
        self.count += len(labels)
        self._add(log_probs, labels)

    def merge(self, other: Any) -> None:
        """Add what another accumulator of the same class has seen; `other` is left as it is.

        Args:
            other: Accumulator over other examples.

        Raises:
            TypeError: `other` is of another class.
            ValueError: `other` has another number of classes or bins.
        """
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} merges with its own class only, got {type(other).__name__}")
        if other.num_classes is not None:
            if self.num_classes not in (None, other.num_classes):
                raise ValueError(
                    f"{type(self).__name__} over {self.num_classes} classes cannot merge one over {other.num_classes}"
                )
            self.num_classes = other.num_classes
        self._join(other)
        self.count += other.count
        if other._seen is not None:
            self._remember(other._seen)

    def compute(self) -> Result:
        """The metric over all examples seen so far; more may follow.

        Returns:
            The result.

        Raises:
            ValueError: No example was seen, or (on an accelerator) a label or a row was wrong.
        """
        if self.count == 0:
            raise ValueError(
                f"{type(self).__name__} has seen no examples: call update(log_probs, labels) first (is the data empty?)"
            )
        if self._seen is not None:
            low, high, deviation = self._seen.tolist()
            self._raise_wrong(int(low), int(high), deviation)
        return self._result()

    def _check(self, log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        name = type(self).__name__
        if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1]:
            raise ValueError(
                f"{name} expects log_probs of shape (n, C) and labels of shape (n,), got {tuple(log_probs.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"{name} expects integer labels (class indices), got {labels.dtype}")
        classes = log_probs.shape[1]
        if self.num_classes is None and classes:
            self.num_classes = classes
        if classes != self.num_classes:
            raise ValueError(f"{name} expects {self.num_classes} classes, got log_probs with {classes} columns")
        log_probs = log_probs.detach().to(torch.float64)
        labels = labels.detach().to(log_probs.device, torch.int64)
        if not len(labels):
            return log_probs, labels
        seen = torch.stack([labels.amin().double(), labels.amax().double(), _deviation(log_probs)])
        if _is_at_hand(seen):
            low, high, deviation = seen.tolist()
            self._raise_wrong(int(low), int(high), deviation)
            return log_probs, labels
        self._remember(seen)
        # Out-of-range labels would abort the device's kernel; `compute` reports them.
        return log_probs, labels.clamp(0, classes - 1)

    def _remember(self, seen: Tensor) -> None:
        if self._seen is not None:
            old, seen = self._seen, seen.to(self._seen.device)
            seen = torch.stack([torch.minimum(old[0], seen[0]), *torch.maximum(old[1:], seen[1:]).unbind()])
        self._seen = seen

    def _raise_wrong(self, low: int, high: int, deviation: float) -> None:
        classes = self.num_classes or 0
        if low < 0 or high >= classes:
            raise ValueError(
                f"label {low if low < 0 else high} is out of range: {type(self).__name__} has {classes} classes, so "
                f"labels run from 0 to {classes - 1}"
            )
        _raise_unnormalized(deviation)

    @abstractmethod
    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        """Add a checked float64 batch."""

    @abstractmethod
    def _join(self, other: Any) -> None:
        """Add another accumulator of this class."""

    @abstractmethod
    def _result(self) -> Result:
        """The metric over `self.count` >= 1 examples."""

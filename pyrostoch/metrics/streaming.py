"""Base class of the classification metrics: checks of batches, the count, update, merge and compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from pyrostoch._tracing import being_traced

__all__ = ["StreamingMetric", "check_normalized"]

Result = TypeVar("Result")

# The log-sum-exp of a half-precision log-softmax deviates from 0 by up to about 0.02, that of logits by far more.
NORMALIZATION_TOLERANCE = 0.05


def _readable_without_sync(tensor: Tensor) -> bool:
    """Whether a value can be read without waiting for an accelerator."""
    return tensor.device.type == "cpu" and not being_traced()


def _deviation(log_probs: Tensor) -> Tensor:
    """Largest |log-sum-exp| over the rows; rows with NaN are ignored, as they make the scores NaN."""
    return log_probs.logsumexp(-1).abs().nan_to_num(nan=0.0).amax()


def _raise_unnormalized(deviation: float) -> None:
    if deviation > NORMALIZATION_TOLERANCE:
        raise ValueError(
            f"log_probs must be normalized over the last axis (log-sum-exp 0), but a row has |log-sum-exp| = "
            f"{deviation:.4g}; pass logits through log_softmax(-1) first"
        )


def check_normalized(log_probs: Tensor) -> None:
    """Refuse probabilities that do not sum to one. Does nothing on an accelerator, as the check would synchronize.

    Args:
        log_probs: Log-probabilities, shape (..., C).

    Raises:
        ValueError: A row is not normalized.
    """
    if _readable_without_sync(log_probs) and log_probs.numel():
        _raise_unnormalized(_deviation(log_probs).item())


class StreamingMetric(ABC, Generic[Result]):
    """Base class of the classification metrics: examples come in batches, memory stays constant.

    A subclass defines `_add` (add a checked batch), `_merge` (add another accumulator of its class) and `_result`.
    Labels out of range and unnormalized rows are refused by `update` on the CPU, and by `compute` on an accelerator,
    where a check of each batch would synchronize with the device each time.

    Args:
        num_classes: Number of classes C; taken from the first batch when `None`.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"{type(self).__name__} needs num_classes >= 1, got {num_classes}")
        self.num_classes = num_classes
        self.count = 0
        # Smallest label, largest label and largest |log-sum-exp| of batches on an accelerator; shape (3,).
        self._extremes: Tensor | None = None

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
            self._add_checked(log_probs, labels)

    def _add_checked(self, log_probs: Tensor, labels: Tensor) -> None:
        self.count += len(labels)
        self._add(log_probs, labels)

    def merge(self, other: Self) -> None:
        """Add the examples of another accumulator of the same class; `other` is not changed.

        Args:
            other: Accumulator over other examples.

        Raises:
            TypeError: `other` is of another class.
            ValueError: `other` has another number of classes or bins.
        """
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} can merge only its own class, got {type(other).__name__}")
        if other.num_classes is not None:
            if self.num_classes not in (None, other.num_classes):
                raise ValueError(
                    f"{type(self).__name__} over {self.num_classes} classes cannot merge one over {other.num_classes}"
                )
            self.num_classes = other.num_classes
        self._merge(other)
        self.count += other.count
        if other._extremes is not None:
            self._update_extremes(other._extremes)

    def compute(self) -> Result:
        """The metric over all examples so far; more may be added.

        Returns:
            The result.

        Raises:
            ValueError: No example was seen, or (on an accelerator) a label is out of range or a row unnormalized.
        """
        if self.count == 0:
            raise ValueError(
                f"{type(self).__name__} has seen no examples: call update(log_probs, labels) first (is the data empty?)"
            )
        if self._extremes is not None:
            self._check_extremes(self._extremes)
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
        extremes = torch.stack([labels.amin().double(), labels.amax().double(), _deviation(log_probs)])
        if _readable_without_sync(extremes):
            self._check_extremes(extremes)
            return log_probs, labels
        self._update_extremes(extremes)
        # Out-of-range labels would abort a kernel of the device: they are clamped here, and `compute` reports them.
        return log_probs, labels.clamp(0, classes - 1)

    def _update_extremes(self, new: Tensor) -> None:
        if self._extremes is not None:
            old, new = self._extremes, new.to(self._extremes.device)
            new = torch.stack([torch.minimum(old[0], new[0]), *torch.maximum(old[1:], new[1:]).unbind()])
        self._extremes = new

    def _check_extremes(self, extremes: Tensor) -> None:
        low, high, deviation = extremes.tolist()
        classes = self.num_classes or 0
        if low < 0 or high >= classes:
            raise ValueError(
                f"label {int(low if low < 0 else high)} is out of range: {type(self).__name__} has {classes} classes, "
                f"so labels run from 0 to {classes - 1}"
            )
        _raise_unnormalized(deviation)

    @abstractmethod
    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        """Add a checked float64 batch."""

    @abstractmethod
    def _merge(self, other: Self) -> None:
        """Add another accumulator of this class."""

    @abstractmethod
    def _result(self) -> Result:
        """The metric over `self.count` >= 1 examples."""

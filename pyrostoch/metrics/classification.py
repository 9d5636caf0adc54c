"""All scores of a classifier in one pass over the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import Tensor

from pyrostoch.metrics.accuracy import Accuracy
from pyrostoch.metrics.brier import Brier
from pyrostoch.metrics.calibration import Calibration, Reliability
from pyrostoch.metrics.nll import NegativeLogLikelihood
from pyrostoch.metrics.streaming import StreamingMetric

__all__ = ["Classification", "ClassificationScores"]


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a classifier.

    Args:
        count: Number of examples.
        accuracy: Fraction of correct predictions.
        accuracy_stderr: Its binomial standard error.
        nll: Mean negative log-likelihood, nats per example.
        nll_stderr: Its standard error.
        brier: Brier score, squares summed over the classes (0 to 2).
        ece: Expected calibration error.
        mce: Maximum calibration error.
    """

    count: int
    accuracy: float
    accuracy_stderr: float
    nll: float
    nll_stderr: float
    brier: float
    ece: float
    mce: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"examples  {self.count}",
                f"accuracy  {100 * self.accuracy:.2f} % ± {100 * self.accuracy_stderr:.2f}",
                f"NLL       {self.nll:.4f} ± {self.nll_stderr:.4f} nats",
                f"Brier     {self.brier:.4f}",
                f"ECE       {self.ece:.4f}",
                f"MCE       {self.mce:.4f}",
            ]
        )


class Classification(StreamingMetric[ClassificationScores]):
    """Accuracy, negative log-likelihood, Brier score and calibration over batches; each batch is checked only once.

    A row of predictions with NaN counts as wrong and makes the other scores NaN.

    Args:
        num_classes: Number of classes.
        bins: Number of confidence bins of the calibration.

    Example:
        >>> import torch
        >>> scores = Classification(num_classes=2)
        >>> scores.update(torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log(), torch.tensor([0, 1]))
        >>> scores.compute().accuracy, round(scores.compute().brier, 4)
        (1.0, 0.125)
    """

    def __init__(self, num_classes: int, bins: int = 15) -> None:
        super().__init__(num_classes)
        self._accuracy = Accuracy(num_classes)
        self._nll = NegativeLogLikelihood(num_classes)
        self._brier = Brier(num_classes)
        self._calibration = Calibration(num_classes, bins)
        self._parts: tuple[StreamingMetric[Any], ...] = (self._calibration, self._accuracy, self._nll, self._brier)

    def _add(self, log_probs: Tensor, labels: Tensor) -> None:
        for part in self._parts:
            part._add_checked(log_probs, labels)

    def _merge(self, other: Self) -> None:
        # Calibration comes first: only it can raise an error, and then the other parts are unchanged.
        for part, other_part in zip(self._parts, other._parts, strict=True):
            part.merge(other_part)

    def reliability(self) -> Reliability:
        """Confidence and accuracy in each bin of confidence.

        Returns:
            The reliability of all examples seen.

        Raises:
            ValueError: No example was seen.
        """
        self.compute()
        return self._calibration.compute()

    def _result(self) -> ClassificationScores:
        accuracy, nll = self._accuracy.compute(), self._nll.compute()
        reliability = self._calibration.compute()
        return ClassificationScores(
            count=self.count,
            accuracy=accuracy.value,
            accuracy_stderr=accuracy.stderr,
            nll=nll.value,
            nll_stderr=nll.stderr,
            brier=self._brier.compute().value,
            ece=reliability.ece,
            mce=reliability.mce,
        )

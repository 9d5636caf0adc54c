"""Scores of a regression in one pass over the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyrostoch.metrics.running import RunningMean

__all__ = ["Regression", "RegressionScores"]


@dataclass(frozen=True)
class RegressionScores:
    """Scores of a regression.

    Args:
        count: Number of examples.
        rmse: Root mean squared error of the predictive mean, over all examples and outputs, in units of the target.
        rmse_stderr: Its standard error over examples, to first order, in units of the target.
        nll: Mean negative log predictive density, nats per example.
        nll_stderr: Its standard error.
    """

    count: int
    rmse: float
    rmse_stderr: float
    nll: float
    nll_stderr: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"examples  {self.count}",
                f"RMSE      {self.rmse:.4f} ± {self.rmse_stderr:.4f}",
                f"NLL       {self.nll:.4f} ± {self.nll_stderr:.4f} nats",
            ]
        )


class Regression:
    r"""RMSE and negative log predictive density over batches.

    RMSE is $\sqrt{\frac{1}{nd}\sum_{ij} (m_{ij} - y_{ij})^2}$ over n examples and d outputs. The log density of an
    example is the joint density of its outputs, which the caller has summed over outputs. The standard error of the
    RMSE is that of the mean square, divided by twice the RMSE.

    Example:
        >>> scores = Regression()
        >>> scores.update(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        >>> scores.compute().nll, round(scores.compute().rmse, 4)
        (1.5, 1.4142)
    """

    def __init__(self) -> None:
        self._losses = RunningMean()
        self._squares = RunningMean()
        self._outputs: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Number of examples seen."""
        return self._losses.count

    def update(self, log_density: Tensor, mean: Tensor, target: Tensor, observed: Tensor | None = None) -> None:
        """Add a batch of predictions.

        Args:
            log_density: Log predictive density of each target, summed over its outputs, shape (n,).
            mean: Predictive mean, shape (n,) or (n, ...).
            target: Target, in the shape of `mean`.
            observed: Which targets count for the RMSE, in the shape of `mean`; all by default. With a mask that leaves
                some out, every target that counts is an example of the standard error.

        Raises:
            ValueError: A shape is wrong (nothing is broadcast).
        """
        if mean.ndim == 0 or mean.shape != target.shape or log_density.shape != mean.shape[:1]:
            raise ValueError(
                "Regression expects log_density of shape (n,), and mean and target of the same shape (n, ...), got "
                f"{tuple(log_density.shape)}, {tuple(mean.shape)} and {tuple(target.shape)}; nothing is broadcast"
            )
        if self._outputs is None:
            self._outputs = tuple(mean.shape[1:])
        if tuple(mean.shape[1:]) != self._outputs:
            raise ValueError(
                f"Regression expects outputs of shape {self._outputs}, as in the first batch, got "
                f"{tuple(mean.shape[1:])}"
            )
        if len(mean) == 0:
            return
        self._losses.update(-log_density)
        errors = mean.detach().to(torch.float64) - target.detach().to(mean.device, torch.float64)
        if observed is None or bool(observed.all()):
            self._squares.update(errors.square().reshape(len(errors), -1).mean(-1))
        else:
            self._squares.update(errors.square()[observed])

    def merge(self, other: Regression) -> None:
        """Add the examples of another accumulator; `other` is not changed.

        Args:
            other: Accumulator over other examples.

        Raises:
            ValueError: The outputs have different shapes.
        """
        if None not in (self._outputs, other._outputs) and self._outputs != other._outputs:
            raise ValueError(f"Regression over outputs {self._outputs} cannot merge one over {other._outputs}")
        self._outputs = self._outputs if self._outputs is not None else other._outputs
        self._losses.merge(other._losses)
        self._squares.merge(other._squares)

    def compute(self) -> RegressionScores:
        """The scores over all examples seen so far.

        Returns:
            The scores.

        Raises:
            ValueError: No example was seen.
        """
        if self.count == 0:
            raise ValueError(
                "Regression has seen no examples: call update(log_density, mean, target) first (is the data empty?)"
            )
        nll, square = self._losses.compute(), self._squares.compute()
        rmse = math.sqrt(square.value)
        if math.isinf(rmse):
            stderr = math.inf
        else:
            stderr = square.stderr / (2.0 * rmse) if rmse > 0.0 else 0.0
        return RegressionScores(self.count, rmse, stderr, nll.value, nll.stderr)

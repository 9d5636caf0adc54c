"""A running mean with its standard error, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch.records import Record

__all__ = ["Estimate", "RunningMean"]


@dataclass(frozen=True)
class Estimate(Record):
    """A mean over examples and its standard error.

    Args:
        value: The mean, in the units of what was averaged.
        stderr: Standard error of the mean; NaN for a single example.
        count: Number of examples.
    """

    value: float
    stderr: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.stderr:.4f}"


class RunningMean:
    r"""Mean and standard error of values that come in batches, by pairwise combination of centered sums.

    Two parts with counts $a, b$, means $m_a, m_b$ and centered squares $S_a, S_b$ combine, with $d = m_b - m_a$, as
    $m = m_a + d\,b/(a+b)$ and $S = S_a + S_b + d^2\,ab/(a+b)$; the standard error is $\sqrt{S/(n(n-1))}$. Infinite
    values are summed separately, so that infinite values of one sign give an infinite mean, not NaN. Sums are float64
    and stay on the device of the values, so `update` never synchronizes with the device.

    Example:
        >>> running = RunningMean()
        >>> running.update(torch.tensor([1.0, 2.0]))
        >>> running.update(torch.tensor([6.0]))
        >>> running.compute().value
        3.0

    References:
        Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        # Count, mean and centered squares of the finite values, sum of the infinite values; shape (4,).
        self._state: Tensor | None = None

    def update(self, values: Tensor) -> None:
        """Add values.

        Args:
            values: Any shape; every element counts as one example.
        """
        if values.numel() == 0:
            return
        values = values.detach().to(torch.float64)
        infinite = values.isinf()
        finite = torch.where(infinite, 0.0, values)
        count = (~infinite).sum(dtype=torch.float64)
        mean = finite.sum() / count.clamp(min=1.0)
        squares = torch.where(infinite, 0.0, finite - mean).square().sum()
        excess = torch.where(infinite, values, 0.0).sum()
        self._combine(values.numel(), torch.stack([count, mean, squares, excess]))

    def merge(self, other: RunningMean) -> None:
        """Add the values of another accumulator; `other` is not changed.

        Args:
            other: Accumulator over other values of the same quantity.
        """
        if other._state is not None:
            self._combine(other.count, other._state)

    def _combine(self, count: int, state: Tensor) -> None:
        self.count += count
        if self._state is None:
            self._state = state
            return
        n, m, s, excess = self._state.unbind()
        n2, m2, s2, excess2 = state.to(self._state.device).unbind()
        total = (n + n2).clamp(min=1.0)
        delta = m2 - m
        self._state = torch.stack(
            [
                n + n2,
                m + delta * n2 / total,
                s + s2 + delta.square() * n * n2 / total,
                excess + excess2,
            ]
        )

    def compute(self) -> Estimate:
        """Mean and standard error of all values seen.

        Returns:
            The estimate. Infinite values of one sign make value and standard error infinite, infinite values of both
            signs make them NaN; a single value makes the standard error NaN.

        Raises:
            ValueError: No value was seen.
        """
        if self._state is None:
            raise ValueError("the mean of no values is not defined: update() was never called with a value")
        finite, mean, squares, excess = self._state.tolist()
        if excess != 0.0:
            return Estimate(mean + excess, abs(mean + excess), self.count)
        stderr = math.sqrt(squares / (finite * (finite - 1.0))) if finite > 1 else math.nan
        return Estimate(mean, stderr, self.count)

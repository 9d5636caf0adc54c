"""A mean over a stream of values, with its standard error, in constant memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Estimate", "RunningMean"]


@dataclass(frozen=True)
class Estimate:
    """A mean over examples and its standard error.

    Args:
        value: The mean, in the units of what was averaged.
        stderr: Standard error of the mean; NaN where one example says nothing about the spread.
        count: Number of examples.
    """

    value: float
    stderr: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.stderr:.4f}"


class RunningMean:
    r"""Mean and standard error of a stream, by pairwise combination of centered sums.

    Two parts with counts $a, b$, means $m_a, m_b$ and centered squares $S_a, S_b$ combine, with $d = m_b - m_a$, as
    $m = m_a + d\,b/(a+b)$ and $S = S_a + S_b + d^2\,ab/(a+b)$; the standard error is $\sqrt{S/(n(n-1))}$. Infinite
    values are kept apart, so that one of them gives an infinite mean, never NaN. Sums are float64 and stay on the
    device of the values: `update` never waits for it.

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
        # Finite count, their mean, their centered squares, sum of the infinite ones; shape (4,).
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
        """Add what another accumulator has seen; `other` is left as it is.

        Args:
            other: Accumulator over other examples of the same stream.
        """
        if other._state is not None:
            self._combine(other.count, other._state)

    def _combine(self, count: int, state: Tensor) -> None:
        self.count += count
        if self._state is None:
            self._state = state
            return
        ours, m, s, excess = self._state.unbind()
        theirs, m2, s2, excess2 = state.to(self._state.device).unbind()
        total = (ours + theirs).clamp(min=1.0)
        delta = m2 - m
        self._state = torch.stack(
            [
                ours + theirs,
                m + delta * theirs / total,
                s + s2 + delta.square() * ours * theirs / total,
                excess + excess2,
            ]
        )

    def compute(self) -> Estimate:
        """Mean and standard error of all values seen.

        Returns:
            The estimate. Infinite values make both fields infinite; fewer than two values make `stderr` NaN.

        Raises:
            ValueError: No value was seen.
        """
        if self._state is None:
            raise ValueError("the mean of no values is not defined: update() was never called with an example")
        finite, mean, squares, excess = self._state.tolist()
        if excess != 0.0:
            return Estimate(mean + excess, abs(mean + excess), self.count)
        stderr = math.sqrt(squares / (finite * (finite - 1.0))) if finite > 1 else math.nan
        return Estimate(mean, stderr, self.count)

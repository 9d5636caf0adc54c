"""Functions of a ratio that neither overflow nor lose digits, whatever its size."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BoundedRatio"]


class BoundedRatio:
    """Two numbers between -1 and 1 whose quotient is a ratio r, so that their powers do not overflow.

    Args:
        r: The ratio.

    Attributes:
        top: r where `|r| <= 1`, and its sign elsewhere.
        bottom: 1 where `|r| <= 1`, and `1 / |r|` elsewhere.

    Example:
        >>> ratio = BoundedRatio(torch.tensor([-0.5, 4.0]))
        >>> ratio.top, ratio.bottom
        (tensor([-0.5000,  1.0000]), tensor([1.0000, 0.2500]))
    """

    def __init__(self, r: Tensor) -> None:
        if torch.is_grad_enabled() and r.requires_grad:
            # Of two clamped numbers both would have a slope where |r| is exactly 1.
            large = r.abs() > 1
            self.top = torch.where(large, r.sign(), r)
            self._size = torch.where(large, r.abs(), 1.0)
        else:  # the same values, several times as fast as by a choice
            self.top = r.clamp(-1.0, 1.0)
            self._size = r.abs().clamp(min=1.0)
        self.bottom = self._size.reciprocal()

    def inside(self) -> Tensor:
        """The ratio itself where `|r| <= 1`, and `1 / r` elsewhere."""
        return self.top * self.bottom

    def half_log1p_square(self) -> Tensor:
        """`log(1 + r**2) / 2`."""
        return torch.log1p(self.inside().square()) / 2 + self._size.log()

    def odds(self, power: float, half: float) -> Tensor:
        """`|r|**power / (|r|**power + half)`.

        Args:
            power: The power.
            half: What the power is where the result is one half.
        """
        if power == 2:
            above, below = self.top.square(), self.bottom.square()
        else:
            above, below = self.top.abs().pow(power), self.bottom.pow(power)
        return above / (above + half * below)

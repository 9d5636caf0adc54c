"""Polynomials by Horner's rule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["polynomial"]


def polynomial(coefficients: tuple[float, ...], w: Tensor) -> Tensor:
    """A polynomial, elementwise.

    Args:
        coefficients: From the constant term up, at least two.
        w: The argument.

    Example:
        >>> polynomial((1.0, 0.0, 2.0), torch.tensor([3.0]))
        tensor([19.])
    """
    value = w * coefficients[-1] + coefficients[-2]
    if is_in_torch_dispatch_mode() or (torch.is_grad_enabled() and w.requires_grad):
        for coefficient in coefficients[-3::-1]:
            value = value * w + coefficient
        return value
    for coefficient in coefficients[-3::-1]:  # in place, since new memory for each result takes longer than the sums
        value.mul_(w).add_(coefficient)
    return value

"""At least single precision: half precision has too few digits for noise, probabilities and sums."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_single", "safe_sqrt"]

_PRECISE = (torch.float32, torch.float64)


def at_least_single(values: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 stay as they are.

    Args:
        values: The values.

    Example:
        >>> at_least_single(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    if values.dtype in _PRECISE:  # without a call of torch, since every weight comes here in every step
        return values
    return values.to(torch.promote_types(values.dtype, torch.float32))


def safe_sqrt(variance: Tensor) -> Tensor:
    """Square root with a finite gradient at zero; half precision is converted to float32 first.

    Args:
        variance: The variances.

    Example:
        >>> bool(safe_sqrt(torch.zeros(1)) < 1e-18)
        True
    """
    variance = at_least_single(variance)
    # The smallest normal number, and not one that small outputs would notice.
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()

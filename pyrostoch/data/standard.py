"""The mean and the standard deviation by which columns are standardized."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["standard_scale"]


def standard_scale(values: NDArray[Any], what: str = "values") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, in float64; a constant column gets 1, so that it is only centered.

    Args:
        values: The values, (rows, columns).
        what: What they are, for the message.

    Raises:
        ValueError: They are so large that their squares are infinite.

    Example:
        >>> standard_scale(np.array([[1.0, 0.1], [3.0, 0.1]]))[1].tolist()
        [1.0, 1.0]
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = values.mean(axis=0), values.std(axis=0)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise ValueError(
            f"{what}: the values are too large to be standardized, up to {np.abs(values).max():g}; rescale them"
        )
    # The standard deviation of a constant column is not exactly zero, but rounding error proportional to its values.
    constant = std <= 1e-12 * np.abs(values).max(axis=0)
    return mean, np.where(constant, 1.0, std)

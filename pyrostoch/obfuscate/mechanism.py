r"""The Gaussian mechanism: what noise on vectors of bounded length guarantees, ($\epsilon$, $\delta$)."""

from __future__ import annotations

import math

import torch

from pyrostoch._checks import check_count, check_positive

__all__ = ["gaussian_delta", "gaussian_epsilon"]

_STEPS = 200
# Beyond that the formula loses its digits.
_LARGEST = 1e4


def gaussian_delta(epsilon: float, scale: float, sensitivity: float, queries: int = 1) -> float:
    r"""The smallest $\delta$ with which the Gaussian mechanism is ($\epsilon$, $\delta$)-differentially private.

    A vector of which any two differ by at most $\Delta$ is sent under noise $N(0, \sigma^2 I)$. K queries with fresh
    noise are one with $\Delta \sqrt{K}$, and with $m = \Delta \sqrt{K} / \sigma$

    $$ \delta = \Phi(m / 2 - \epsilon / m) - e^\epsilon\, \Phi(-m / 2 - \epsilon / m) $$

    Args:
        epsilon: The bound of the privacy loss, in nats.
        scale: Standard deviation $\sigma$ of the noise.
        sensitivity: The largest distance $\Delta$ of two vectors; twice the norm to which they are clipped.
        queries: Number of queries K.

    Returns:
        A probability.

    Raises:
        ValueError: A number is out of range, or the noise is ten thousand times smaller than what it is to hide.

    Example:
        >>> round(gaussian_delta(1.0, scale=1.0, sensitivity=1.0), 4)
        0.1269

    References:
        Balle, Wang, "Improving the Gaussian mechanism for differential privacy", 2018, theorem 8; Dong, Roth, Su,
        "Gaussian differential privacy", 2022, for the composition.
    """
    if not math.isfinite(epsilon):
        raise ValueError(f"gaussian_delta epsilon: expected a finite number, got {epsilon!r}")
    size = check_positive("sensitivity", sensitivity) * math.sqrt(check_count("queries", queries))
    size /= check_positive("scale", scale)
    if size > _LARGEST:
        raise ValueError(
            f"gaussian_delta: the noise is {size:.3g} times smaller than the sensitivity, which hides nothing"
        )
    arguments = torch.tensor([size / 2 - epsilon / size, -size / 2 - epsilon / size], dtype=torch.float64)
    first, second = torch.special.log_ndtr(arguments).tolist()
    return max(0.0, math.exp(first) * -math.expm1(min(epsilon + second - first, 0.0)))


def gaussian_epsilon(scale: float, sensitivity: float, delta: float = 1e-5, queries: int = 1) -> float:
    r"""The smallest $\epsilon$ with which the Gaussian mechanism is ($\epsilon$, $\delta$)-differentially private.

    Args:
        scale: Standard deviation of the noise.
        sensitivity: The largest distance of two vectors; twice the norm to which they are clipped.
        delta: The probability $\delta$.
        queries: Number of queries with fresh noise.

    Returns:
        Nats; 0 where the noise is so large that $\delta$ alone covers it.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> [round(gaussian_epsilon(4.0, 1.0, queries=count), 2) for count in (1, 10, 100)]
        [0.93, 3.34, 13.21]

    References:
        As for `gaussian_delta`.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"gaussian_epsilon delta: expected a number between 0 and 1, got {delta!r}")
    if gaussian_delta(0.0, scale, sensitivity, queries) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(high, scale, sensitivity, queries) > delta:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if gaussian_delta(middle, scale, sensitivity, queries) > delta:
            low = middle
        else:
            high = middle
    return high

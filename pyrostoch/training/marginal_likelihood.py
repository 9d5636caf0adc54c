r"""The marginal likelihood of a Laplace approximation as a function of the prior's precision.

At weights $w^*$, whose distance from the prior's mean is $d$, and with eigenvalues $\lambda_j$ of the curvature,

$$ \log p(D \mid \delta) \approx \log p(D \mid w^*) + \tfrac{1}{2} \Bigl(n \log \delta - \delta d^2 -
\sum_{j=1}^n \log(\lambda_j + \delta)\Bigr). $$
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrostoch._manual import see

__all__ = ["best_precision", "effective_number"]

# The precisions among which the largest marginal likelihood is looked for, as natural logarithms, before it is refined.
_LOW, _HIGH, _POINTS = math.log(1e-8), math.log(1e8), 321
_BISECTIONS = 60


def effective_number(eigenvalues: Tensor, precision: Tensor | float) -> float:
    r"""The effective number of weights, $\sum_j \lambda_j / (\lambda_j + \delta)$.

    Args:
        eigenvalues: The eigenvalues.
        precision: The precision, or one for each.

    Example:
        >>> effective_number(torch.tensor([0.0, 1.0]), 1.0)
        0.5
    """
    return (eigenvalues / (eigenvalues + precision)).sum().item()


def best_precision(eigenvalues: Tensor, distance: float, what: str) -> float:
    """The precision of the largest marginal likelihood.

    Args:
        eigenvalues: The eigenvalues of the curvature, (n,).
        distance: The sum of the squared differences of weights and prior means.
        what: What has this precision, for messages.

    Raises:
        ValueError: The marginal likelihood has no maximum: it rises as the precision goes to zero or to infinity.

    Example:
        >>> found = best_precision(torch.full((3,), 1e6, dtype=torch.float64), 1.5, "all weights")
        >>> round(found, 3)  # n / d^2, as the data determine all weights
        2.0
    """
    logs = torch.linspace(_LOW, _HIGH, _POINTS, dtype=torch.float64, device=eigenvalues.device)
    values = torch.stack([_gain(eigenvalues, distance, log.exp()) for log in logs])
    best = int(values.argmax())
    if best in (0, _POINTS - 1):
        where = "zero" if best == 0 else "infinity"
        raise ValueError(
            f"fit_laplace prior_precision='marginal': the marginal likelihood of {what} rises as the precision goes to "
            f"{where}"
            + ("; the weights are at the prior's mean: train the network first" if best else "")
            + f", or take prior_precision='given'{see('how-to/choose_guide')}"
        )
    low, high = logs[best - 1].item(), logs[best + 1].item()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        delta = math.exp(middle)
        # The derivative by log delta; it falls through zero at the maximum.
        if effective_number(eigenvalues, delta) - delta * distance > 0.0:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))


def _gain(eigenvalues: Tensor, distance: float, precision: Tensor) -> Tensor:
    size = eigenvalues.numel()
    return 0.5 * (size * precision.log() - precision * distance - (eigenvalues + precision).log().sum())

r"""The derivative of the KL to the log-uniform prior, in closed form, for single precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrostoch.distributions.bounded_ratio import BoundedRatio
from pyrostoch.distributions.polynomial import polynomial

__all__ = ["log_uniform_slope", "log_uniform_slope_of_snr"]

# Coefficients of P and Q (see log_uniform_slope), from the constant term up: their quotient is the exact one at
# Chebyshev's nodes, by Dawson's function in 60 digits.
_NUMERATOR = (
    0.7968182928644447,
    -3.860552816724263,
    11.871157455348358,
    -23.81275076644216,
    34.918688103269595,
    -35.89426047569442,
    26.040505480643233,
    -12.396300594199982,
    3.517390128338694,
    -0.4484547842108083,
)
_DENOMINATOR = (
    1.0,
    -1.3996918142339922,
    2.8655446353352074,
    -0.19794320618185687,
    1.351694742857486,
    2.6119822849190903,
    0.5356803126378401,
    1.590676878796178,
    0.24007126489015418,
    0.18886516835518527,
)
# v = 1 / (1 + 12 alpha) is one half at alpha = 1 / 12.
_MIDPOINT = 12.0


def log_uniform_slope(log_alpha: Tensor) -> Tensor:
    r"""The derivative of `kl_log_uniform` by log alpha, elementwise: $-s D(s)$ with $s = 1 / \sqrt{2 \alpha}$.

    It is computed as $-\tfrac{1}{2} / (1 + \alpha) - v^2 (1 - v) P(2v - 1) / Q(2v - 1)$ with
    $v = 1 / (1 + 12 \alpha)$, terms of one sign and a rational function of degree 9; the relative error is below 4e-7
    in single precision.

    Args:
        log_alpha: log alpha, in single precision.

    Example:
        >>> log_uniform_slope(torch.tensor([-8.0, 0.0, 8.0]))
        tensor([-5.0017e-01, -3.6239e-01, -1.6771e-04])

    References:
        Hron, Matthews, Ghahramani 2018, "Variational Bayesian Dropout: Pitfalls and Fixes".
    """
    shifted = log_alpha + math.log(_MIDPOINT)
    v = torch.sigmoid(-shifted)
    return -(torch.sigmoid(-log_alpha) / 2 + v.square() * torch.sigmoid(shifted) * _quotient(v))


def log_uniform_slope_of_snr(snr: Tensor) -> Tensor:
    r"""The derivative of `kl_log_uniform_of_snr` by the ratio r = mean / standard deviation, elementwise.

    $$ \frac{2}{r} s D(s) = \frac{r}{1 + r^2} + 2 v (1 - v) \frac{r}{r^2 + 12} \frac{P(2v - 1)}{Q(2v - 1)}, $$

    odd in r, and computed without overflow.

    Args:
        snr: The ratio, in single precision.

    Example:
        >>> log_uniform_slope_of_snr(torch.tensor([-1.0, 0.0, 1e30]))
        tensor([-7.2478e-01,  0.0000e+00,  1.0000e-30])
    """
    ratio = BoundedRatio(snr)
    inside, above, below = ratio.inside(), ratio.top.square(), _MIDPOINT * ratio.bottom.square()
    both = above + below
    v = above / both
    return inside * ((1 + inside.square()).reciprocal() + 2 * v * (below / both.square()) * _quotient(v))


def _quotient(v: Tensor) -> Tensor:
    w = 2 * v - 1
    return polynomial(_NUMERATOR, w) / polynomial(_DENOMINATOR, w)

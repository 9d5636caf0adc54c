r"""Closed lower bounds of the mean log density of observations, for Gaussian outputs of a network.

They are the data terms of Bayesian last layers, whose outputs are Gaussian exactly; nothing is drawn.

References:
    Harrison, Willes, Snoek, "Variational Bayesian last layers", 2024; Blei, Lafferty, "Correlated topic models", 2006,
    for the bound of the log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyrostoch.moments.gaussian import Moments, per_example

__all__ = ["log_scale_mean", "softmax_bound"]


def softmax_bound(output: Moments) -> Callable[[Tensor], Tensor]:
    r"""$E \log \mathrm{softmax}_y(z) \ge m_y - \log \sum_c \exp(m_c + v_c / 2)$ for Gaussian logits z.

    It follows from Jensen's inequality, whatever the covariance of the logits.

    Args:
        output: Moments of the logits, (B, C).

    Returns:
        The bound in nats as a function of labels, (B,).

    Example:
        >>> bound = softmax_bound(Moments(torch.zeros(1, 2), torch.zeros(1, 2)))
        >>> bound(torch.tensor([0]))
        tensor([-0.6931])
    """
    total = torch.logsumexp(output.loc + 0.5 * output.var, -1)

    def bound(y: Tensor) -> Tensor:
        return output.loc.gather(1, y.unsqueeze(1)).squeeze(1) - total

    return bound


def log_scale_mean(output: Moments) -> Callable[[Tensor], Tensor]:
    r"""The mean log density under noise $N(\mu, e^{2 s})$ for Gaussian $\mu$ and s; exact.

    $$ E \log N(y; \mu, e^{2s}) = -\tfrac{1}{2} \log 2\pi - m_s - \tfrac{1}{2} e^{-2 m_s + 2 v_s} \bigl(v_\mu +
    (y - m_\mu + 2 c)^2\bigr), $$

    with the covariance c of $\mu$ and s of a target.

    Args:
        output: Moments of the output, (B, 2 d): d means, then d log standard deviations.

    Returns:
        The mean in nats as a function of targets, (B, d).

    Example:
        >>> mean = log_scale_mean(Moments(torch.zeros(1, 2), torch.zeros(1, 2)))
        >>> mean(torch.zeros(1, 1))
        tensor([-0.9189])
    """
    half = output.loc.shape[-1] // 2
    loc, log_scale = output.loc.chunk(2, -1)
    var, log_scale_var = output.var.chunk(2, -1)
    together = torch.zeros_like(loc)
    if output.cov is not None or output.lazy_covariance is not None:
        together = output.covariance().diagonal(half, 1, 2)

    def mean(y: Tensor) -> Tensor:
        precision = (2.0 * (log_scale_var - log_scale)).exp()
        squares = var + (y - loc + 2.0 * together).square()
        return per_example(-0.5 * math.log(2 * math.pi) - log_scale - 0.5 * precision * squares).sum(1)

    return mean

"""Learned marginals m(h) of drawn activations, for the bound I(x; h) <= E KL(q(h | x) || m(h))."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.layers.activations import Bernoulli, Gaussian, Laplace, LogNormal, StudentT

__all__ = ["Marginal", "fitted_marginals"]

# Above so many units a covariance of all pairs is not learned.
_MOST_UNITS = 1024
# Share of the mean variance that is added to each one, so that a unit that was constant has a density.
_FLOOR = 1e-6


class Marginal(Protocol):
    """A distribution of activations, (batch, units)."""

    name: str

    def log_prob(self, h: Tensor) -> Tensor:
        """The log density of each row, (batch,).

        Args:
            h: Activations, (batch, units).
        """


class _Full:
    """A normal distribution with the covariance of all pairs of units."""

    name = "normal, all covariances"

    def __init__(self, h: Tensor) -> None:
        self._mean = h.mean(0)
        covariance = torch.cov(h.T).reshape(h.shape[1], h.shape[1])
        floor = _FLOOR * covariance.diagonal().mean() + torch.finfo(h.dtype).tiny
        self._factor = torch.linalg.cholesky(covariance + floor * torch.eye(h.shape[1], dtype=h.dtype))

    def log_prob(self, h: Tensor) -> Tensor:
        """The log density of each row."""
        scaled = torch.linalg.solve_triangular(self._factor, (h - self._mean).T, upper=False)
        log_scale: Tensor = self._factor.diagonal().log().sum()
        return -0.5 * scaled.square().sum(0) - log_scale - 0.5 * h.shape[1] * math.log(2 * math.pi)


class _Classes:
    """A mixture of normal distributions with independent units, one for each class; one class is none."""

    def __init__(self, h: Tensor, y: Tensor) -> None:
        known, counts = y.unique(return_counts=True)
        self.name = "normal, independent units" + (", one for each class" if len(known) > 1 else "")
        parts = [h[y == c] for c in known]
        floor = _FLOOR * h.var(0).mean() + torch.finfo(h.dtype).tiny
        self._mean = torch.stack([part.mean(0) for part in parts])
        self._scale = torch.stack([part.var(0, correction=0) + floor for part in parts]).sqrt()
        self._weights = (counts / len(h)).to(h.dtype).log()

    def log_prob(self, h: Tensor) -> Tensor:
        """The log density of each row."""
        found = [
            torch.distributions.Normal(mean, scale).log_prob(h).sum(1)
            for mean, scale in zip(self._mean, self._scale, strict=True)
        ]
        return (torch.stack(found, 1) + self._weights).logsumexp(1)


class _Bits:
    """Independent bits with the frequencies of the examples, smoothed by half an example on each side."""

    name = "independent bits"

    def __init__(self, h: Tensor) -> None:
        self._logits = torch.logit((h.sum(0) + 0.5) / (len(h) + 1))

    def log_prob(self, h: Tensor) -> Tensor:
        """The log probability of each row."""
        return torch.distributions.Bernoulli(logits=self._logits).log_prob(h).sum(1)


def fitted_marginals(family: Any, h: Tensor, y: Tensor | None) -> list[Marginal]:
    """Marginals of several forms for draws of a layer, of which held-out draws tell the best.

    Args:
        family: The distribution of the layer's activations.
        h: Draws for different examples, (examples, units), float64.
        y: Class of each example, if there are classes.

    Raises:
        ValueError: There is none for such activations.
    """
    if isinstance(family, Bernoulli):
        return [_Bits(h)]
    if not isinstance(family, (Gaussian, Laplace, StudentT, LogNormal)):
        raise ValueError(
            f"audit: no marginal is learned for {type(family).__name__} activations, so there is no bound from above; "
            f"give bounds=False{see('how-to/audit_a_layer')}"
        )
    found: list[Marginal] = [_Classes(h, torch.zeros(len(h)))]
    if h.shape[1] <= min(_MOST_UNITS, len(h) - 2):
        found.append(_Full(h))
    if y is not None and bool((y.unique(return_counts=True)[1] > 1).all()) and len(y.unique()) > 1:
        found.append(_Classes(h, y))
    return found

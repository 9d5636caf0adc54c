"""Averages over Monte Carlo draws of a prediction, and its uncertainty by source, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch.metrics.streaming import check_normalized

__all__ = ["EntropyDecomposition", "MomentAverage", "PredictiveAverage", "decompose_entropy"]

# The exponential of minus so much is 0, and so is its product with it.
_LARGE = 1e300


class LogMeanExp:
    """Log of the mean of exponentials over draws, added one draw at a time in the log domain (float64)."""

    def __init__(self) -> None:
        self.draws = 0
        self._log_sum: Tensor | None = None

    def update(self, values: Tensor, draws: int = 1) -> None:
        """Add a draw, or the log of the sum of exponentials over several draws.

        Args:
            values: The draw, or the log of the sum, any shape, the same in every call.
            draws: Number of draws in the sum.
        """
        values = values.detach().to(torch.float64)
        self._log_sum = values.clone() if self._log_sum is None else torch.logaddexp(self._log_sum, values)
        self.draws += draws

    def merge(self, other: LogMeanExp) -> None:
        """Add the draws of another average.

        Args:
            other: Average over other draws.
        """
        if other._log_sum is not None:
            self.update(other._log_sum, other.draws)

    def compute(self) -> Tensor:
        """The log of the mean of exponentials, in the shape of a draw."""
        if self._log_sum is None:
            raise ValueError("no draws yet: call update() first")
        return self._log_sum - math.log(self.draws)


def _same_shape(name: str, what: str, expected: torch.Size | None, got: torch.Size) -> torch.Size:
    if expected is not None and expected != got:
        raise ValueError(
            f"{name} expects {what} of shape {tuple(expected)} in every draw, as in the first, got {tuple(got)}"
        )
    return got


def _entropy(log_probs: Tensor) -> Tensor:
    # In place of torch.special.entr, which takes the logarithm again: a probability of 0 has the logarithm -inf.
    return (log_probs.exp() * (-log_probs).clamp_max(_LARGE)).sum(-1)


class PredictiveAverage:
    r"""Average of class probabilities over draws, with the entropy split into its two sources.

    With $p_k$ the probabilities of draw $k$ and $\bar p$ their mean, for each example and in nats:
    total $= H[\bar p]$, aleatoric $= \frac1K \sum_k H[p_k]$, epistemic $= $ total $-$ aleatoric, which is the mutual
    information of label and weights and never negative (rounding below zero is clipped). Probabilities are added in the
    log domain, so the log-likelihood of a label is accurate also where every draw underflows.

    Example:
        >>> average = PredictiveAverage()
        >>> for probs in ([[1.0, 0.0]], [[0.0, 1.0]]):
        ...     average.update(torch.tensor(probs).log())
        >>> [round(x.item(), 4) for x in (average.total, average.aleatoric, average.epistemic)]
        [0.6931, 0.0, 0.6931]

    References:
        Depeweg et al., "Decomposition of uncertainty in Bayesian deep learning", ICML 2018.
    """

    def __init__(self) -> None:
        self._mean = LogMeanExp()
        self._entropies: Tensor | None = None
        self._shape: torch.Size | None = None

    @property
    def draws(self) -> int:
        """Number of draws averaged."""
        return self._mean.draws

    def update(self, log_probs: Tensor) -> None:
        """Add one draw.

        Args:
            log_probs: Normalized log-probabilities of one draw, shape (n, C), for the same examples in every draw.

        Raises:
            ValueError: The shape is wrong, or (on the CPU) a row is not normalized.
        """
        if log_probs.ndim != 2:
            raise ValueError(f"PredictiveAverage expects log_probs of shape (n, C), got {tuple(log_probs.shape)}")
        shape = _same_shape("PredictiveAverage", "log_probs", self._shape, log_probs.shape)
        log_probs = log_probs.detach().to(torch.float64)
        check_normalized(log_probs)
        self._shape = shape
        self._add_entropies(_entropy(log_probs))
        self._mean.update(log_probs)

    def update_all(self, log_probs: Tensor) -> None:
        """Add several draws, which together cost less than one after another.

        Args:
            log_probs: Normalized log-probabilities of K draws, shape (K, n, C).

        Raises:
            ValueError: The shape is wrong, or (on the CPU) a row is not normalized.
        """
        if log_probs.ndim != 3:
            raise ValueError(f"PredictiveAverage expects log_probs of shape (K, n, C), got {tuple(log_probs.shape)}")
        shape = _same_shape("PredictiveAverage", "log_probs", self._shape, log_probs.shape[1:])
        if len(log_probs) == 1:
            self.update(log_probs[0])
            return
        log_probs = log_probs.detach().to(torch.float64)
        check_normalized(log_probs)
        self._shape = shape
        self._add_entropies(_entropy(log_probs).sum(0))
        self._mean.update(log_probs.logsumexp(0), len(log_probs))

    def merge(self, other: PredictiveAverage) -> None:
        """Add the draws of another average over the same examples; `other` is not changed.

        Args:
            other: Average over other draws.

        Raises:
            ValueError: The shapes differ.
        """
        if other._shape is None or other._entropies is None:
            return
        self._shape = _same_shape("PredictiveAverage", "log_probs", self._shape, other._shape)
        self._add_entropies(other._entropies)
        self._mean.merge(other._mean)

    def _add_entropies(self, entropies: Tensor) -> None:
        self._entropies = entropies if self._entropies is None else self._entropies + entropies

    @property
    def log_probs(self) -> Tensor:
        """Log of the mean probabilities, float64, shape (n, C)."""
        self._require_draws()
        return self._mean.compute().clamp(max=0.0)

    @property
    def total(self) -> Tensor:
        """Entropy of the mean probabilities, nats, shape (n,)."""
        return _entropy(self.log_probs)

    @property
    def aleatoric(self) -> Tensor:
        """Mean of the draws' entropies, nats, shape (n,)."""
        return self._require_draws() / self.draws

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of label and weights, nats, shape (n,)."""
        return (self.total - self.aleatoric).clamp(min=0.0)

    def _require_draws(self) -> Tensor:
        if self._entropies is None:
            raise ValueError("PredictiveAverage has no draws yet: call update(log_probs) first")
        return self._entropies


@dataclass(frozen=True)
class EntropyDecomposition:
    """The entropy of a prediction and its sources, in nats, one value for each example.

    Args:
        total: Entropy of the mean prediction, shape (n,).
        aleatoric: Mean entropy of the draws, shape (n,).
        epistemic: Their difference, the mutual information of label and weights, shape (n,).
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    def to_dict(self) -> dict[str, list[float]]:
        """The fields as lists."""
        return {name: getattr(self, name).tolist() for name in ("total", "aleatoric", "epistemic")}

    def __str__(self) -> str:
        parts = (f"{name} {getattr(self, name).mean().item():.4f}" for name in ("total", "aleatoric", "epistemic"))
        return f"mean entropy of {len(self.total)} examples, nats: " + ", ".join(parts)


def decompose_entropy(draws: Iterable[Tensor]) -> EntropyDecomposition:
    """Split predictive entropy into aleatoric and epistemic parts, with one draw in memory at a time.

    Args:
        draws: Normalized log-probabilities, one (n, C) tensor per draw: a generator, a list, or a (K, n, C) tensor.

    Returns:
        The parts; see `PredictiveAverage` for formulas and reference.

    Raises:
        ValueError: There are no draws, or their shapes differ.

    Example:
        >>> parts = decompose_entropy(torch.full((5, 3, 2), 0.5).log())
        >>> parts.epistemic.tolist()
        [0.0, 0.0, 0.0]
    """
    average = PredictiveAverage()
    for log_probs in draws:
        average.update(log_probs)
    return EntropyDecomposition(average.total, average.aleatoric, average.epistemic)


class MomentAverage:
    r"""Mean and variance of a regression's prediction over draws, by the law of total variance.

    With $m_k, v_k$ the mean and variance of draw $k$: mean $= \bar m$, aleatoric $= \frac1K\sum_k v_k$, epistemic
    $= \frac1K\sum_k (m_k - \bar m)^2$ (Welford's recurrence), variance $=$ aleatoric $+$ epistemic. These are the exact
    moments of the mixture of the K draws. If each draw comes with the log density of the targets, `log_density` is that
    of the mixture.

    Example:
        >>> average = MomentAverage()
        >>> average.update(torch.tensor([1.0]), torch.tensor([0.5]))
        >>> average.update(torch.tensor([3.0]), torch.tensor([1.5]))
        >>> average.mean.item(), average.aleatoric.item(), average.epistemic.item(), average.variance.item()
        (2.0, 1.0, 1.0, 2.0)

    References:
        Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics, 1962.
    """

    def __init__(self) -> None:
        self.draws = 0
        self._shape: torch.Size | None = None
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None
        self._variances: Tensor | None = None
        self._density = LogMeanExp()

    def update(self, mean: Tensor, variance: Tensor, log_density: Tensor | None = None) -> None:
        """Add one draw.

        Args:
            mean: Predictive mean of one draw, shape (n,) or (n, d), for the same examples in every draw.
            variance: Predictive variance of the draw, in the shape of `mean`.
            log_density: Log density of the targets under the draw, summed over outputs, shape (n,); give it with every
                draw or with none.

        Raises:
            ValueError: A shape is wrong, or `log_density` was given with some draws only.
        """
        if mean.ndim == 0 or mean.shape != variance.shape:
            raise ValueError(
                "MomentAverage expects mean and variance of the same shape (n, ...), got "
                f"{tuple(mean.shape)} and {tuple(variance.shape)}"
            )
        if log_density is not None and log_density.shape != mean.shape[:1]:
            raise ValueError(
                f"MomentAverage expects log_density of shape ({mean.shape[0]},), got {tuple(log_density.shape)}"
            )
        shape = _same_shape("MomentAverage", "mean", self._shape, mean.shape)
        if self.draws and (log_density is not None) != (self._density.draws > 0):
            raise ValueError("MomentAverage needs log_density with every draw or with none")
        mean, variance = mean.detach().to(torch.float64), variance.detach().to(torch.float64)
        if self._mean is None or self._squares is None or self._variances is None:
            self._mean, self._squares, self._variances = mean.clone(), torch.zeros_like(mean), variance.clone()
        else:
            delta = mean - self._mean
            self._mean = self._mean + delta / (self.draws + 1)
            self._squares = self._squares + delta * (mean - self._mean)
            self._variances = self._variances + variance
        self.draws += 1
        self._shape = shape
        if log_density is not None:
            self._density.update(log_density)

    def update_all(self, mean: Tensor, variance: Tensor) -> None:
        """Add several draws, which together cost less than one after another.

        Args:
            mean: Predictive means of K draws, shape (K, n) or (K, n, d).
            variance: Their predictive variances, in the shape of `mean`.

        Raises:
            ValueError: A shape is wrong, or log densities were given with other draws.
        """
        if mean.ndim < 2 or mean.shape != variance.shape or self._density.draws:
            raise ValueError(
                "MomentAverage expects means and variances of the same shape (K, n, ...), and no log densities with "
                f"other draws, got {tuple(mean.shape)} and {tuple(variance.shape)}"
            )
        shape = _same_shape("MomentAverage", "mean", self._shape, mean.shape[1:])
        mean, variances = mean.detach().to(torch.float64), variance.detach().to(torch.float64).sum(0)
        count, own = len(mean), mean.mean(0)
        squares = (mean - own).square().sum(0)
        if self._mean is None or self._squares is None or self._variances is None:
            self._mean, self._squares, self._variances = own, squares, variances
        else:
            delta = own - self._mean
            self._mean = self._mean + delta * (count / (self.draws + count))
            self._squares = self._squares + squares + delta.square() * (self.draws * count / (self.draws + count))
            self._variances = self._variances + variances
        self.draws += count
        self._shape = shape

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, float64, in the shape of a draw's mean."""
        return self._require(self._mean)

    @property
    def aleatoric(self) -> Tensor:
        """Mean of the draws' variances: the noise, which more data does not remove."""
        return self._require(self._variances) / self.draws

    @property
    def epistemic(self) -> Tensor:
        """Variance of the draws' means: the uncertainty about the weights."""
        return self._require(self._squares) / self.draws

    @property
    def variance(self) -> Tensor:
        """Variance of the mixture: aleatoric plus epistemic."""
        return self.aleatoric + self.epistemic

    @property
    def log_density(self) -> Tensor:
        """Log density of the targets under the mixture, nats, shape (n,)."""
        self._require(self._mean)
        if self._density.draws == 0:
            raise ValueError("MomentAverage was given no log_density: pass it to every update() to score targets")
        return self._density.compute()

    def _require(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("MomentAverage has no draws yet: call update(mean, variance) first")
        return value

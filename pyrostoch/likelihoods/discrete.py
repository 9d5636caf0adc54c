"""Likelihoods of classes and counts."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch.likelihoods.base import Likelihood, check_labels, elementwise, per_example
from pyrostoch.moments import Moments
from pyrostoch.moments.predictive import Closed, softmax_under_gaussian

__all__ = ["Bernoulli", "Categorical", "Poisson"]


class Categorical(Likelihood):
    """One of C classes per example, or per position of an example; the network's output `(batch, ..., C)` is logits.

    Example:
        >>> Categorical()(torch.zeros(4, 2)).log_prob(torch.tensor([0, 1, 0, 1])).exp()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """Categorical(logits=output)."""
        if output.dim() < 2:
            raise ValueError(
                f"likelihood Categorical: expected logits of shape (batch, classes), got {tuple(output.shape)}"
            )
        return per_example(dist.Categorical(logits=output))

    def closed(self, output: Moments, **quantities: Tensor | float) -> Closed | None:
        """Class probabilities by a closed-form approximation, if the moments' settings ask for it."""
        return softmax_under_gaussian(output) if output.settings.closed else None

    def check_shape(self, distribution: Distribution, target: Tensor) -> None:
        """Raise an error if the targets are not integers, or their shape is not the output's without its last axis."""
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(
                f"likelihood Categorical: expected integer class labels, got {target.dtype}; one-hot or soft labels "
                "are not supported, convert with y.argmax(-1) or y.long()"
            )
        logits = getattr(elementwise(distribution), "logits", target).shape
        if len(logits) > 2 and target.shape == logits[:1] + logits[2:] and target.shape != logits[:-1]:
            raise ValueError(
                f"likelihood Categorical: expected the classes on the last axis of the network's output, got an output "
                f"of shape {tuple(logits)} and targets of shape {tuple(target.shape)}: the classes seem to be on the "
                "second axis, as torch's cross_entropy has them; return output.movedim(1, -1) from the network"
            )
        super().check_shape(distribution, target)

    def check_target(self, distribution: Distribution, target: Tensor) -> None:
        """Raise a `ValueError` if labels are outside 0 ... C - 1."""
        advice = (
            "leave unlabeled examples out, or give a function as the likelihood that masks them: "
            "lambda out: Categorical(logits=out).mask(labeled)"
        )
        check_labels("Categorical", distribution, target, advice)


class Bernoulli(Likelihood):
    """Binary targets; the network's output `(batch,)` or `(batch, d)` is the logits of d independent targets.

    Example:
        >>> Bernoulli()(torch.zeros(4, 1)).log_prob(torch.ones(4, 1)).shape
        torch.Size([4])
    """

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """Bernoulli(logits=output)."""
        return per_example(dist.Bernoulli(logits=output))

    def check_shape(self, distribution: Distribution, target: Tensor) -> None:
        """Raise an error if the targets are not floats, as the log density needs them, or have another shape."""
        if not target.is_floating_point():
            raise TypeError(
                f"likelihood Bernoulli: expected floating-point targets 0.0 or 1.0, got {target.dtype}; convert with "
                "y.float()"
            )
        super().check_shape(distribution, target)


class Poisson(Likelihood):
    """Counts; the network's output is the logarithm of the rate, `(batch,)` or `(batch, d)`.

    Example:
        >>> Poisson()(torch.zeros(3, 1)).mean.squeeze(-1)
        tensor([1., 1., 1.])
    """

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """Poisson(exp(output))."""
        return per_example(dist.Poisson(output.exp()))

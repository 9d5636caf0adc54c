"""Likelihood of ordered classes, such as grades."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch.likelihoods.base import Likelihood, check_labels, per_example

__all__ = ["Ordinal"]


class Ordinal(Likelihood):
    r"""One of C ordered classes; the network's output `(batch,)` or `(batch, 1)` is a single score f.

    $$ P(y \le k \mid f) = \sigma(\theta_k - f), \qquad \theta_0 < \theta_1 < \ldots < \theta_{C-2}. $$

    The thresholds are fitted with the network. Predictions are class probabilities, as with `Categorical`.

    Args:
        num_classes: Number C of classes, from 2 up.
        ignore_index: A label that stands for none, such as -100: such targets are missing, and left out.
        output: Which part of the network's output is the score; see `Likelihood`.

    Example:
        >>> Ordinal(3)(torch.zeros(1, 1)).probs.detach()
        tensor([[0.3333, 0.3333, 0.3333]])

    References:
        McCullagh, "Regression models for ordinal data", 1980.
    """

    def __init__(self, num_classes: int, *, ignore_index: int | None = None, output: str | int | None = None) -> None:
        super().__init__(output=output, ignore_index=ignore_index)
        self.num_classes = check_count("likelihood Ordinal num_classes", num_classes, 2)
        shares = torch.arange(1, num_classes) / num_classes  # all classes are equally likely at f = 0
        thresholds = torch.logit(shares)
        self.first = nn.Parameter(thresholds[:1])
        self.raw_steps = nn.Parameter(torch.log(torch.expm1(thresholds.diff())))

    @property
    def thresholds(self) -> Tensor:
        """The thresholds, (C - 1,), which rise."""
        return torch.cat([self.first, self.first + self.steps.cumsum(0)])

    @property
    def steps(self) -> Tensor:
        """The distances between thresholds, (C - 2,), which are positive."""
        return F.softplus(self.raw_steps) + 1e-6

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """The distribution of the classes of each example."""
        if output.dim() not in (1, 2) or (output.dim() == 2 and output.shape[1] != 1):
            raise ValueError(
                "likelihood Ordinal: expected a network output of shape (batch,) or (batch, 1), one score for each "
                f"example, got {tuple(output.shape)}{see('how-to/write_a_likelihood')}"
            )
        distances = self.thresholds.to(output.dtype) - output.reshape(-1, 1)
        below, above = F.logsigmoid(distances), F.logsigmoid(-distances)
        # log(s(b) - s(a)) = log s(b) + log s(-a) + log(1 - exp(a - b)), without differences of near numbers
        gaps = torch.log(-torch.expm1(-self.steps.to(output.dtype)))
        inner = below[:, 1:] + above[:, :-1] + gaps
        return per_example(dist.Categorical(logits=torch.cat([below[:, :1], inner, above[:, -1:]], 1)))

    def check_shape(self, distribution: Distribution, target: Tensor) -> None:
        """Raise an error if the targets are not integers, or not one label for each example."""
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(
                f"likelihood Ordinal: expected integer class labels, got {target.dtype}; convert with y.long()"
            )
        super().check_shape(distribution, target)

    def check_target(self, distribution: Distribution, target: Tensor) -> None:
        """Raise a `ValueError` if labels are outside 0 ... C - 1, but for those that are missing."""
        if self.missing:
            target = self.missing.filled(target, distribution)
        check_labels("Ordinal", distribution, target, "say how many classes there are: Ordinal(num_classes)")

    def extra_repr(self) -> str:
        """The number of classes."""
        return f"{self.num_classes}"

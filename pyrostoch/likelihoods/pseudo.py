"""Pseudo-likelihoods of classes: what a loss gives for training, and the class probabilities that predictions need."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.types import _size

from pyrostoch.likelihoods.loss import LossDistribution
from pyrostoch.likelihoods.missing import WithMissing
from pyrostoch.likelihoods.several import JointObservations, WeightedObservations

__all__ = ["PseudoCategorical", "WeightedCategorical", "is_pseudo", "normalized"]


class PseudoCategorical(dist.Categorical):
    r"""One of C classes, with a pseudo-likelihood $L(y)$ in place of a probability: it need not sum to one over y.

    Two things differ, and each has its use:

    - `log_prob` is $\log L(y)$ in nats, as it was given. ELBO and MCMC use it, so that the posterior is proportional to
      prior times pseudo-likelihood.
    - `probs`, `logits`, `sample` and `entropy` are those of the class probabilities $p(y) = L(y) / \sum_k L(k)$.
      Predictions, drawn targets and scores use them.

    Labels that are not observed cannot be summed out under L, so that Pyro's enumeration is refused.

    Args:
        log_pseudo: $\log L$ of each class, (..., C), in nats.
        validate_args: Check arguments and the values given to `log_prob`; torch's default when None.

    Example:
        >>> observations = PseudoCategorical(torch.tensor([[0.0, -2.0], [-1.0, -1.0]]))
        >>> observations.log_prob(torch.tensor([1, 0]))
        tensor([-2., -1.])
        >>> observations.probs
        tensor([[0.8808, 0.1192],
                [0.5000, 0.5000]])

    References:
        Sollich, "Bayesian methods for support vector machines: evidence and predictive class probabilities", 2002;
        Bissiri, Holmes, Walker, "A general framework for updating belief distributions", 2016, on losses in place of
        log-likelihoods.
    """

    def __init__(self, log_pseudo: Tensor, validate_args: bool | None = None) -> None:
        self.log_pseudo = log_pseudo
        super().__init__(logits=log_pseudo, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: PseudoCategorical | None = None) -> Any:
        """The same distribution with a larger batch shape."""
        new = self.__new__(type(self)) if _instance is None else _instance
        new.log_pseudo = self.log_pseudo.expand(*batch_shape, self.log_pseudo.shape[-1])
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log of the pseudo-likelihood of labels, in nats.

        Args:
            value: Labels.
        """
        if self._validate_args:
            self._validate_sample(value)
        labels, log_pseudo = torch.broadcast_tensors(value.long().unsqueeze(-1), self.log_pseudo)
        return log_pseudo.gather(-1, labels[..., :1]).squeeze(-1)

    def enumerate_support(self, expand: bool = True) -> NoReturn:
        """Raises `ValueError`: a sum over labels would need their probabilities."""
        raise ValueError(
            "PseudoCategorical: expected observed labels, got a site to enumerate; a sum over labels needs their "
            "probabilities, and the log_prob of a pseudo-likelihood is not one: give the labels, or use Categorical"
        )


class WeightedCategorical(PseudoCategorical):
    r"""One of C classes, with the log probability of each multiplied by a weight: $\log L(y) = w_y \log p(y)$.

    The class probabilities of predictions are $p(y)$, without the weights.

    Args:
        logits: Logits of the classes, (..., C).
        weights: The weights, (C,).
        validate_args: Check arguments and the values given to `log_prob`; torch's default when None.

    Example:
        >>> WeightedCategorical(torch.zeros(1, 2), torch.tensor([1.0, 3.0])).log_prob(torch.tensor([1]))
        tensor([-2.0794])
    """

    def __init__(self, logits: Tensor, weights: Tensor, validate_args: bool | None = None) -> None:
        log_probs = logits.log_softmax(-1)
        super().__init__(log_probs * weights, validate_args)
        dist.Categorical.__init__(self, logits=log_probs, validate_args=validate_args)


def is_pseudo(distribution: Distribution) -> bool:
    """Whether the `log_prob` of a distribution of observations, or of a head, is that of a pseudo-likelihood.

    Args:
        distribution: The distribution, perhaps within `Independent`, `mask` or `expand`, or averaged over moments.

    Example:
        >>> is_pseudo(PseudoCategorical(torch.zeros(5, 2)).mask(torch.ones(5) > 0)), is_pseudo(dist.Normal(0.0, 1.0))
        (True, False)
    """
    if isinstance(distribution, JointObservations):
        return any(map(is_pseudo, distribution.heads.values()))
    base: Any = distribution
    while hasattr(base, "base_dist"):
        base = base.base_dist
    return isinstance(base, (PseudoCategorical, WeightedObservations, LossDistribution))


def normalized(distribution: Distribution) -> Distribution:
    """The distribution by which targets are predicted and scored: itself, unless it is a pseudo-likelihood.

    Args:
        distribution: A distribution of observations.

    Returns:
        The distribution of the class probabilities, within the same `Independent`, `mask` and `expand`.

    Example:
        >>> normalized(PseudoCategorical(torch.full((3, 2), -4.0))).log_prob(torch.tensor([0, 1, 1])).exp()
        tensor([0.5000, 0.5000, 0.5000])
    """
    if isinstance(distribution, PseudoCategorical):
        return dist.Categorical(logits=distribution.logits, validate_args=distribution._validate_args)
    if isinstance(distribution, JointObservations):
        return JointObservations({name: normalized(head) for name, head in distribution.heads.items()})
    if not is_pseudo(distribution) or not isinstance(
        distribution, (Independent, ExpandedDistribution, MaskedDistribution)
    ):
        return distribution
    inner: Any = normalized(distribution.base_dist)
    if isinstance(distribution, WithMissing):
        return WithMissing(inner, distribution.missing)
    if isinstance(distribution, MaskedDistribution):
        return inner.mask(distribution._mask)
    if isinstance(distribution, ExpandedDistribution):
        return inner.expand(distribution.batch_shape)
    return inner.to_event(distribution.reinterpreted_batch_ndims)

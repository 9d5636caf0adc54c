"""Weights on a grid: a categorical distribution over levels times a scale, and the prior of equally likely levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from pyrostoch._checks import is_rising
from pyrostoch._precision import at_least_single
from pyrostoch.distributions.improper import ImproperPrior

__all__ = ["Grid", "Levels", "matching_scale"]

# A value within this distance of a level, in units of the scale, counts as on it: its last bits may be rounded.
_TOLERANCE = 1e-3


class Levels(TorchDistribution):
    r"""A weight $w = s\,\ell_j$ with probability $p_j$: levels $\ell$, scale $s$, $p$ = softmax(logits).

    A draw is differentiable in the scale. Its gradient in the logits is that of the mean (straight-through), which is
    biased for functions that are not linear in the weight. Mean and variance are exact and differentiable, so local
    reparameterization and moment propagation, which use only these, need no straight-through gradient. `log_prob` is
    the log of a probability mass.

    Args:
        logits: Shape (..., k); the leading axes are the batch shape.
        levels: k increasing numbers.
        scale: $s > 0$, broadcast to the batch shape.
        validate_args: Check the arguments; torch's default when None.

    Raises:
        ValueError: The levels do not increase, or their number is not that of the logits.

    Example:
        >>> distribution = Levels(torch.log(torch.tensor([0.25, 0.25, 0.5])), (-1.0, 0.0, 1.0), torch.tensor(2.0))
        >>> distribution.mean, distribution.variance
        (tensor(0.5000), tensor(2.7500))
        >>> distribution.log_prob(torch.tensor(2.0)).exp()
        tensor(0.5000)

    References:
        Shayer, Levi, Fetaya, "Learning discrete weights using the local reparameterization trick", 2018; Peters,
        Welling, "Probabilistic binary neural networks", 2018 (arXiv 1809.03368).
    """

    arg_constraints = {"logits": constraints.real_vector, "scale": constraints.positive}
    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        levels: Sequence[float] = (-1.0, 0.0, 1.0),
        scale: Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.levels = tuple(float(level) for level in levels)
        if len(self.levels) != logits.shape[-1] or len(self.levels) < 2 or not is_rising(self.levels):
            raise ValueError(
                f"Levels: expected {logits.shape[-1]} increasing levels, as many as the logits, got {self.levels}"
            )
        self.logits = logits
        self.scale = torch.as_tensor(scale, dtype=logits.dtype, device=logits.device).expand(logits.shape[:-1])
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Levels | None = None) -> Levels:
        """The same distribution with a larger batch shape."""
        new = self._get_checked_instance(Levels, _instance)
        new.levels = self.levels
        new.logits = self.logits.expand((*batch_shape, len(self.levels)))
        new.scale = self.scale.expand(batch_shape)
        super(Levels, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def probs(self) -> Tensor:
        """Probabilities of the levels, (..., k)."""
        return self._level_probs.movedim(0, -1)

    @property
    def mean(self) -> Tensor:
        """Mean of the weight, in the batch shape."""
        return self.scale * self._center

    @property
    def mode(self) -> Tensor:
        """The most probable level of each weight times the scale, in the batch shape."""
        return self.scale * self._levels[self.states().long()]

    @property
    def variance(self) -> Tensor:
        """Variance of the weight, in the batch shape."""
        # From the distances to the mean, not E[w^2] - E[w]^2, so that nothing cancels.
        probs = self._level_probs
        center = self._mean_level(probs)
        distance = self._leading_axis(self._levels, center.dim()) - center
        return self.scale.square() * (probs * distance.square()).sum(0)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels times the scale, up to rounding."""
        return _OnGrid(self)

    def states(self) -> Tensor:
        """Index of each weight's most probable level, from 0; int8 for up to 128 levels, else int16."""
        return self.logits.argmax(-1).to(torch.int8 if len(self.levels) <= 128 else torch.int16)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw of shape `sample_shape + batch_shape`; its gradient in the logits is straight-through."""
        shape = self._extended_shape(Size(sample_shape))
        center = self._center
        with torch.no_grad():
            precise_probs = at_least_single(self.logits).movedim(-1, 0).softmax(0)
            uniform = torch.rand(shape, dtype=precise_probs.dtype, device=center.device)
            # Inverse of the distribution function: one uniform number for each weight.
            index = torch.zeros(shape, dtype=torch.int16, device=center.device)
            for cumulative in precise_probs[:-1].cumsum(0):
                index = index + (uniform >= cumulative)
            drawn = self._levels[index.long()]
        return self.scale * drawn + self.scale.detach() * (center - center.detach())

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """The same draw as `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats of values on a level, minus infinity elsewhere."""
        if self._validate_args:
            self._validate_sample(value)
        index, on_level = self.nearest(value)
        logits = self.logits.log_softmax(-1).expand(*index.shape, len(self.levels))
        log_probs = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return torch.where(on_level, log_probs, -math.inf)

    def nearest(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the nearest level, and whether the value is on it.

        Args:
            value: Weights, any shape that broadcasts with the batch shape.
        """
        distance = (value.unsqueeze(-1) / self.scale.unsqueeze(-1) - self._levels).abs()
        smallest, index = distance.min(-1)
        return index, smallest <= _TOLERANCE

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        # The clamp makes p log p zero, not NaN, for a level with probability 0.
        logs = self.logits.movedim(-1, 0).log_softmax(0).clamp_min(torch.finfo(self.logits.dtype).min)
        return -(logs.exp() * logs).sum(0)

    @property
    def _level_probs(self) -> Tensor:
        """Probabilities with the levels in front, (k, ...): a softmax over a last axis of size 3 is 20 times slower."""
        return self.logits.movedim(-1, 0).softmax(0)

    @property
    def _center(self) -> Tensor:
        """Mean of the weight in units of the scale, in the batch shape."""
        return self._mean_level(self._level_probs)

    def _mean_level(self, level_probs: Tensor) -> Tensor:
        return (level_probs * self._leading_axis(self._levels, level_probs.dim() - 1)).sum(0)

    @property
    def _levels(self) -> Tensor:
        return torch.tensor(self.levels, dtype=self.logits.dtype, device=self.logits.device)

    @staticmethod
    def _leading_axis(values: Tensor, dims: int) -> Tensor:
        """One value for each level, (k,), followed by `dims` axes of size 1."""
        return values.reshape(-1, *[1] * dims)


def matching_scale(weights: Tensor, levels: Tensor) -> Tensor:
    """The scale at which equally likely levels have the same mean square as the weights.

    Args:
        weights: All weights of one site, any shape.
        levels: The levels, (k,), not all 0.

    Example:
        >>> matching_scale(torch.tensor([2.0, -2.0]), torch.tensor([-1.0, 1.0]))
        tensor(2.)
    """
    root_mean_square = weights.square().mean().sqrt().clamp_min(torch.finfo(weights.dtype).tiny)
    return root_mean_square / levels.square().mean().sqrt()


class _OnGrid(constraints.Constraint):
    """The levels of a distribution times its scale, up to rounding."""

    is_discrete = True

    def __init__(self, distribution: Levels) -> None:
        self.distribution = distribution
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is on a level."""
        return self.distribution.nearest(value)[1]


class Grid(ImproperPrior):
    r"""The prior of a weight on a grid: all levels of the posterior are equally likely, at any scale.

    $\mathrm{KL} = \log k - H(q)$ for k levels. It takes its levels from the posterior, so it is no probability
    distribution of its own and cannot be sampled.

    Args:
        batch_shape: As in torch.
        validate_args: As in torch.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> kl_divergence(Levels(torch.zeros(3)), Grid())
        tensor(0.)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises `ValueError`: the prior takes its levels from the posterior."""
        self._refuse("log probability of its own")

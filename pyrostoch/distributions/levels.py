"""A weight on a grid: a categorical distribution over levels, times a scale, and the prior that favors no level."""

from __future__ import annotations

import itertools
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

# A value computed in another way may differ in its last bits: so much of the scale.
_TOLERANCE = 1e-3


class Levels(TorchDistribution):
    r"""A weight $w = s\,\ell_j$ with probability $p_j$: levels $\ell$, a scale s, $p$ = softmax(logits).

    A draw is differentiable in the scale; in the logits it passes back the derivative of the mean (straight through),
    which is biased for what is not linear in the weight. Mean and variance are exact and differentiable, so local
    reparameterization and moments are too. ``log_prob`` is the log of a probability mass.

    Args:
        logits: (..., k), the batch shape in front.
        levels: k rising numbers.
        scale: s > 0, broadcast to the batch shape.
        validate_args: Check the arguments; torch's default when None.

    Raises:
        ValueError: The levels do not rise, or are not as many as the logits.

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
                f"Levels: expected {logits.shape[-1]} rising levels, as many as the logits, got {self.levels}"
            )
        self.logits = logits
        self.scale = torch.as_tensor(scale, dtype=logits.dtype, device=logits.device).expand(logits.shape[:-1])
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Levels | None = None) -> Levels:
        """The same distribution over a larger batch shape."""
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
        return self._chances.movedim(0, -1)

    @property
    def mean(self) -> Tensor:
        """The mean weight."""
        return self.scale * self._center(self._chances)

    @property
    def variance(self) -> Tensor:
        """The weight's variance."""
        # About the mean itself, so that nothing cancels.
        chances = self._chances
        center = self._center(chances)
        apart = self._over(self._levels, center.dim()) - center
        return self.scale.square() * (chances * apart.square()).sum(0)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels times the scale, up to rounding."""
        return _OnGrid(self)

    def states(self) -> Tensor:
        """The most probable level's number of each weight from 0, int8 where that holds it."""
        return self.logits.argmax(-1).to(torch.int8 if len(self.levels) <= 128 else torch.int16)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draws, straight through in the logits."""
        shape = self._extended_shape(Size(sample_shape))
        probs = self._chances
        center = self._center(probs)
        with torch.no_grad():
            wide = at_least_single(self.logits).movedim(-1, 0).softmax(0)
            chance = torch.rand(shape, dtype=wide.dtype, device=probs.device)
            drawn = torch.full(shape, self.levels[0], dtype=probs.dtype, device=probs.device)
            # One number a weight; each step is taken where it lies beyond all that is below.
            for below, (low, high) in zip(wide.cumsum(0), itertools.pairwise(self.levels), strict=False):
                drawn = drawn + (high - low) * (chance >= below)
        return self.scale * drawn + self.scale.detach() * (center - center.detach())

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of levels, minus infinity elsewhere."""
        if self._validate_args:
            self._validate_sample(value)
        number, near = self.nearest(value)
        logits = self.logits.log_softmax(-1).expand(*number.shape, len(self.levels))
        found = logits.gather(-1, number.unsqueeze(-1)).squeeze(-1)
        return torch.where(near, found, -math.inf)

    def nearest(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest level's number, and whether the value is on it.

        Args:
            value: Weights.
        """
        apart = (value.unsqueeze(-1) / self.scale.unsqueeze(-1) - self._levels).abs()
        least, number = apart.min(-1)
        return number, least <= _TOLERANCE

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        # A level of no chance counts 0, and not 0 times minus infinity.
        logs = self.logits.movedim(-1, 0).log_softmax(0).clamp_min(torch.finfo(self.logits.dtype).min)
        return -(logs.exp() * logs).sum(0)

    # Levels in front: a softmax over a last axis of three is twenty times slower.
    @property
    def _chances(self) -> Tensor:
        return self.logits.movedim(-1, 0).softmax(0)

    def _center(self, chances: Tensor) -> Tensor:
        """The mean level."""
        return (chances * self._over(self._levels, chances.dim() - 1)).sum(0)

    @property
    def _levels(self) -> Tensor:
        return torch.tensor(self.levels, dtype=self.logits.dtype, device=self.logits.device)

    @staticmethod
    def _over(values: Tensor, dims: int) -> Tensor:
        """A value for each level, in front of so many axes."""
        return values.reshape(-1, *[1] * dims)


def matching_scale(weights: Tensor, levels: Tensor) -> Tensor:
    """The scale at which evenly likely levels have the weights' mean square.

    Args:
        weights: The weights, all of one site.
        levels: The levels, not all 0.

    Example:
        >>> matching_scale(torch.tensor([2.0, -2.0]), torch.tensor([-1.0, 1.0]))
        tensor(2.)
    """
    size = weights.square().mean().sqrt().clamp_min(torch.finfo(weights.dtype).tiny)
    return size / levels.square().mean().sqrt()


class _OnGrid(constraints.Constraint):
    """Values on the grid of a distribution."""

    is_discrete = True

    def __init__(self, distribution: Levels) -> None:
        self.distribution = distribution
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Which values are."""
        return self.distribution.nearest(value)[1]


class Grid(ImproperPrior):
    r"""The prior of a weight on a grid: each level of the posterior's distribution is as likely, whatever their scale.

    $\mathrm{KL} = \log k - H(q)$. No probability distribution, since its levels are those of the posterior it is held
    against; it cannot be sampled.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> kl_divergence(Levels(torch.zeros(3)), Grid())
        tensor(0.)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: the levels are those of the posterior."""
        self._refuse("log probability of its own")

"""Weights of a kernel that share the trials of one multinomial, and the prior under which all cells are alike."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from pyrostoch._checks import check_count
from pyrostoch._precision import at_least_single
from pyrostoch.distributions.improper import ImproperPrior

__all__ = ["SignedMultinomial", "UniformMultinomial"]


class SignedMultinomial(TorchDistribution):
    r"""A kernel's weights $w_j = s\,(C_j^+ - C_j^-)/n$, where n trials fall on 2 F cells: an entry j and a sign.

    A kernel is what one output unit or channel sees, F weights. Its counts are
    $C \sim \mathrm{Multinomial}(n, p)$ with $p = \mathrm{softmax}$ of the logits over its 2 F cells, independent of
    other kernels. With $d_j = p_j^+ - p_j^-$,

    $$ \mathbb{E}w_j = s\,d_j, \qquad \mathrm{Var}\,w_j = \frac{s^2}{n}(p_j^+ + p_j^- - d_j^2), \qquad
    \mathrm{Cov}(w_i, w_j) = -\frac{s^2}{n}\,d_i d_j. $$

    The sum of $|w_j|$ over a kernel is at most s. The weights of a kernel depend on each other, so that the whole
    weight is one event: one draw is shared by all examples. With F = 1 it is `BinomialLevels`.

    A draw is differentiable in the scale; its gradient in the logits is that of the mean (straight-through), which is
    biased for functions that are not linear in the weights.

    Args:
        logits: Shape (2, *shape of the weight): of the positive cells, then of the negative ones.
        n: Number of trials of each kernel, at least 1.
        scale: $s > 0$, a number.
        out_axis: Axis of the weight that counts the kernels.
        validate_args: Check the arguments; torch's default when None.

    Raises:
        ValueError: `n` is no whole number of at least 1, or the first axis of the logits has not size 2.

    References:
        Johnson, Kotz, Balakrishnan, "Discrete multivariate distributions", 1997, chapter 35, for the moments.

    Example:
        >>> logits = torch.log(torch.tensor([[[0.5, 0.2]], [[0.1, 0.2]]]))
        >>> distribution = SignedMultinomial(logits, 10)
        >>> distribution.mean, distribution.variance
        (tensor([[0.4000, 0.0000]]), tensor([[0.0440, 0.0400]]))
        >>> bool(distribution.sample().abs().sum() <= 1.0)
        True
    """

    arg_constraints = {"logits": constraints.real, "scale": constraints.positive}
    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        n: int,
        scale: Tensor | float = 1.0,
        *,
        out_axis: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        self.n = check_count("SignedMultinomial n", n)
        if logits.dim() == 0 or len(logits) != 2:
            raise ValueError(
                "SignedMultinomial logits: expected shape (2, *shape of the weight), positive cells first, got "
                f"{tuple(logits.shape)}"
            )
        self.logits = logits
        self.scale = torch.as_tensor(scale, dtype=logits.dtype, device=logits.device)
        self.out_axis = out_axis
        super().__init__(Size(()), logits.shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: SignedMultinomial | None = None) -> SignedMultinomial:
        """The same distribution with a larger batch shape."""
        new = self._get_checked_instance(SignedMultinomial, _instance)
        shape = Size(batch_shape)
        new.n, new.out_axis = self.n, self.out_axis
        new.logits = self.logits.expand((*shape, 2, *self.event_shape))
        new.scale = self.scale.expand(shape)
        super(SignedMultinomial, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Real numbers, of which only multiples of scale / n are drawn."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def cell_logits(self) -> Tensor:
        """Logits by kernel, (..., kernels, 2 F): the positive cells, then the negative ones."""
        lead = len(self.batch_shape)
        logits = self.logits.reshape(*self.batch_shape, 2, *self._layout)
        return logits.movedim(lead + 1 + self.out_axis, lead).flatten(lead + 1)

    @property
    def mean(self) -> Tensor:
        """Means of the weights, in the shape of the weight."""
        return self._scale * self._center

    @property
    def variance(self) -> Tensor:
        """Variances of the weights, in the shape of the weight; their covariances are not zero."""
        positive, negative = self.cell_logits.softmax(-1).chunk(2, -1)
        both = positive + negative
        # p+ + p- - (p+ - p-)^2 as a sum of two terms that are not negative.
        spread = both * (1 - both).clamp_min(0.0) + 4 * positive * negative
        return self._scale.square() * self._as_weight(spread) / self.n

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *batch shape, *event shape); its gradient in the logits is straight-through."""
        center = self._center
        with torch.no_grad():
            drawn = self._as_weight(self._draw(Size(sample_shape))).to(center.dtype) / self.n
        return self._scale * drawn + self._scale.detach() * (center - center.detach())

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """The same draw as `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises `ValueError`: the weights determine $C^+ - C^-$ only, and many counts have the same difference."""
        raise ValueError(
            "SignedMultinomial has no log probability: a weight tells how far the counts of its two cells differ, not "
            "how many trials fell on both, over which a sum would run. Use pyrostoch.ELBO with the prior "
            "UniformMultinomial, whose KL has a closed form"
        )

    def _draw(self, sample_shape: Size) -> Tensor:
        """Differences of the counts, (*sample shape, *batch shape, kernels, F)."""
        probs = at_least_single(self.cell_logits).softmax(-1)
        cells = probs.flatten(0, -2)
        size = cells.shape[-1] // 2
        trials = torch.multinomial(cells, sample_shape.numel() * self.n, replacement=True)
        trials = trials.reshape(len(cells), sample_shape.numel(), self.n)
        signs = 1 - 2 * (trials >= size).to(probs.dtype)
        counts = torch.zeros((*trials.shape[:2], size), dtype=probs.dtype, device=probs.device)
        differences = counts.scatter_add(-1, trials % size, signs)
        return differences.movedim(1, 0).reshape(*sample_shape, *probs.shape[:-1], size)

    @property
    def _center(self) -> Tensor:
        positive, negative = self.cell_logits.softmax(-1).chunk(2, -1)
        return self._as_weight(positive - negative)

    @property
    def _scale(self) -> Tensor:
        return self.scale.reshape((*self.batch_shape, *[1] * len(self.event_shape)))

    @property
    def _layout(self) -> Size:
        """The shape of the weight, with one axis where it is a single number."""
        return self.event_shape or Size((1,))

    def _as_weight(self, kernels: Tensor) -> Tensor:
        """Values by kernel, (..., kernels, F), in the shape of the weight, (..., *event shape)."""
        lead = kernels.shape[:-2]
        others = (*self._layout[: self.out_axis], *self._layout[self.out_axis + 1 :])
        weight = kernels.reshape(*lead, self._layout[self.out_axis], *others)
        return weight.movedim(len(lead), len(lead) + self.out_axis).reshape((*lead, *self.event_shape))


class UniformMultinomial(ImproperPrior):
    r"""The prior of a kernel of counts: each of its n trials falls on all 2 F cells alike, at any scale.

    $\mathrm{KL} = n \sum_c p_c \log(2 F p_c)$ for each kernel of `SignedMultinomial`. It is the KL of the counts, and
    so an upper bound of that of the weights, which do not tell the counts apart: the ELBO is that of the model whose
    latent variables are the counts, and a lower bound, too, of that whose latent variables are the weights. The prior
    takes n and scale from the posterior, so it is no probability distribution of its own and cannot be sampled.

    Args:
        batch_shape: As in torch.
        validate_args: As in torch.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> kl_divergence(SignedMultinomial(torch.zeros(2, 3, 4), 10), UniformMultinomial())
        tensor(0.)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises `ValueError`: the prior takes its trials and scale from the posterior."""
        self._refuse("log probability of its own")

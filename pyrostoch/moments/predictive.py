r"""The distribution of observations, given moments of a network's output: by points of a Gaussian, or in closed form.

With output $z \sim N(m, C)$ an observation has the density $p(y) = E_z\,p(y \mid z)$, and an ELBO needs
$E_z \log p(y \mid z)$. Both are averages over a few fixed points (scrambled Sobol points mapped to the Gaussian, the
same for every example), which costs little beside the network; a likelihood may have a closed form instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from pyrostoch.moments.gaussian import Moments, per_example, rows_of

__all__ = ["Closed", "OutputDistribution", "gaussian_points", "noisy_gaussian", "softmax_under_gaussian"]

# With more outputs only variances are used: the cost of a root of the covariance grows with the cube of their number.
_MAX_OUTPUTS = 256
_MAX_SOBOL_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


@dataclass(frozen=True)
class Closed:
    """The closed reading of an output: prediction and log densities by formulas in its moments, not from points.

    Args:
        fields: The prediction: `log_probs`, or `mean` and `variance`, with `total`, `aleatoric` and `epistemic`.
        log_density: Log predictive density of targets, one value for each example: log of the mean density.
        expected: Mean log density of targets, one value for each example.
        exact: Whether both are exact for a Gaussian output; if not, they are used only where `settings.closed` is set.
    """

    fields: dict[str, Tensor]
    log_density: Callable[[Tensor], Tensor]
    expected: Callable[[Tensor], Tensor]
    exact: bool


class OutputDistribution(TorchDistribution):
    """The distribution of the observations, given the moments of a network's output.

    Args:
        output: Moments of the output.
        distribution: Function from a value of the output to the distribution of the observations.
        closed: Function that returns the likelihood's closed-form formulas, or `None` if it has none.
        bound: Function that returns a lower bound of the mean log density of targets, or `None` if there is none.

    Attributes:
        at_mean: The distribution at the mean output.
        base_dist: What that is made of.

    Raises:
        ValueError: `output.settings.closed` or `bound` is set, and the likelihood has no such formula.

    Example:
        >>> output = Moments(torch.zeros(3, 2), torch.ones(3, 2))
        >>> distribution = OutputDistribution(output, lambda logits: torch.distributions.Categorical(logits=logits))
        >>> distribution.batch_shape, distribution.log_prob(torch.tensor([0, 1, 1])).shape
        (torch.Size([3]), torch.Size([3]))
    """

    arg_constraints = {}
    has_rsample = False

    def __init__(
        self,
        output: Moments,
        distribution: Callable[[Tensor], Distribution],
        closed: Callable[[], Closed | None] = lambda: None,
        bound: Callable[[], Callable[[Tensor], Tensor] | None] = lambda: None,
    ) -> None:
        self.output, self._distribution = output, distribution
        formulas = closed()
        if formulas is None and output.settings.closed:
            raise ValueError(
                "moments: this likelihood has no closed form for moments of the output (Categorical and Gaussian have "
                "one); leave out ':closed'"
            )
        self.closed = formulas if formulas is not None and (formulas.exact or output.settings.closed) else None
        self._bound = bound() if output.settings.bound else None
        if output.settings.bound and self._bound is None and (formulas is None or not formulas.exact):
            raise ValueError(
                "moments: this likelihood has no closed lower bound of its mean (Gaussian, Categorical and "
                "HeteroscedasticGaussian(link='exp') have one); leave out ':bound'"
            )
        self.at_mean = at_mean = distribution(output.loc)
        self.base_dist: Any = getattr(at_mean, "base_dist", at_mean)
        super().__init__(at_mean.batch_shape, at_mean.event_shape, validate_args=False)

    def expand(self, batch_shape: _size, _instance: OutputDistribution | None = None) -> Any:
        """Itself if `batch_shape` is its own, so that a plate does not wrap it in an expanded distribution."""
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape, _instance)

    @property
    def support(self) -> Any:
        """Support of the observations."""
        return getattr(self.base_dist, "support", constraints.real)

    def points(self) -> Tensor:
        """Points of the output with equal weights, (K, B, ...)."""
        return gaussian_points(self.output)

    def member(self, point: Tensor) -> Distribution:
        """The distribution of the observations at a point of the output.

        Args:
            point: The point, (B, ...).
        """
        return self._distribution(point)

    def members(self) -> Iterator[Distribution]:
        """The distribution of the observations at each of the points of the output."""
        for z in self.points():
            yield self.member(z)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log predictive density: the log of the density averaged over the output.

        Args:
            value: Observations.
        """
        if self.closed is not None:
            return self.closed.log_density(value)
        logs = torch.stack([distribution.log_prob(value) for distribution in self.members()])
        return logs.logsumexp(0) - math.log(len(logs))

    def expected_log_prob(self, value: Tensor) -> Tensor:
        """The log density averaged over the output, the data term of an ELBO.

        Args:
            value: Observations.
        """
        if self._bound is not None:
            return self._bound(value)
        if self.closed is not None:
            return self.closed.expected(value)
        return torch.stack([distribution.log_prob(value) for distribution in self.members()]).mean(0)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """One draw of the output, then one draw of the observations.

        Args:
            sample_shape: Must be empty.
        """
        if tuple(sample_shape):
            raise ValueError(
                f"OutputDistribution.sample: expected an empty sample_shape, got {tuple(sample_shape)}; draw one by one"
            )
        noise = torch.randn(1, *self.output.loc.shape, dtype=self.output.loc.dtype, device=self.output.loc.device)
        drawn: Tensor = self._distribution(_from_standard_normal(self.output, noise)[0]).sample()
        return drawn


def gaussian_points(output: Moments) -> Tensor:
    """Points of the output's Gaussian with equal weights, (K, B, ...).

    Args:
        output: Moments of the output, (B, ...); `output.settings.points` is K.
    """
    size = output.loc[0].numel()
    standard = _standard_points(output.settings.points, size).to(output.loc)
    return _from_standard_normal(output, standard.reshape(len(standard), 1, *output.loc.shape[1:]))


def _from_standard_normal(output: Moments, noise: Tensor) -> Tensor:
    """Points of the output's Gaussian, (K, B, ...), from standard normal ones, (K, 1 or B, ...)."""
    loc = output.loc
    if loc[0].numel() > _MAX_OUTPUTS or (output.cov is None and output.lazy_covariance is None):
        return loc + output.stddev() * noise
    offsets = torch.einsum("bij,kbj->kbi", _cholesky(output.covariance()), rows_of(noise).expand(-1, len(loc), -1))
    return loc + offsets.reshape(len(noise), *loc.shape)


def _cholesky(cov: Tensor) -> Tensor:
    """Cholesky factors of covariances that may be singular: a number of the size of rounding errors is added first."""
    scale = cov.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(cov.dtype).tiny ** 0.5)
    jitter = scale * (1e-10 if cov.dtype == torch.float64 else 1e-5)
    factor: Tensor = torch.linalg.cholesky_ex(cov + torch.diag_embed(jitter.unsqueeze(1).expand(cov.shape[:2])))[0]
    return factor


@lru_cache(maxsize=16)
def _standard_points(count: int, size: int) -> Tensor:
    """Standard normal points that fill the space evenly, the same in every call."""
    if size > _MAX_SOBOL_DIMENSIONS:
        return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    uniform = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(count, dtype=torch.float64)
    points = torch.special.ndtri(uniform.clamp(1e-9, 1.0 - 1e-9))
    # Mean 0 and variance 1 in each dimension, as for the Gaussian, so that linear and squared terms are exact.
    points = points - points.mean(0)
    return points / points.square().mean(0).sqrt()


def softmax_under_gaussian(output: Moments) -> Closed:
    r"""Class probabilities and expected log-likelihood for Gaussian logits, by closed-form approximations.

    $$ p_c \propto \Bigl[\sum_j \exp\Bigl(-\frac{m_c - m_j}{\sqrt{1 + \pi \mathrm{Var}(z_c - z_j) / 8}}\Bigr)
    \Bigr]^{-1}, \qquad E \log \mathrm{softmax}_c \approx m_c - \mathrm{lse}(m) -
    \tfrac{1}{2} \bigl(p^\top \mathrm{diag}\,C - p^\top C p\bigr), $$

    the second with p = softmax(m), to second order; its last term is also used as the epistemic part of the entropy.

    Args:
        output: Moments of the logits, (B, C).

    References:
        MacKay, "The evidence framework applied to classification networks", 1992; Lu, Ie, Sha, "Mean-field
        approximation to Gaussian-softmax integral", 2020 (arXiv 2006.07584); Wu et al., "Deterministic variational
        inference for robust Bayesian neural networks", 2019.
    """
    if output.loc.dim() != 2:
        raise ValueError(
            f"moments: the closed form for classes needs logits of shape (batch, classes), got "
            f"{tuple(output.loc.shape)}; leave out ':closed'"
        )
    m, cov = output.loc, output.covariance()
    v = cov.diagonal(dim1=1, dim2=2)
    difference_var = (v.unsqueeze(2) + v.unsqueeze(1) - 2.0 * cov).clamp_min(0.0)
    scaled_difference = (m.unsqueeze(2) - m.unsqueeze(1)) * (1.0 + math.pi / 8.0 * difference_var).rsqrt()
    log_probs = (-torch.logsumexp(-scaled_difference, dim=2)).double().log_softmax(-1)
    p = m.softmax(-1)
    second_order = 0.5 * ((p * v).sum(-1) - torch.einsum("bi,bij,bj->b", p, cov, p)).clamp_min(0.0)
    at_mean = m.log_softmax(-1)
    total = -(log_probs.exp() * log_probs).sum(-1)
    epistemic = torch.minimum(second_order.double(), total)
    fields = {"log_probs": log_probs, "total": total, "aleatoric": total - epistemic, "epistemic": epistemic}

    def expected(y: Tensor) -> Tensor:
        return at_mean.gather(1, y.unsqueeze(1)).squeeze(1) - second_order

    return Closed(fields, lambda y: log_probs.gather(1, y.unsqueeze(1)).squeeze(1), expected, exact=False)


def noisy_gaussian(output: Moments, scale: Tensor) -> Closed:
    """Real-valued targets with Gaussian noise around a Gaussian output; exact.

    Args:
        output: Moments of the output.
        scale: Standard deviation of the noise, broadcast to the output.
    """
    noise = scale.square()
    var = output.var.clamp_min(0.0)
    distribution = torch.distributions.Normal(output.loc, scale, validate_args=False)
    total, aleatoric = var + noise, noise.expand(var.shape)
    fields = {"mean": output.loc, "variance": total, "total": total, "aleatoric": aleatoric, "epistemic": var}

    def expected(y: Tensor) -> Tensor:
        return per_example(distribution.log_prob(y) - 0.5 * var / noise).sum(1)

    def log_density(y: Tensor) -> Tensor:
        diagonal = output.cov is None and output.lazy_covariance is None
        if y.dim() == 1 or diagonal or y[0].numel() > _MAX_OUTPUTS:
            marginals = torch.distributions.Normal(output.loc, total.sqrt(), validate_args=False)
            return per_example(marginals.log_prob(y)).sum(1)
        noisy = output.covariance() + torch.diag_embed(per_example(noise.expand(var.shape)))
        joint = torch.distributions.MultivariateNormal(per_example(output.loc), noisy, validate_args=False)
        return joint.log_prob(per_example(y))

    return Closed({name: value.double() for name, value in fields.items()}, log_density, expected, exact=True)

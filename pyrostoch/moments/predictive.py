r"""What moments of a network's output say of the observations: by points of a Gaussian, or in closed form.

With output $z \sim N(m, C)$ an observation has the density $p(y) = E_z\,p(y \mid z)$, and an ELBO needs
$E_z \log p(y \mid z)$. Both are averages over a few fixed points (randomized Sobol points through the Gaussian's
quantiles, the same for every example), which costs nothing beside the network; a likelihood may know a closed form.
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

from pyrostoch.moments.gaussian import Moments, per_example, rows_of

__all__ = ["Closed", "OutputDistribution", "gaussian_points", "noisy_gaussian", "softmax_under_gaussian"]

# Up to this many outputs their covariance is used; its root costs as much as the cube of their number.
_MOST_OUTPUTS = 256
_MOST_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


@dataclass(frozen=True)
class Closed:
    """A reading of output moments in closed form.

    Args:
        fields: The prediction: `log_probs`, or `mean` and `variance`, with `total`, `aleatoric` and `epistemic`.
        log_density: Log predictive density of targets, an entry an example.
        expected: Mean log density of targets, an entry an example.
        exact: Whether both are exact for a Gaussian output.
    """

    fields: dict[str, Tensor]
    log_density: Callable[[Tensor], Tensor]
    expected: Callable[[Tensor], Tensor]
    exact: bool


class OutputDistribution(TorchDistribution):
    """The distribution of the observations where a network's output is known by its moments.

    Args:
        output: Moments of the output.
        distribution: The distribution of the observations for one value of the output.
        closed: Makes the closed reading, where the likelihood has one.

    Attributes:
        base_dist: The distribution at the mean output.

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
    ) -> None:
        self.output, self._distribution = output, distribution
        found = closed()
        if found is None and output.settings.closed:
            raise ValueError(
                "moments: this likelihood has no closed reading of output moments (Categorical and Gaussian have); "
                "leave ':closed' out"
            )
        self.closed = found if found is not None and (found.exact or output.settings.closed) else None
        at_mean = distribution(output.loc)
        self.base_dist: Any = getattr(at_mean, "base_dist", at_mean)
        super().__init__(at_mean.batch_shape, at_mean.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The distribution itself, for the shape that it has: a plate asks for it, and must not hide what it is."""
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape, _instance)

    @property
    def support(self) -> Any:
        """Where the observations lie."""
        return getattr(self.base_dist, "support", constraints.real)

    def members(self) -> Iterator[Distribution]:
        """The distribution of the observations at each of the points, all of one weight."""
        for z in gaussian_points(self.output):
            yield self._distribution(z)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the mean density over the output.

        Args:
            value: Observations.
        """
        if self.closed is not None:
            return self.closed.log_density(value)
        logs = torch.stack([distribution.log_prob(value) for distribution in self.members()])
        return logs.logsumexp(0) - math.log(len(logs))

    def expected_log_prob(self, value: Tensor) -> Tensor:
        """Mean of the log density over the output, the data term of an ELBO.

        Args:
            value: Observations.
        """
        if self.closed is not None:
            return self.closed.expected(value)
        return torch.stack([distribution.log_prob(value) for distribution in self.members()]).mean(0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """An observation for an output drawn anew.

        Args:
            sample_shape: Shape of independent draws; one only.
        """
        if tuple(sample_shape):
            raise ValueError("OutputDistribution: one draw at a time")
        noise = torch.randn(1, *self.output.loc.shape, dtype=self.output.loc.dtype, device=self.output.loc.device)
        drawn: Tensor = self._distribution(_at(self.output, noise)[0]).sample()
        return drawn


def gaussian_points(output: Moments) -> Tensor:
    """Points of the output's Gaussian, (K, B, ...), all of one weight.

    Args:
        output: Moments of the output; `output.settings.points` says how many.
    """
    size = output.loc[0].numel()
    unit = _unit_points(output.settings.points, size).to(output.loc)
    return _at(output, unit.reshape(len(unit), 1, *output.loc.shape[1:]))


def _at(output: Moments, noise: Tensor) -> Tensor:
    """Outputs at standard normal points, (K, 1 or B, ...)."""
    loc = output.loc
    if loc[0].numel() > _MOST_OUTPUTS or (output.cov is None and output.late is None):
        return loc + output.stddev() * noise
    moved = torch.einsum("bij,kbj->kbi", _cholesky(output.covariance()), rows_of(noise).expand(-1, len(loc), -1))
    return loc + moved.reshape(len(noise), *loc.shape)


def _cholesky(cov: Tensor) -> Tensor:
    """A root of covariances that may be singular, lifted by what rounding leaves unknown."""
    scale = cov.diagonal(dim1=1, dim2=2).amax(1).clamp_min(torch.finfo(cov.dtype).tiny ** 0.5)
    lift = scale * (1e-10 if cov.dtype == torch.float64 else 1e-5)
    found: Tensor = torch.linalg.cholesky_ex(cov + torch.diag_embed(lift.unsqueeze(1).expand(cov.shape[:2])))[0]
    return found


@lru_cache(maxsize=16)
def _unit_points(count: int, size: int) -> Tensor:
    """Standard normal points that fill the space evenly, the same every time."""
    if size > _MOST_DIMENSIONS:
        return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    uniform = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(count, dtype=torch.float64)
    points = torch.special.ndtri(uniform.clamp(1e-9, 1.0 - 1e-9))
    # Mean 0 and variance 1 in each direction, as the Gaussian has them: linear and quadratic terms come out exact.
    points = points - points.mean(0)
    return points / points.square().mean(0).sqrt()


def softmax_under_gaussian(output: Moments) -> Closed:
    r"""Class probabilities and expected log-likelihood for Gaussian logits, by closed approximations.

    $$ p_c \propto \Bigl[\sum_j \exp\Bigl(-\frac{m_c - m_j}{\sqrt{1 + \pi \mathrm{Var}(z_c - z_j) / 8}}\Bigr)
    \Bigr]^{-1}, \qquad E \log \mathrm{softmax}_c \approx m_c - \mathrm{lse}(m) -
    \tfrac12 \bigl(p^\top \mathrm{diag}\,C - p^\top C p\bigr), $$

    the second with p = softmax(m), to second order, which is also the epistemic part of the entropy.

    Args:
        output: Moments of the logits, (B, C).

    References:
        MacKay 1992; Lu, Ie, Sha, "Mean-field approximation to Gaussian-softmax integral", 2020 (arXiv 2006.07584); Wu
        et al., "Deterministic variational inference for robust Bayesian neural networks", 2019.
    """
    if output.loc.dim() != 2:
        raise ValueError(
            f"moments: the closed reading of classes is for logits of shape (batch, classes), got "
            f"{tuple(output.loc.shape)}; leave ':closed' out"
        )
    m, cov = output.loc, output.covariance()
    v = cov.diagonal(dim1=1, dim2=2)
    apart = (v.unsqueeze(2) + v.unsqueeze(1) - 2.0 * cov).clamp_min(0.0)
    narrowed = (m.unsqueeze(2) - m.unsqueeze(1)) * (1.0 + math.pi / 8.0 * apart).rsqrt()
    log_probs = (-torch.logsumexp(-narrowed, dim=2)).double().log_softmax(-1)
    p = m.softmax(-1)
    half = 0.5 * ((p * v).sum(-1) - torch.einsum("bi,bij,bj->b", p, cov, p)).clamp_min(0.0)
    at_mean = m.log_softmax(-1)
    total = -(log_probs.exp() * log_probs).sum(-1)
    epistemic = torch.minimum(half.double(), total)
    fields = {"log_probs": log_probs, "total": total, "aleatoric": total - epistemic, "epistemic": epistemic}

    def expected(y: Tensor) -> Tensor:
        return at_mean.gather(1, y.unsqueeze(1)).squeeze(1) - half

    return Closed(fields, lambda y: log_probs.gather(1, y.unsqueeze(1)).squeeze(1), expected, exact=False)


def noisy_gaussian(output: Moments, scale: Tensor) -> Closed:
    """Real targets with Gaussian noise around a Gaussian output: exact.

    Args:
        output: Moments of the output.
        scale: Standard deviation of the noise.
    """
    noise = scale.square()
    var = output.var.clamp_min(0.0)
    distribution = torch.distributions.Normal(output.loc, scale, validate_args=False)
    total, aleatoric = var + noise, noise.expand(var.shape)
    fields = {"mean": output.loc, "variance": total, "total": total, "aleatoric": aleatoric, "epistemic": var}

    def expected(y: Tensor) -> Tensor:
        return per_example(distribution.log_prob(y) - 0.5 * var / noise).sum(1)

    def log_density(y: Tensor) -> Tensor:
        if y.dim() == 1 or output.cov is None and output.late is None or y[0].numel() > _MOST_OUTPUTS:
            apart = torch.distributions.Normal(output.loc, total.sqrt(), validate_args=False).log_prob(y)
            return per_example(apart).sum(1)
        noisy = output.covariance() + noise * torch.eye(y[0].numel(), dtype=y.dtype, device=y.device)
        joint = torch.distributions.MultivariateNormal(per_example(output.loc), noisy, validate_args=False)
        return joint.log_prob(per_example(y))

    return Closed({name: value.double() for name, value in fields.items()}, log_density, expected, exact=True)

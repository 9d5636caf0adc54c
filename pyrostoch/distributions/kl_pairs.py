r"""Closed-form KL divergences of this package's distributions, registered with torch.

`torch.distributions.kl_divergence(q, p)` then finds them, directly and inside `Independent`, and so does Pyro's
mean-field ELBO. All are in nats, elementwise over the broadcast batch shape.

Prior `LogUniform` ($\log p(w) = -\log|w| - c$, $c = 2.0541...$), for which the divergence does not depend on the
scale of a zero-mean posterior:

- Gaussians: the function of alpha in `alpha_kl` (exact, or the approximation asked for); $N(0, \sigma^2)$: 0.
- $U(-\varphi, \varphi)$: $-\log 2\varphi + E\log|w| + c = c - 1 - \log 2 = 0.3610$.
- `TwoPoint`: 0 **by convention**. A point mass has no density, so the divergence is infinite, but the infinite
  constant is the same for every scale and is dropped.

Prior `ARD`, $-H(q) + \tfrac{1}{2}\log(2\pi e E[w^2])$:

- Gaussians: $\tfrac{1}{2}\log(1 + 1/\alpha)$; $N(0, \sigma^2)$: 0.
- $U(-\varphi, \varphi)$: $\tfrac{1}{2}\log(\pi e / 6) = 0.1765$, the KL divergence of the uniform distribution to the
  Gaussian of the same variance.

Prior `Grid`: `Levels` with k levels, $\log k - H(q)$. Prior `SymmetricBinomial`: `Levels` whose levels 0 to n have the
prior probabilities $2^{-n}\binom nj$; for `BinomialLevels` this is $n(\log 2 + p\lambda - \log(1 + e^\lambda))$.

Prior `UniformMultinomial`: `SignedMultinomial` with F weights in each kernel, $n \sum_c p_c \log(2 F p_c)$ over the
cells of all kernels. This is the divergence of the counts, an upper bound of that of the weights.

Proper priors: $U(-\varphi, \varphi)$ against `Normal` and `Laplace`, and `TwoPoint` against `TwoPoint`. For
`TwoPoint`, `Levels` or `SignedMultinomial` against any other prior the divergence is infinite and raises an error that
names both.

Counts against counts of as many trials: `Bernoulli` and `Binomial` (finite where a probability rounds to 0 or 1, as
torch's formulas are not), `OneHotCategorical` (reads no value, as torch's does), and `Multinomial`, which torch lacks.

References:
    Kingma, Salimans, Welling 2015; Molchanov, Ashukha, Vetrov 2017; Hron, Matthews, Ghahramani 2018;
    Neklyudov, Molchanov, Ashukha, Vetrov 2018 (arXiv 1803.03764); Tipping 2001.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from pyro.distributions import Bernoulli, Binomial, OneHotCategorical
from torch import Tensor, broadcast_shapes
from torch.distributions import Distribution, Independent, Laplace, Multinomial, Normal, register_kl

from pyrostoch.distributions.alpha_kl import ARD_KL, LOG_UNIFORM_KL, MOLCHANOV_KL, AlphaKL
from pyrostoch.distributions.ard import ARD
from pyrostoch.distributions.binomial import BinomialLevels, SymmetricBinomial, log_choices
from pyrostoch.distributions.discrete import TwoPoint
from pyrostoch.distributions.gaussian import CenteredNormal, MultiplicativeNormal
from pyrostoch.distributions.levels import Grid, Levels
from pyrostoch.distributions.log_uniform import LOG_UNIFORM_CONSTANT, LogUniform
from pyrostoch.distributions.multinomial import SignedMultinomial, UniformMultinomial
from pyrostoch.distributions.symmetric import SymmetricDistribution
from pyrostoch.distributions.uniform import SymmetricUniform

_UNIFORM_LOG_UNIFORM = LOG_UNIFORM_CONSTANT - 1 - math.log(2)
_UNIFORM_ARD = math.log(math.pi * math.e / 6) / 2


def alpha_kl_of(p: LogUniform | ARD) -> AlphaKL:
    """The divergence of a Gaussian to the prior, as a function of log alpha and as a function of `loc / scale`."""
    if isinstance(p, ARD):
        return ARD_KL
    return MOLCHANOV_KL if p.approximation == "molchanov" else LOG_UNIFORM_KL


def refuse_two_point(q: TwoPoint, p: Distribution) -> NoReturn:
    """Raise `ValueError`: the divergence of `TwoPoint` to a distribution without those two atoms is infinite."""
    raise ValueError(
        f"KL({type(q).__name__} || {type(p).__name__}) is infinite: {type(q).__name__} puts probability on two "
        f"values that have none under {type(p).__name__}. Use the LogUniform prior (its KL is 0 by convention), no "
        "prior, or a continuous posterior (Gaussian or uniform)."
    )


@register_kl(MultiplicativeNormal, LogUniform)
@register_kl(MultiplicativeNormal, ARD)
def _multiplicative_alpha(q: MultiplicativeNormal, p: LogUniform | ARD) -> Tensor:
    of_log_alpha, _ = alpha_kl_of(p)
    return _over_batch(of_log_alpha(q.unexpanded_log_alpha), q, p)


@register_kl(CenteredNormal, LogUniform)
@register_kl(CenteredNormal, ARD)
@register_kl(TwoPoint, LogUniform)
def _zero(q: CenteredNormal | TwoPoint, p: LogUniform | ARD) -> Tensor:
    return _constant(0.0, q, p)


@register_kl(Normal, LogUniform)
@register_kl(Normal, ARD)
def _normal_alpha(q: Normal, p: LogUniform | ARD) -> Tensor:
    _, of_snr = alpha_kl_of(p)
    return _over_batch(of_snr(q.loc / q.scale), q, p)


@register_kl(SymmetricUniform, LogUniform)
def _uniform_log_uniform(q: SymmetricUniform, p: LogUniform) -> Tensor:
    return _constant(_UNIFORM_LOG_UNIFORM, q, p)


@register_kl(SymmetricUniform, ARD)
def _uniform_ard(q: SymmetricUniform, p: ARD) -> Tensor:
    return _constant(_UNIFORM_ARD, q, p)


@register_kl(SymmetricUniform, Normal)
def _uniform_normal(q: SymmetricUniform, p: Normal) -> Tensor:
    r"""$\log(\sigma / \varphi) + \tfrac{1}{2}\log(\pi / 2) + (\varphi^2 / 3 + \mu^2) / (2 \sigma^2)$."""
    spread = ((q.scale / p.scale).square() / 3 + (p.loc / p.scale).square()) / 2
    return (p.scale / q.scale).log() + math.log(math.pi / 2) / 2 + spread


@register_kl(SymmetricUniform, Laplace)
def _uniform_laplace(q: SymmetricUniform, p: Laplace) -> Tensor:
    r"""$\log(b / \varphi) + E|w - m| / b$.

    $E|w - m|$ is $(\varphi^2 + m^2) / 2\varphi$ for $|m| \le \varphi$, and $|m|$ for larger $|m|$.
    """
    center = p.loc.abs()
    inside = (q.scale + center.square() / q.scale) / 2
    distance = torch.where(center <= q.scale, inside, center)
    return (p.scale / q.scale).log() + distance / p.scale


@register_kl(TwoPoint, TwoPoint)
def _two_point_two_point(q: TwoPoint, p: TwoPoint) -> Tensor:
    """0 where both have the same two points, else infinite."""
    return torch.where(p.support.check(q.scale), 0.0, math.inf).to(q.scale.dtype)


register_kl(TwoPoint, Distribution)(refuse_two_point)


@register_kl(Levels, Grid)
def _levels_grid(q: Levels, p: Grid) -> Tensor:
    """The divergence to equally likely levels."""
    return _over_batch(math.log(len(q.levels)) - q.entropy(), q, p)


@register_kl(Levels, SymmetricBinomial)
def _levels_binomial(q: Levels, p: SymmetricBinomial) -> Tensor:
    """The divergence to a binomial number of the level, as a sum over levels."""
    n = len(q.levels) - 1
    log_prior = q.scale.new_tensor(log_choices(n)) - n * math.log(2)
    return _over_batch(-q.entropy() - q.probs @ log_prior, q, p)


@register_kl(BinomialLevels, SymmetricBinomial)
def _binomial_binomial(q: BinomialLevels, p: SymmetricBinomial) -> Tensor:
    """The divergence of n coins to fair ones, from the logit: finite where a probability rounds to 0 or 1."""
    negative_entropy = q.logit * q.logit.sigmoid() - F.softplus(q.logit)
    return _over_batch(q.n * (math.log(2) + negative_entropy), q, p)


# For Pyro's subclasses, since torch registers formulas for its own that read values or lose digits.
@register_kl(Binomial, Binomial)
def _counts_binomial(q: Any, p: Any) -> Tensor:
    """That of a single trial times the number of trials, from the logits; NaN for unequal numbers of trials."""
    same = torch.as_tensor(q.total_count == p.total_count, device=q.logits.device)
    return torch.where(same, q.total_count * _coins(q, p), math.nan)


@register_kl(Bernoulli, Bernoulli)
def _coins(q: Any, p: Any) -> Tensor:
    success = q.logits.sigmoid() * (F.logsigmoid(q.logits) - F.logsigmoid(p.logits))
    return success + (-q.logits).sigmoid() * (F.logsigmoid(-q.logits) - F.logsigmoid(-p.logits))


@register_kl(OneHotCategorical, OneHotCategorical)
def _one_hot(q: Any, p: Any) -> Tensor:
    return _choices(q, p)


@register_kl(Multinomial, Multinomial)
def _counts_multinomial(q: Multinomial, p: Multinomial) -> Tensor:
    """That of a single draw times the number of draws."""
    if q.total_count != p.total_count:
        raise ValueError(
            f"KL(Multinomial || Multinomial): expected equal numbers of draws, got {q.total_count} and "
            f"{p.total_count}; give the prior the posterior's number"
        )
    return q.total_count * _choices(q, p)


def _choices(q: Any, p: Any) -> Tensor:
    """The divergence of one choice among classes, on the last axis."""
    # The clamp makes p log p zero, not NaN, for a class with probability 0.
    floor = torch.finfo(q.logits.dtype).min
    difference = q.logits.log_softmax(-1).clamp_min(floor) - p.logits.log_softmax(-1).clamp_min(floor)
    divergence: Tensor = (q.probs * difference).sum(-1)
    return divergence


@register_kl(Levels, Distribution)
def _levels_refused(q: Levels, p: Distribution) -> NoReturn:
    raise ValueError(
        f"KL({type(q).__name__} || {type(p).__name__}) is infinite: {type(q).__name__} puts probability on a few "
        f"values that have none under {type(p).__name__}. Use the prior Grid or SymmetricBinomial, or no prior."
    )


@register_kl(SignedMultinomial, Distribution)
def _multinomial(q: SignedMultinomial, p: Distribution) -> Tensor:
    """The divergence of the counts, summed over a weight's kernels, where the prior is `UniformMultinomial`."""
    prior = p
    while isinstance(prior, Independent):
        prior = prior.base_dist
    if not isinstance(prior, UniformMultinomial):
        raise ValueError(
            f"KL(SignedMultinomial || {type(prior).__name__}) is infinite or unknown: SignedMultinomial puts "
            f"probability on a few values, which depend on each other and have none under {type(prior).__name__}. Use "
            "the prior UniformMultinomial, or no prior."
        )
    cells = q.cell_logits
    # The clamp makes p log p zero, not NaN, for a cell with probability 0.
    logs = cells.log_softmax(-1).clamp_min(torch.finfo(cells.dtype).min)
    terms = logs.exp() * (logs + math.log(cells.shape[-1]))
    return q.n * terms.sum((-2, -1), dtype=torch.float64).to(cells.dtype)


def _constant(value: float, q: CenteredNormal | SymmetricDistribution, p: Distribution) -> Tensor:
    return _over_batch(torch.full((), value, dtype=q.scale.dtype, device=q.scale.device), q, p)


def _over_batch(kl: Tensor, q: Distribution, p: Distribution) -> Tensor:
    return kl.expand(broadcast_shapes(q.batch_shape, p.batch_shape))

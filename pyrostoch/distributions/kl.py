"""KL divergences summed over weights: in closed form where there is one, else estimated from a draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, ExponentialFamily, Independent, TransformedDistribution, kl_divergence
from torch.distributions.kl import _KL_MEMOIZE, _KL_REGISTRY, _dispatch_kl

from pyrostoch.distributions.alpha_kl import kl_ard, kl_log_uniform, kl_log_uniform_molchanov
from pyrostoch.distributions.ard import ARD
from pyrostoch.distributions.gaussian import MultiplicativeNormal
from pyrostoch.distributions.joint import JointWeights
from pyrostoch.distributions.kl_joint import joint_kl
from pyrostoch.distributions.kl_normal import normal_kl_sum
from pyrostoch.distributions.kl_pairs import alpha_kl_of, refuse_two_point
from pyrostoch.distributions.log_uniform import LogUniform
from pyrostoch.distributions.partly_fixed import PartlyFixed

__all__ = ["has_closed_form", "kl_ard", "kl_log_uniform", "kl_log_uniform_molchanov", "kl_sum"]


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """Whether `kl_sum(q, p)` has a formula; otherwise it needs a draw.

    The wrappers `Independent`, `expand`, `mask` and `PartlyFixed` are removed on both sides. A `Delta`
    posterior has no closed form, since the divergence that Pyro registers for it ignores its `log_density`. Nor has a
    pair of which only one distribution is masked.

    Args:
        q: The posterior.
        p: The prior.

    Raises:
        ValueError: The divergence is infinite for all parameters (`TwoPoint` against a continuous prior).

    Example:
        >>> import pyro.distributions as dist
        >>> q = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
        >>> has_closed_form(q, dist.Normal(0.0, 1.0)), has_closed_form(q, dist.StudentT(3.0))
        (True, False)
    """
    inner_q, inner_p = _unwrap(q), _unwrap(p)
    formula = _formula(type(inner_q.core), type(inner_p.core))
    if formula is refuse_two_point:
        refuse_two_point(inner_q.core, inner_p.core)
    if isinstance(inner_q.core, Delta) or (inner_q.mask is None) != (inner_p.mask is None):
        return False
    if isinstance(inner_q.core, JointWeights):
        return formula is not NotImplemented and inner_p.mask is None
    if inner_q.core.event_shape == inner_p.core.event_shape:
        return formula is not NotImplemented and _is_valid(formula, inner_q.core, inner_p.core)
    if inner_q.mask is not None:
        return False
    # Different numbers of event dimensions, such as Normal(...).to_event(1) against a MultivariateNormal: try it, as
    # torch raises an error where it has no formula.
    try:
        kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


def kl_sum(q: Distribution, p: Distribution, value: Tensor | None = None) -> Tensor:
    r"""KL divergence $KL(q \| p)$ in nats, summed over all weights.

    The shapes of `q` and `p` broadcast (a scalar prior can be used for a whole tensor), whether dimensions are
    declared as event dimensions or not. Terms are accumulated in float64. Where the divergence depends on alpha alone,
    it is evaluated once for each alpha and multiplied by the number of weights.

    Args:
        q: The posterior, a distribution of any shape.
        p: The prior, broadcastable against it.
        value: A draw from `q`, used where there is no closed form: the unbiased estimate $\log q(w) - \log p(w)$.

    Returns:
        A scalar in the dtype of `q`; in float32 where that is half precision, in which the sum could overflow.

    Raises:
        ValueError: There is neither a closed form nor a draw, or the divergence is infinite for all parameters.

    Example:
        >>> q = MultiplicativeNormal(torch.ones(500, 800), torch.tensor(13.2)).to_event(2)
        >>> kl_sum(q, LogUniform())
        tensor(0.3701)

    References:
        Kingma, Salimans, Welling 2015, "Variational Dropout and the Local Reparameterization Trick".
    """
    if not has_closed_form(q, p):
        return _estimate(q, p, value)
    inner_q, inner_p = _unwrap(q), _unwrap(p)
    if isinstance(inner_q.core, JointWeights):
        return joint_kl(inner_q.core, inner_p.core)
    if inner_q.core.event_shape != inner_p.core.event_shape:
        return _sum(kl_divergence(q, p))

    depth = len(inner_q.core.event_shape)
    shape = _broadcast(_leading_shape(q, depth), _leading_shape(p, depth))
    if (
        inner_q.mask is None
        and isinstance(inner_q.core, MultiplicativeNormal)
        and isinstance(inner_p.core, LogUniform | ARD)
    ):
        of_log_alpha, _ = alpha_kl_of(inner_p.core)
        log_alpha = inner_q.core.unexpanded_log_alpha
        return _sum(of_log_alpha(log_alpha), weight=shape.numel() / max(log_alpha.numel(), 1))
    if inner_q.mask is None and inner_q.core.batch_shape == shape:
        normal_kl = normal_kl_sum(inner_q.core, inner_p.core)
        if normal_kl is not None:
            return normal_kl.to(torch.promote_types(inner_q.core.mean.dtype, torch.float32))
    terms = kl_divergence(inner_q.core, inner_p.core).expand(shape)
    for mask in (inner_q.mask, inner_p.mask):
        if mask is not None:
            terms = torch.where(mask.to(terms.device), terms, 0.0)
    return _sum(terms)


def _formula(q: type, p: type) -> Any:
    """The KL formula that is registered for two types, or `NotImplemented`."""
    # torch's cache of lookups, which register_kl clears: a lookup takes longer than most KL divergences.
    if (q, p) not in _KL_MEMOIZE:
        _KL_MEMOIZE[q, p] = _dispatch_kl(q, p)
    return _KL_MEMOIZE[q, p]


def _broadcast(one: Size, other: Size) -> Size:
    # torch.broadcast_shapes takes as long as a small KL divergence.
    return one if one == other or not other else torch.broadcast_shapes(one, other)


@dataclass(frozen=True)
class _Unwrapped:
    """A distribution without its wrappers, and the mask of the wrappers in the shape of the elementwise divergence."""

    core: Distribution
    mask: Tensor | None


def _unwrap(distribution: Distribution) -> _Unwrapped:
    core = distribution
    masks: list[tuple[Tensor, int]] = []
    while True:
        if isinstance(core, MaskedDistribution):
            masks.append((torch.as_tensor(core._mask), len(core.event_shape)))
            core = core.base_dist
        elif isinstance(core, PartlyFixed):
            masks.append((core.free, 0))
            core = core.base_dist
        elif isinstance(core, Independent | ExpandedDistribution):
            core = core.base_dist
        else:
            break
    mask = None
    for tensor, event_dim in masks:
        # A mask over the batch shape of a joint distribution masks whole events.
        tensor = tensor.reshape(tensor.shape + (1,) * (event_dim - len(core.event_shape)))
        mask = tensor if mask is None else mask & tensor
    return _Unwrapped(core, mask)


def _leading_shape(distribution: Distribution, depth: int) -> Size:
    """The shape of a draw without its last `depth` dimensions."""
    shape = distribution.batch_shape + distribution.event_shape
    return shape[: len(shape) - depth]


def _is_valid(formula: Callable, q: Distribution, p: Distribution) -> bool:
    """Whether a registered formula is valid for this pair: torch registers two for more types than they work for."""
    if formula is _KL_REGISTRY[ExponentialFamily, ExponentialFamily]:
        return type(q) is type(p)
    if isinstance(q, TransformedDistribution) and isinstance(p, TransformedDistribution):
        return (
            q.transforms == p.transforms
            and q.event_shape == p.event_shape
            and has_closed_form(q.base_dist, p.base_dist)
        )
    return True


def _estimate(q: Distribution, p: Distribution, value: Tensor | None) -> Tensor:
    """Estimate of the divergence from one draw."""
    if value is None:
        raise ValueError(
            f"KL({_name(q)} || {_name(p)}) has no closed form: pass a draw from q to kl_sum (value=) to estimate it, "
            "or register a formula with torch.distributions.register_kl."
        )
    # Expand to the broadcast shape, so that each log density counts every weight.
    value = value.expand(
        torch.broadcast_shapes(value.shape, q.batch_shape + q.event_shape, p.batch_shape + p.event_shape)
    )
    log_q, log_p = q.log_prob(value), p.log_prob(value)
    # Subtract before summing where the shapes agree: the difference is smaller than either term, so rounding is, too.
    return _sum(log_q - log_p) if log_q.shape == log_p.shape else _sum(log_q) - _sum(log_p)


def _name(distribution: Distribution) -> str:
    return type(_unwrap(distribution).core).__name__


def _sum(terms: Tensor, weight: float = 1.0) -> Tensor:
    """Sum in float64, times a weight; returned in the dtype of the terms, at least float32."""
    total = terms.sum(dtype=torch.float64) * weight
    return total.to(torch.promote_types(terms.dtype, torch.float32))

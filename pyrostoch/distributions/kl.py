"""KL divergences of weights, summed: in closed form where there is one, else by a draw."""

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
from pyrostoch.distributions.kl_normal import normal_kl_sum
from pyrostoch.distributions.kl_pairs import alpha_kl_of, refuse_two_point
from pyrostoch.distributions.log_uniform import LogUniform

__all__ = ["has_closed_form", "kl_ard", "kl_log_uniform", "kl_log_uniform_molchanov", "kl_sum"]


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """Whether ``kl_sum(q, p)`` knows a formula, or needs a draw.

    Looks through ``Independent``, expanded and masked distributions on both sides. A ``Delta`` posterior has none: the
    divergence that Pyro registers for it drops its ``log_density``. A mask on one side only has none either.

    Args:
        q: The posterior.
        p: The prior.

    Raises:
        ValueError: The divergence is infinite whatever the parameters (two points against a continuous prior).

    Example:
        >>> import pyro.distributions as dist
        >>> q = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
        >>> has_closed_form(q, dist.Normal(0.0, 1.0)), has_closed_form(q, dist.StudentT(3.0))
        (True, False)
    """
    inner_q, inner_p = _peel(q), _peel(p)
    formula = _formula(type(inner_q.core), type(inner_p.core))
    if formula is refuse_two_point:
        refuse_two_point(inner_q.core, inner_p.core)
    if isinstance(inner_q.core, Delta) or (inner_q.mask is None) != (inner_p.mask is None):
        return False
    if inner_q.core.event_shape == inner_p.core.event_shape:
        return formula is not NotImplemented and _holds(formula, inner_q.core, inner_p.core)
    if inner_q.mask is not None:
        return False
    # Distributions of different depth, such as Normal(...).to_event(1) against a MultivariateNormal: only a trial can
    # tell, in which torch raises where it knows no formula.
    try:
        kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


def kl_sum(q: Distribution, p: Distribution, value: Tensor | None = None) -> Tensor:
    r"""KL divergence $KL(q \| p)$ in nats, summed over all weights.

    The batch shapes of ``q`` and ``p`` broadcast (one scalar prior serves a whole tensor), whether dimensions are
    declared as event dimensions or not. Terms are accumulated in float64. Where the divergence depends on alpha alone
    it is evaluated once for each alpha and counted once for each weight.

    Args:
        q: The posterior, a distribution of any shape.
        p: The prior, broadcastable against it.
        value: A draw from ``q``, used where there is no closed form: the unbiased estimate $\log q(w) - \log p(w)$.

    Returns:
        A scalar of ``q``'s dtype; in float32 where that is a half precision, which a sum over a layer would overflow.

    Raises:
        ValueError: No closed form and no draw; a divergence that is infinite whatever the parameters.

    Example:
        >>> q = MultiplicativeNormal(torch.ones(500, 800), torch.tensor(13.2)).to_event(2)
        >>> kl_sum(q, LogUniform())
        tensor(0.3701)

    References:
        Kingma, Salimans, Welling 2015, "Variational Dropout and the Local Reparameterization Trick".
    """
    if not has_closed_form(q, p):
        return _drawn(q, p, value)
    inner_q, inner_p = _peel(q), _peel(p)
    if inner_q.core.event_shape != inner_p.core.event_shape:
        return _total(kl_divergence(q, p))

    depth = len(inner_q.core.event_shape)
    shape = _broadcast(_shape_above(q, depth), _shape_above(p, depth))
    if (
        inner_q.mask is None
        and isinstance(inner_q.core, MultiplicativeNormal)
        and isinstance(inner_p.core, LogUniform | ARD)
    ):
        of_log_alpha, _ = alpha_kl_of(inner_p.core)
        log_alpha = inner_q.core.unexpanded_log_alpha
        return _total(of_log_alpha(log_alpha), weight=shape.numel() / max(log_alpha.numel(), 1))
    if inner_q.mask is None and inner_q.core.batch_shape == shape:
        of_normals = normal_kl_sum(inner_q.core, inner_p.core)
        if of_normals is not None:
            return of_normals.to(torch.promote_types(inner_q.core.mean.dtype, torch.float32))
    terms = kl_divergence(inner_q.core, inner_p.core).expand(shape)
    for mask in (inner_q.mask, inner_p.mask):
        if mask is not None:
            terms = torch.where(mask.to(terms.device), terms, 0.0)
    return _total(terms)


def _formula(q: type, p: type) -> Any:
    # torch's own memory of what it has looked up, which a new formula empties: a search takes longer than most KLs.
    if (q, p) not in _KL_MEMOIZE:
        _KL_MEMOIZE[q, p] = _dispatch_kl(q, p)
    return _KL_MEMOIZE[q, p]


def _broadcast(one: Size, other: Size) -> Size:
    # torch.broadcast_shapes takes as long as a small KL.
    return one if one == other or not other else torch.broadcast_shapes(one, other)


@dataclass(frozen=True)
class _Peeled:
    """A distribution without its wrappers, and the mask they carried, in the shape of the elementwise divergence."""

    core: Distribution
    mask: Tensor | None


def _peel(distribution: Distribution) -> _Peeled:
    core = distribution
    masks: list[tuple[Tensor, int]] = []
    while True:
        if isinstance(core, MaskedDistribution):
            masks.append((torch.as_tensor(core._mask), len(core.event_shape)))
            core = core.base_dist
        elif isinstance(core, Independent | ExpandedDistribution):
            core = core.base_dist
        else:
            break
    mask = None
    for tensor, event_dim in masks:
        # A mask over the batch of a joint distribution masks each of its events as a whole.
        tensor = tensor.reshape(tensor.shape + (1,) * (event_dim - len(core.event_shape)))
        mask = tensor if mask is None else mask & tensor
    return _Peeled(core, mask)


def _shape_above(distribution: Distribution, depth: int) -> Size:
    """The shape of a draw, without its last ``depth`` dimensions."""
    shape = distribution.batch_shape + distribution.event_shape
    return shape[: len(shape) - depth]


def _holds(formula: Callable, q: Distribution, p: Distribution) -> bool:
    """Whether a registered formula serves this pair: two of torch's are registered for more than they hold."""
    if formula is _KL_REGISTRY[ExponentialFamily, ExponentialFamily]:
        return type(q) is type(p)
    if isinstance(q, TransformedDistribution) and isinstance(p, TransformedDistribution):
        return (
            q.transforms == p.transforms
            and q.event_shape == p.event_shape
            and has_closed_form(q.base_dist, p.base_dist)
        )
    return True


def _drawn(q: Distribution, p: Distribution, value: Tensor | None) -> Tensor:
    """One-draw estimate of the divergence."""
    if value is None:
        raise ValueError(
            f"KL({_name(q)} || {_name(p)}) has no closed form: give kl_sum a draw from q (value=) to estimate it from, "
            "or register a formula with torch.distributions.register_kl."
        )
    # The whole shape on both sides, so that each log density counts every weight.
    value = value.expand(
        torch.broadcast_shapes(value.shape, q.batch_shape + q.event_shape, p.batch_shape + p.event_shape)
    )
    log_q, log_p = q.log_prob(value), p.log_prob(value)
    # Where both have the same shape the difference is taken first: it is smaller than either.
    return _total(log_q - log_p) if log_q.shape == log_p.shape else _total(log_q) - _total(log_p)


def _name(distribution: Distribution) -> str:
    return type(_peel(distribution).core).__name__


def _total(terms: Tensor, weight: float = 1.0) -> Tensor:
    """Sum in float64, times a weight, in the dtype of the terms or float32 if that is larger."""
    total = terms.sum(dtype=torch.float64) * weight
    return total.to(torch.promote_types(terms.dtype, torch.float32))

"""The divergence of normal laws from one normal law, summed in as few passes over memory as it takes."""

from __future__ import annotations

from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Normal

__all__ = ["normal_kl_sum"]

# Exactly these: what a subclass is besides, its own formula knows.
_NORMAL = (Normal, dist.Normal)


def normal_kl_sum(q: Any, p: Any) -> Tensor | None:
    r"""$\sum_i KL(N(\mu_i, \sigma_i^2) \| N(m, s^2))$ in nats, in float64, or nothing where the laws are not these.

    $$ \frac{\sum \sigma_i^2 + \sum (\mu_i - m)^2}{2 s^2} - \sum \log \sigma_i + n (\log s - \tfrac12) $$

    The elementwise formula followed by a sum reads and writes each weight three times as often.

    Args:
        q: The posterior.
        p: The prior, the same for all weights and with nothing to learn.

    Example:
        >>> normal_kl_sum(Normal(torch.zeros(4), torch.ones(4)), Normal(1.0, 1.0))
        tensor(2., dtype=torch.float64)
    """
    if type(q) not in _NORMAL or type(p) not in _NORMAL or p.loc.requires_grad or p.scale.requires_grad:
        return None
    loc, scale = _single(p.loc), _single(p.scale)
    if loc is None or scale is None or torch.broadcast_shapes(p.batch_shape, q.batch_shape) != q.batch_shape:
        return None
    found: Tensor = _NormalSum.apply(q.loc, q.scale, loc, scale)
    return found


def _single(values: Tensor) -> Tensor | None:
    """The one number that a tensor holds, however often it is repeated, or nothing."""
    if values.dim() and values.numel() and not any(values.stride()):
        return values[(0,) * values.dim()]
    return values.reshape(()) if values.numel() == 1 else None


class _NormalSum(torch.autograd.Function):
    """The sum; its derivatives are written out, since autograd would keep and read every step on the way."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, deviation: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        wide = scale.double()
        squares = _sum(deviation.square()) + _sum((mean - loc).square())
        return squares / (2.0 * wide.square()) - _sum(deviation.log()) + mean.numel() * (wide.log() - 0.5)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mean, deviation, loc, scale = ctx.saved_tensors
        grad = grad.to(torch.promote_types(mean.dtype, torch.float32))
        each = grad / scale.square()
        by_mean = each * (mean - loc) if ctx.needs_input_grad[0] else None
        by_deviation = each * deviation - grad / deviation if ctx.needs_input_grad[1] else None
        return by_mean, by_deviation, None, None


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64)

"""The KL of many normal distributions to one, summed in as few passes over memory as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Normal

from pyrostoch._precision import at_least_single

__all__ = ["normal_kl_sum"]

# Exactly these: what a subclass is besides, its own formula knows.
_NORMAL = (Normal, dist.Normal)


def normal_kl_sum(q: Any, p: Any) -> Tensor | None:
    r"""$\sum_i KL(N(\mu_i, \sigma_i^2) \| N(m, s^2))$ in nats, in float64; `None` for others.

    $$ \frac12 \sum_i \Bigl( r_i^2 - 2 \log r_i - 1 + \Bigl(\frac{\mu_i - m}{s}\Bigr)^2 \Bigr), \qquad
    r_i = \frac{\sigma_i}{s} $$

    The elementwise formula followed by a sum, and autograd behind it, read and write each weight twice as often.

    Args:
        q: The posterior.
        p: The prior, the same for all weights.

    Example:
        >>> normal_kl_sum(Normal(torch.zeros(4), torch.ones(4)), Normal(1.0, 1.0))
        tensor(2., dtype=torch.float64)
    """
    if type(q) not in _NORMAL or type(p) not in _NORMAL:
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
        mean, deviation, loc, scale = (at_least_single(value) for value in (mean, deviation, loc, scale))
        squared = (deviation / scale).square()
        logs = squared.log()
        # Near 1 where the two distributions are alike: first what is left of it, which would drown in a sum of squares.
        alike = squared.sub_(1.0).sub_(logs).sum(dtype=torch.float64)
        return 0.5 * (alike + ((mean - loc) / scale).square().sum(dtype=torch.float64))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        slopes = _slopes(ctx.saved_tensors, ctx.needs_input_grad)
        return tuple(
            None if slope is None else (grad.to(slope.dtype) * slope).to(value.dtype)
            for slope, value in zip(slopes, ctx.saved_tensors, strict=True)
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        slopes = _slopes(ctx.saved_tensors, [tangent is not None for tangent in tangents])
        parts = [
            (slope * tangent).sum(dtype=torch.float64)
            for slope, tangent in zip(slopes, tangents, strict=True)
            if slope is not None and tangent is not None
        ]
        return torch.stack(parts).sum()


def _slopes(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The derivatives by each of the four, where they are wanted."""
    mean, deviation, loc, scale = (at_least_single(value) for value in inputs)
    found: list[Tensor | None] = [None] * 4
    if wanted[0] or wanted[2] or wanted[3]:
        apart = (mean - loc) / scale.square()
        found[0] = apart if wanted[0] else None
        found[2] = -apart.sum() if wanted[2] else None
    if wanted[1]:
        found[1] = deviation / scale.square() - deviation.reciprocal()
    if wanted[3]:
        found[3] = (scale.reciprocal() - (deviation / scale).square() / scale - apart.square() * scale).sum()
    return found

"""The KL divergence of many normal distributions to one, summed with few passes over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrostoch._precision import at_least_single

__all__ = ["normal_kl_sum", "shared_value"]

# Exactly these types: a subclass may have a KL formula of its own.
_NORMAL = (Normal, dist.Normal)


def normal_kl_sum(q: Distribution, p: Distribution) -> Tensor | None:
    r"""$\sum_i KL(N(\mu_i, \sigma_i^2) \| N(m, s^2))$ in nats, in float64; `None` for any other pair.

    $$ \frac{1}{2} \sum_i \Bigl( r_i^2 - 2 \log r_i - 1 + \Bigl(\frac{\mu_i - m}{s}\Bigr)^2 \Bigr), \qquad
    r_i = \frac{\sigma_i}{s} $$

    The elementwise formula followed by a sum reads and writes each weight twice as often, also in the backward pass.

    Args:
        q: The posterior.
        p: The prior, the same for all weights.

    Example:
        >>> normal_kl_sum(Normal(torch.zeros(4), torch.ones(4)), Normal(1.0, 1.0))
        tensor(2., dtype=torch.float64)
    """
    if not isinstance(q, Normal) or not isinstance(p, Normal) or type(q) not in _NORMAL or type(p) not in _NORMAL:
        return None
    loc, scale = shared_value(p.loc), shared_value(p.scale)
    if loc is None or scale is None:
        return None
    # torch.broadcast_shapes takes as long as a small sum.
    if p.batch_shape != q.batch_shape and torch.broadcast_shapes(p.batch_shape, q.batch_shape) != q.batch_shape:
        return None
    total: Tensor = _NormalSum.apply(q.loc, q.scale, loc, scale)
    return total


def shared_value(values: Tensor) -> Tensor | None:
    """The value of a tensor with one element, or with one element expanded to all entries; `None` for others.

    Args:
        values: The tensor.
    """
    if values.dim() and values.numel() and not any(values.stride()):
        return values[(0,) * values.dim()]
    return values.reshape(()) if values.numel() == 1 else None


class _NormalSum(torch.autograd.Function):
    """The sum, with derivatives written out, since autograd would store and read every intermediate tensor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, deviation: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        mean, deviation, loc, scale = (at_least_single(value) for value in (mean, deviation, loc, scale))
        squared = (deviation / scale).square()
        logs = squared.log()
        # squared - 1 - logs nearly cancels where q is close to p, so it is taken entry by entry, before the sum.
        ratio_terms = squared.sub_(1.0).sub_(logs).sum(dtype=torch.float64)
        return 0.5 * (ratio_terms + ((mean - loc) / scale).square().sum(dtype=torch.float64))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        derivatives = _derivatives(ctx.saved_tensors, ctx.needs_input_grad)
        return tuple(
            None if derivative is None else (grad.to(derivative.dtype) * derivative).to(value.dtype)
            for derivative, value in zip(derivatives, ctx.saved_tensors, strict=True)
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        derivatives = _derivatives(ctx.saved_tensors, [tangent is not None for tangent in tangents])
        parts = [
            (derivative * tangent).sum(dtype=torch.float64)
            for derivative, tangent in zip(derivatives, tangents, strict=True)
            if derivative is not None and tangent is not None
        ]
        return torch.stack(parts).sum()


def _derivatives(inputs: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """The derivatives with respect to mean, deviation, loc and scale, `None` for those that are not needed."""
    mean, deviation, loc, scale = (at_least_single(value) for value in inputs)
    result: list[Tensor | None] = [None] * 4
    if needed[0] or needed[2] or needed[3]:
        by_mean = (mean - loc) / scale.square()
        result[0] = by_mean if needed[0] else None
        result[2] = -by_mean.sum() if needed[2] else None
    if needed[1]:
        result[1] = deviation / scale.square() - deviation.reciprocal()
    if needed[3]:
        result[3] = (scale.reciprocal() - (deviation / scale).square() / scale - by_mean.square() * scale).sum()
    return result

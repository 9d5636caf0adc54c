"""Elementwise functions whose derivative is known in closed form, computed in pieces that fit into the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["with_slope"]

#: An elementwise function of a tensor.
Elementwise = Callable[[Tensor], Tensor]

# Entries of a piece, half a megabyte in single precision: several fit into the cache, and their memory is used again.
_PIECE = 2**17


def with_slope(x: Tensor, value: Elementwise, slope: Elementwise) -> Tensor:
    """Compute an elementwise function whose derivative is given, so that no intermediate results are kept for it.

    Args:
        x: The argument.
        value: The function.
        slope: Its derivative, itself differentiable by torch, for second derivatives.

    Example:
        >>> x = torch.tensor([0.5], requires_grad=True)
        >>> with_slope(x, torch.sin, torch.cos).backward()
        >>> bool(x.grad == torch.cos(torch.tensor(0.5)))
        True
    """
    found: Tensor = _WithSlope.apply(x, value, slope)
    return found


class _WithSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Elementwise, slope: Elementwise) -> Tensor:
        return _in_pieces(value, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, _, ctx.slope = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        # Where a second derivative will be asked for, torch follows the slope as it follows any function.
        if torch.is_grad_enabled():
            return gradients[0] * ctx.slope(x), None, None
        return _in_pieces(lambda part, gradient: ctx.slope(part) * gradient, x, gradients[0]), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        product: Tensor = tangent * ctx.slope(x)
        return product


def _in_pieces(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """Apply a function of tensors of one shape piece by piece; at once in a graph that is traced, and on a GPU."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    if x.numel() <= _PIECE or x.device.type != "cpu" or wrapped or is_in_torch_dispatch_mode():
        return function(x, *others)
    result = torch.empty(x.shape, dtype=x.dtype)
    pieces = (tensor.reshape(-1).split(_PIECE) for tensor in (x, *others))
    for target, *sources in zip(result.view(-1).split(_PIECE), *pieces, strict=True):
        target.copy_(function(*sources))
    return result

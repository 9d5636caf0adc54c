"""Sums and products of moments with each other and with fixed tensors: residual links, gates, scaling, shifting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrostoch.moments.affine import affine, scaled
from pyrostoch.moments.gaussian import (
    Link,
    Moments,
    cross_covariance,
    elementwise_covariance,
    per_example,
    related,
)
from pyrostoch.moments.table import refuse, rule

__all__ = ["added", "multiplied"]


def added(x: Moments, y: Moments, sign: float = 1.0) -> Moments:
    """X + y, or x - y, with the covariance of the two where they have something in common.

    Args:
        x: The first.
        y: The second, of the same shape.
        sign: 1 or -1.
    """
    _same_shape(x, y)
    loc = x.loc + sign * y.loc
    links = (
        Link(x, lambda rows: rows, lambda: torch.ones_like(loc)),
        Link(y, lambda rows: sign * rows, lambda: torch.full_like(loc, sign)),
    )
    if x.cov is not None and y.cov is not None:
        cov = x.cov + y.cov
        if related(x, y):
            cross = cross_covariance(x, y)
            cov = cov + sign * (cross + cross.mT)
        return Moments(loc, cov.diagonal(dim1=1, dim2=2).reshape(loc.shape), cov, x.settings, links)
    shared = elementwise_covariance(x, y)
    var = x.var + y.var if shared is None else x.var + y.var + 2.0 * sign * shared
    return Moments(loc, var.clamp_min(0.0), None, x.settings, links)


def multiplied(x: Moments, y: Moments) -> Moments:
    """The product entry by entry, exact for jointly Gaussian x and y.

    Args:
        x: The first.
        y: The second, of the same shape.
    """
    _same_shape(x, y)
    together = related(x, y)
    shared: Any = elementwise_covariance(x, y) if x.cov is None else None
    cov = None
    if x.cov is not None and y.cov is not None:
        m, n = per_example(x.loc), per_example(y.loc)
        cov = n.unsqueeze(2) * n.unsqueeze(1) * x.cov + m.unsqueeze(2) * m.unsqueeze(1) * y.cov + x.cov * y.cov
        if together:
            cross = cross_covariance(x, y)
            mixed = n.unsqueeze(2) * m.unsqueeze(1) * cross
            cov = cov + mixed + mixed.mT + cross * cross.mT
            shared = cross.diagonal(dim1=1, dim2=2).reshape(x.loc.shape)
    loc = x.loc * y.loc if shared is None else x.loc * y.loc + shared
    one, other = x.loc, y.loc  # as they are now
    links = (
        Link(x, lambda rows: rows * other.unsqueeze(1), lambda: other),
        Link(y, lambda rows: rows * one.unsqueeze(1), lambda: one),
    )
    if cov is not None:
        return Moments(loc, cov.diagonal(dim1=1, dim2=2).reshape(loc.shape), cov, x.settings, links)
    var = x.var * y.loc.square() + y.var * x.loc.square() + x.var * y.var
    if shared is not None:
        var = var + 2.0 * x.loc * y.loc * shared + shared.square()
    return Moments(loc, var.clamp_min(0.0), None, x.settings, links)


def _same_shape(x: Moments, y: Moments) -> None:
    if x.loc.shape != y.loc.shape:
        raise ValueError(
            f"moments: expected operands of one shape, got {tuple(x.loc.shape)} and {tuple(y.loc.shape)}; entries that "
            "are used several times would be correlated"
        )


def _result(func: Callable[..., Any], x: Any, made: Moments, in_place: tuple[Any, ...]) -> Moments:
    """The result, put into the first operand where the operation works in place."""
    if func not in in_place:
        return made
    if not isinstance(x, Moments):
        raise TypeError(
            f"moments: {func.__name__} would put a random result into a plain tensor; write the sum or product as a "
            "new tensor"
        )
    return x.become(made)


@rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)
def _add(func: Callable[..., Any], x: Any, y: Any, *, alpha: float = 1.0) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        made = added(x, y if alpha == 1.0 else scaled(y, y.loc * alpha, alpha))
    elif isinstance(x, Moments):
        made = scaled(x, x.loc + alpha * y, 1.0)
    else:
        made = scaled(y, x + alpha * y.loc, alpha)
    return _result(func, x, made, (Tensor.add_, Tensor.__iadd__))


@rule(torch.sub, Tensor.sub, Tensor.__sub__, Tensor.sub_, Tensor.__isub__, torch.subtract)
def _sub(func: Callable[..., Any], x: Any, y: Any, *, alpha: float = 1.0) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        made = added(x, y if alpha == 1.0 else scaled(y, y.loc * alpha, alpha), -1.0)
    elif isinstance(x, Moments):
        made = scaled(x, x.loc - alpha * y, 1.0)
    else:
        made = scaled(y, x - alpha * y.loc, -alpha)
    return _result(func, x, made, (Tensor.sub_, Tensor.__isub__))


@rule(Tensor.__rsub__, torch.rsub)
def _rsub(func: Callable[..., Any], x: Any, y: Any, *, alpha: float = 1.0) -> Moments:
    return _sub(torch.sub, y, x, alpha=alpha)


@rule(torch.neg, Tensor.neg, Tensor.__neg__)
def _neg(func: Callable[..., Any], x: Moments) -> Moments:
    return scaled(x, -x.loc, -1.0)


@rule(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__, torch.multiply)
def _mul(func: Callable[..., Any], x: Any, y: Any) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        made = multiplied(x, y)
    else:
        moments, factor = (x, y) if isinstance(x, Moments) else (y, x)
        made = scaled(moments, moments.loc * factor, factor)
    return _result(func, x, made, (Tensor.mul_, Tensor.__imul__))


@rule(torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_, Tensor.__itruediv__, torch.true_divide)
def _div(func: Callable[..., Any], x: Any, y: Any) -> Moments:
    if isinstance(y, Moments):
        refuse(func, "a Gaussian's reciprocal has no moments")
    made = scaled(x, x.loc / y, 1.0 / y)
    return _result(func, x, made, (Tensor.div_, Tensor.__itruediv__))


@rule(torch.where, Tensor.where)
def _where(func: Callable[..., Any], *args: Any) -> Moments:
    first, second, third = args
    condition, x, y = (first, second, third) if func is torch.where else (second, first, third)
    if isinstance(condition, Moments):
        refuse(func, "what is chosen depends on the condition; leaky_relu, clamp and thresholds have rules")
    dtype = next(value.loc.dtype for value in (x, y) if isinstance(value, Moments))
    parts = [
        _mul(torch.mul, value, mask.to(dtype)) if isinstance(value, Moments) else value * mask
        for value, mask in ((x, condition), (y, ~condition))
    ]
    return torch.add(*parts)  # type: ignore[return-value]


@rule(torch.pow, Tensor.pow, Tensor.__pow__, torch.square, Tensor.square)
def _pow(func: Callable[..., Any], x: Moments, exponent: Any = 2) -> Moments:
    if not isinstance(x, Moments) or exponent != 2:
        raise ValueError(f"moments: of the powers the second is known, got exponent {exponent!r}")
    return multiplied(x, x)


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(func: Callable[..., Any], x: Any, weight: Any) -> Moments:
    if not isinstance(x, Moments) or isinstance(weight, Moments) or weight.dim() != 2:
        raise ValueError("moments: a product of matrices is known for moments times a fixed matrix")
    return affine(x, x.loc @ weight, x.var @ weight.square(), lambda rows: rows @ weight)


@rule(torch.addmm)
def _addmm(
    func: Callable[..., Any], bias: Tensor, x: Moments, weight: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> Moments:
    product = _matmul(torch.matmul, x, weight)
    return _add(torch.add, product if alpha == 1.0 else _mul(torch.mul, product, alpha), beta * bias)

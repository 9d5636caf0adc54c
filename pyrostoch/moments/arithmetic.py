"""Rules of sums and products of moments, with each other (residual links, gates) and with fixed tensors."""

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
    """The sum x + y or the difference x - y, with the covariance of the two where they have a common ancestor.

    Args:
        x: The first operand.
        y: The second operand, in the same shape.
        sign: 1 for the sum, -1 for the difference.
    """
    _check_same_shape(x, y)
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
    cross_var = elementwise_covariance(x, y)
    var = x.var + y.var if cross_var is None else x.var + y.var + 2.0 * sign * cross_var
    return Moments(loc, var.clamp_min(0.0), None, x.settings, links)


def multiplied(x: Moments, y: Moments) -> Moments:
    """The elementwise product, exact for jointly Gaussian x and y.

    Args:
        x: The first operand.
        y: The second operand, in the same shape.
    """
    _check_same_shape(x, y)
    correlated = related(x, y)
    cross_var: Any = elementwise_covariance(x, y) if x.cov is None else None
    cov = None
    if x.cov is not None and y.cov is not None:
        m, n = per_example(x.loc), per_example(y.loc)
        cov = n.unsqueeze(2) * n.unsqueeze(1) * x.cov + m.unsqueeze(2) * m.unsqueeze(1) * y.cov + x.cov * y.cov
        if correlated:
            cross = cross_covariance(x, y)
            mixed = n.unsqueeze(2) * m.unsqueeze(1) * cross
            cov = cov + mixed + mixed.mT + cross * cross.mT
            cross_var = cross.diagonal(dim1=1, dim2=2).reshape(x.loc.shape)
    loc = x.loc * y.loc if cross_var is None else x.loc * y.loc + cross_var
    x_loc, y_loc = x.loc, y.loc  # operations in place may replace these attributes later
    links = (
        Link(x, lambda rows: rows * y_loc.unsqueeze(1), lambda: y_loc),
        Link(y, lambda rows: rows * x_loc.unsqueeze(1), lambda: x_loc),
    )
    if cov is not None:
        return Moments(loc, cov.diagonal(dim1=1, dim2=2).reshape(loc.shape), cov, x.settings, links)
    var = x.var * y.loc.square() + y.var * x.loc.square() + x.var * y.var
    if cross_var is not None:
        var = var + 2.0 * x.loc * y.loc * cross_var + cross_var.square()
    return Moments(loc, var.clamp_min(0.0), None, x.settings, links)


def _check_same_shape(x: Moments, y: Moments) -> None:
    if x.loc.shape != y.loc.shape:
        raise ValueError(
            f"moments: expected operands of the same shape, got {tuple(x.loc.shape)} and {tuple(y.loc.shape)}; "
            "broadcasting would use an entry several times and so make results correlated"
        )


def _result(func: Callable[..., Any], x: Any, result: Moments, in_place: tuple[Any, ...]) -> Moments:
    """The result, written into the first operand if the operation works in place."""
    if func not in in_place:
        return result
    if not isinstance(x, Moments):
        raise TypeError(
            f"moments: {func.__name__} would write a random result into a plain tensor; use the operation that returns "
            "a new tensor"
        )
    return x.become(result)


@rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)
def _add(func: Callable[..., Any], x: Any, y: Any, *, alpha: float = 1.0) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        result = added(x, y if alpha == 1.0 else scaled(y, y.loc * alpha, alpha))
    elif isinstance(x, Moments):
        result = scaled(x, x.loc + alpha * y, 1.0)
    else:
        result = scaled(y, x + alpha * y.loc, alpha)
    return _result(func, x, result, (Tensor.add_, Tensor.__iadd__))


@rule(torch.sub, Tensor.sub, Tensor.__sub__, Tensor.sub_, Tensor.__isub__, torch.subtract)
def _sub(func: Callable[..., Any], x: Any, y: Any, *, alpha: float = 1.0) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        result = added(x, y if alpha == 1.0 else scaled(y, y.loc * alpha, alpha), -1.0)
    elif isinstance(x, Moments):
        result = scaled(x, x.loc - alpha * y, 1.0)
    else:
        result = scaled(y, x - alpha * y.loc, -alpha)
    return _result(func, x, result, (Tensor.sub_, Tensor.__isub__))


@rule(Tensor.__rsub__, torch.rsub)
def _rsub(func: Callable[..., Any], x: Any, y: Any, *, alpha: float = 1.0) -> Moments:
    return _sub(torch.sub, y, x, alpha=alpha)


@rule(torch.neg, Tensor.neg, Tensor.__neg__)
def _neg(func: Callable[..., Any], x: Moments) -> Moments:
    return scaled(x, -x.loc, -1.0)


@rule(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__, torch.multiply)
def _mul(func: Callable[..., Any], x: Any, y: Any) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        result = multiplied(x, y)
    else:
        moments, factor = (x, y) if isinstance(x, Moments) else (y, x)
        result = scaled(moments, moments.loc * factor, factor)
    return _result(func, x, result, (Tensor.mul_, Tensor.__imul__))


@rule(torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_, Tensor.__itruediv__, torch.true_divide)
def _div(func: Callable[..., Any], x: Any, y: Any) -> Moments:
    if isinstance(y, Moments):
        refuse(func, "a Gaussian's reciprocal has no moments")
    result = scaled(x, x.loc / y, 1.0 / y)
    return _result(func, x, result, (Tensor.div_, Tensor.__itruediv__))


@rule(torch.where, Tensor.where)
def _where(func: Callable[..., Any], *args: Any) -> Moments:
    first, second, third = args
    condition, x, y = (first, second, third) if func is torch.where else (second, first, third)
    if isinstance(condition, Moments):
        refuse(func, "its condition is random; leaky_relu, clamp and thresholds have rules")
    dtype = next(value.loc.dtype for value in (x, y) if isinstance(value, Moments))
    parts = [
        _mul(torch.mul, value, mask.to(dtype)) if isinstance(value, Moments) else value * mask
        for value, mask in ((x, condition), (y, ~condition))
    ]
    return torch.add(*parts)  # type: ignore[return-value]


@rule(torch.pow, Tensor.pow, Tensor.__pow__, torch.square, Tensor.square)
def _pow(func: Callable[..., Any], x: Moments, exponent: Any = 2) -> Moments:
    if not isinstance(x, Moments) or exponent != 2:
        raise ValueError(f"moments: expected exponent 2, the only one with a rule, got {exponent!r}")
    return multiplied(x, x)


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(func: Callable[..., Any], x: Any, weight: Any) -> Moments:
    if not isinstance(x, Moments) or isinstance(weight, Moments) or weight.dim() != 2:
        raise ValueError("moments: a matrix product has a rule only for moments times a fixed matrix with two axes")
    return affine(x, x.loc @ weight, x.var @ weight.square(), lambda rows: rows @ weight)


@rule(torch.addmm)
def _addmm(
    func: Callable[..., Any], bias: Tensor, x: Moments, weight: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> Moments:
    product = _matmul(torch.matmul, x, weight)
    return _add(torch.add, product if alpha == 1.0 else _mul(torch.mul, product, alpha), beta * bias)

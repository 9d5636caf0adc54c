"""Rules of operations that only rearrange entries: views, permutations, slices, padding, copies, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrostoch.moments.gaussian import Link, Moments, cross_covariance, entries_of, related, rows_of
from pyrostoch.moments.table import caller, refuse, rule

__all__ = ["rearranged"]

_FUNCTIONS = (  # torch functions that are also methods of tensors
    "flatten",
    "reshape",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "movedim",
    "unflatten",
    "narrow",
    "flip",
)
_METHODS = ("view", "view_as", "reshape_as", "contiguous", "clone", "expand", "expand_as", "__getitem__", "swapaxes")
_SPLITS = ("chunk", "split", "unbind", "tensor_split")
# Those that keep the order of the entries.
_ORDER_PRESERVING = {"clone", "contiguous", "flatten", "reshape", "reshape_as", "squeeze", "unflatten", "unsqueeze"}
_ORDER_PRESERVING |= {"view", "view_as"}
_CASTS = ("to", "float", "double", "half", "bfloat16", "type_as", "type", "detach", "cpu", "cuda")


def rearranged(x: Moments, func: Callable[[Tensor], Any], *, keep: bool = False) -> Any:
    """Moments after an operation whose results are entries of the input or zeros.

    Args:
        x: The moments.
        func: The operation on a tensor in their shape; it keeps the axis of examples first.
        keep: Whether the order of the entries is kept, so that only the shape changes.

    Returns:
        The moments, or a tuple of them if the operation returns several tensors.

    Raises:
        ValueError: The operation changes the number of examples.
    """
    locs, variances = func(x.loc), func(x.var)
    if isinstance(locs, Tensor):
        return _arranged(x, locs, variances, func, None, keep)
    return tuple(
        _arranged(x, loc, var, func, part, False) for part, (loc, var) in enumerate(zip(locs, variances, strict=True))
    )


def _arranged(
    x: Moments, loc: Tensor, var: Tensor, func: Callable[[Tensor], Any], part: int | None, keep: bool
) -> Moments:
    if loc.dim() == 0 or len(loc) != len(x.loc):
        raise ValueError(
            f"moments: the first axis counts examples, which are independent: an operation turned shape "
            f"{tuple(x.loc.shape)} into {tuple(loc.shape)}; keep the {len(x.loc)} examples on the first axis"
        )

    def source() -> Tensor:
        """For each entry of a result its position in the input example, counted from 1; 0 for a zero."""
        result = func(entries_of(x.loc).expand(x.loc.shape).contiguous())
        return (result if part is None else result[part])[0].reshape(-1).round().long()

    def push(rows: Tensor) -> Tensor:
        flat = rows_of(rows)
        if not keep:
            flat = torch.cat([torch.zeros_like(flat[..., :1]), flat], dim=-1)[..., source()]
        return rows_of(flat, loc.shape[1:])

    cov = x.cov
    if cov is not None and not keep:
        index = source()
        cov = F.pad(cov, (1, 0, 1, 0))[:, index][:, :, index]
    gain = (lambda: torch.ones_like(loc)) if keep and loc.shape == x.loc.shape else None
    return Moments(loc, var, cov, x.settings, (Link(x, push, gain),), x.lazy_covariance if keep else None)


def _check_examples(name: str, x: Moments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse operations that move or select examples, as the first axis must count independent examples."""
    count = x.loc.dim()

    def axes(*values: Any) -> set[int]:
        flat = [axis for value in values for axis in (value if isinstance(value, (tuple, list)) else (value,))]
        return {axis % count for axis in flat if isinstance(axis, int)}

    given = (*args, *kwargs.values())
    if name in ("transpose", "swapaxes", "flip"):
        moved = 0 in axes(*given)
    elif name == "permute":
        order = given[0] if isinstance(given[0], (tuple, list)) else given
        moved = order[0] % count != 0
    elif name == "movedim":
        source, target = (values if isinstance(values, (tuple, list)) else (values,) for values in given[:2])
        ends = dict(zip((s % count for s in source), (t % count for t in target), strict=True))
        moved = ends.get(0, 0) != 0 or any(t == 0 and s != 0 for s, t in ends.items())
    elif name in ("narrow", "unbind", "chunk", "split", "tensor_split"):
        position = 0 if name in ("narrow", "unbind") else 1
        axis = kwargs.get("dim", args[position] if len(args) > position else 0)
        moved = axis % count == 0
    elif name == "__getitem__":
        index = args[0] if isinstance(args[0], tuple) else (args[0],)
        first = index[0] if index else slice(None)
        whole = isinstance(first, slice) and first == slice(None)
        moved = not (whole or (first is Ellipsis and sum(part is not None for part in index[1:]) < count))
    else:
        return
    if moved:
        if isinstance(caller(), nn.MultiheadAttention):
            reason = "it moves the examples from the first axis, so it cannot be done by Monte Carlo alone"
            refuse(torch.nn.functional.multi_head_attention_forward, reason if x.settings.sampled else "")
        raise ValueError(
            f"moments: the first axis counts examples, which are independent: {name} on shape {tuple(x.loc.shape)} "
            "would move or select them; keep the examples on the first axis, or predict with mode='mc'"
        )


@rule(*(getattr(owner, name) for owner in (torch, Tensor) for name in (*_FUNCTIONS, *_SPLITS)))
@rule(*(getattr(Tensor, name) for name in _METHODS), torch.clone)
def _arrange(func: Callable[..., Any], x: Moments, *args: Any, **kwargs: Any) -> Any:
    args = tuple(other.loc if isinstance(other, Moments) else other for other in args)
    name = getattr(func, "__name__", "")
    _check_examples(name, x, args, kwargs)
    return rearranged(x, lambda values: func(values, *args, **kwargs), keep=name in _ORDER_PRESERVING)


@rule(Tensor.mT.__get__)  # type: ignore[attr-defined]
def _transposed(func: Callable[..., Any], x: Moments) -> Any:
    return x.transpose(-2, -1)


@rule(Tensor.real.__get__)  # type: ignore[attr-defined]
def _real(func: Callable[..., Any], x: Moments) -> Moments:
    return x


@rule(Tensor.data.__get__)  # type: ignore[attr-defined]
def _data(func: Callable[..., Any], x: Moments) -> Any:
    return x.detach()


@rule(*(getattr(Tensor, name) for name in _CASTS))
def _cast(func: Callable[..., Any], x: Moments, *args: Any, **kwargs: Any) -> Moments:
    args = tuple(other.loc if isinstance(other, Moments) else other for other in args)
    loc, var = func(x.loc, *args, **kwargs), func(x.var, *args, **kwargs)
    cov = None if x.cov is None else func(x.cov, *args, **kwargs)
    input_covariance = x.lazy_covariance
    link = Link(x, lambda rows: func(rows, *args, **kwargs), lambda: torch.ones_like(loc))
    lazy_covariance = None if input_covariance is None else lambda: func(input_covariance(), *args, **kwargs)
    return Moments(loc, var, cov, x.settings, (link,), lazy_covariance)


@rule(F.pad)
def _pad(
    func: Callable[..., Any], input: Moments, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Moments:
    padded: Moments = rearranged(input, lambda values: func(values, pad, mode))
    if value:
        padded.loc = func(input.loc, pad, mode, value)
    return padded


@rule(F.interpolate)
def _interpolate(func: Callable[..., Any], input: Moments, *args: Any, **kwargs: Any) -> Moments:
    if kwargs.get("mode", args[2] if len(args) > 2 else "nearest") not in ("nearest", "nearest-exact"):
        raise ValueError("moments: interpolation has a rule only for the modes 'nearest' and 'nearest-exact'")
    return rearranged(input, lambda values: func(values, *args, **kwargs))


@rule(torch.cat, torch.concat, torch.stack)
def _join(func: Callable[..., Any], tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None) -> Moments:
    dim = dim if axis is None else axis
    given = [part for part in tensors if isinstance(part, Moments)]
    first = given[0]
    locs = [part.loc if isinstance(part, Moments) else part for part in tensors]
    variances = [part.var if isinstance(part, Moments) else torch.zeros_like(part) for part in tensors]
    loc, var = func(locs, dim), func(variances, dim)
    if dim % (locs[0].dim() + (func is torch.stack)) == 0:
        raise ValueError("moments: the first axis counts examples, which cannot be joined; use another dim")

    def push_of(part: int) -> Callable[[Tensor], Tensor]:
        """The Jacobian with respect to one part: its rows, joined with zeros for the other parts."""

        def push(rows: Tensor) -> Tensor:
            flat = [
                torch.zeros_like(other).new_zeros(rows.shape[0] * rows.shape[1], *other.shape[1:]) for other in locs
            ]
            flat[part] = rows.flatten(0, 1)
            return func(flat, dim).unflatten(0, rows.shape[:2])

        return push

    links = tuple(Link(part, push_of(at)) for at, part in enumerate(tensors) if isinstance(part, Moments))
    return Moments(loc, var, _joined_covariance(links, loc) if first.settings.full else None, first.settings, links)


def _joined_covariance(links: tuple[Link, ...], loc: Tensor) -> Tensor:
    """Covariance of the joined parts, with the blocks between related parts."""
    total: Any = 0.0
    for one in links:
        for other in links:
            if related(one.parent, other.parent):
                cross = cross_covariance(one.parent, other.parent)
                rows = rows_of(other.push(rows_of(cross, other.parent.loc.shape[1:]))).mT
                total = total + rows_of(one.push(rows_of(rows, one.parent.loc.shape[1:])))
    return torch.as_tensor(total).reshape(len(loc), loc[0].numel(), loc[0].numel())

r"""Linear operations: layers with fixed and with random weights, batch normalization, averages, scaling and shifting.

For independent weights with mean M and variance V and an input with mean m, variance v and covariance C,

$$ \mathrm{Var}(Wx)_o = \sum_i M_{oi}^2 v_i + V_{oi} (v_i + m_i^2), \qquad
\mathrm{Cov}(Wx) = M C M^\top + \mathrm{diag}\Bigl(\sum_i V_{oi} (v_i + m_i^2)\Bigr), $$

exact for any distributions of weights and inputs (Wu et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrostoch._ops import LinearOp, bind
from pyrostoch.moments.gaussian import Link, Moments, MomentSettings, entries_of, per_example, rows_of
from pyrostoch.moments.table import rule

__all__ = ["affine", "propagate_linear", "scaled"]


def propagate_linear(
    op: LinearOp,
    weight: tuple[Tensor | None, Tensor] | None,
    bias: tuple[Tensor | None, Tensor] | None,
    settings: MomentSettings,
) -> Moments:
    """Moments of a linear operation with random weights.

    Args:
        op: The operation; its input a tensor or moments.
        weight: Mean and variance of the random weight, the mean `None` where it is zero; `None` where it is fixed.
        bias: The same of the bias.
        settings: How moments are carried, where the input is a tensor.

    Returns:
        Moments of the output.

    Raises:
        ValueError: A full covariance is asked of a random weight for which there is no rule.
    """
    x = op.input if isinstance(op.input, Moments) else Moments(op.input, torch.zeros_like(op.input), None, settings)
    certain = not isinstance(op.input, Moments)
    mean, spread = (op.weight, None) if weight is None else weight
    shift, jitter = (op.bias, None) if bias is None else bias
    settings = x.settings
    # What is new here: the weights' own variances, met by the second moment of the input.
    own: Any = None
    if spread is not None:
        second = x.loc.square() if certain else x.loc.square() + x.var
        own = op(second, spread, jitter)
    elif jitter is not None:
        own = op(torch.zeros_like(x.loc), torch.zeros_like(op.weight), jitter)
    if mean is None:
        loc = torch.zeros_like(own) if shift is None else torch.zeros_like(own) + shift.reshape(-1, *[1] * op.spatial)
    else:
        loc = op(x.loc, mean, shift)
    passed = None if certain or mean is None else op(x.var, mean.square(), None)
    parts = [part for part in (passed, own) if part is not None]
    var = sum(parts[1:], parts[0]) if parts else torch.zeros_like(loc)
    links = () if certain or mean is None else (Link(x, lambda rows: _rows(op, rows, mean)),)
    cov = None
    if settings.full:
        size = loc[0].numel()
        cov = pushed(links[0], x.covariance()) if links else loc.new_zeros(len(loc), size, size)
        if own is not None:
            cov = cov + _weights_covariance(op, x, spread, jitter, own)
        var = cov.diagonal(dim1=1, dim2=2).reshape(loc.shape)
        return Moments(loc, var, cov, settings, links)
    late = None
    if op.spatial == 0 and loc.dim() == 2:

        def late() -> Tensor:
            """Covariance of the outputs, the inputs taken as uncorrelated."""
            extra = torch.zeros_like(loc) if own is None else own
            if mean is None or certain:
                return torch.diag_embed(extra)
            # (B, out, in) at a time; the number of outputs is small where this is asked for.
            return torch.einsum("oi,bi,pi->bop", mean, x.var, mean) + torch.diag_embed(extra)

    return Moments(loc, var, None, settings, links, late)


def pushed(link: Link, cov: Tensor) -> Tensor:
    """J C J' for the linear map J of a link.

    Args:
        link: The link.
        cov: Covariance of the parent, (B, n, n).
    """
    shape = link.parent.loc.shape[1:]
    half = rows_of(link.push(rows_of(cov, shape)))
    return rows_of(link.push(rows_of(half.mT, shape)))


def _rows(op: LinearOp, rows: Tensor, weight: Tensor) -> Tensor:
    return op(rows.flatten(0, 1), weight, None).unflatten(0, rows.shape[:2])


def _weights_covariance(op: LinearOp, x: Moments, spread: Tensor | None, jitter: Tensor | None, own: Tensor) -> Tensor:
    """Covariance from the weights: one weight met at many positions makes the outputs there correlated."""
    positions = op.applications(own)
    if positions == 1:
        return torch.diag_embed(per_example(own))
    outs = own.shape[1] if op.spatial else own.shape[-1]
    count = len(own)
    total = own.new_zeros(count, outs, positions, positions)
    if jitter is not None:
        total = total + jitter.reshape(1, -1, 1, 1)
    if spread is not None:
        flat = per_example(x.loc)
        second = F.pad(x.covariance() + flat.unsqueeze(2) * flat.unsqueeze(1), (1, 0, 1, 0))
        for index, variances in zip(_patches(op, x.loc), spread.flatten(1).T, strict=True):
            total = total + variances.reshape(1, -1, 1, 1) * second[:, index][:, :, index].unsqueeze(1)
    full = torch.diag_embed(total.movedim(1, -1), dim1=1, dim2=3)  # (B, out, position, out, position)
    if not op.spatial:
        full = full.permute(0, 2, 1, 4, 3)
    return full.reshape(count, outs * positions, outs * positions)


def _patches(op: LinearOp, x: Tensor) -> Tensor:
    """For each weight of an output, the entry of an example it meets at each position, from 1; 0 for padding."""
    index = entries_of(x)
    if op.spatial == 0:
        return index.reshape(-1, x.shape[-1]).T.round().long()
    rest = op.rest
    if op.func is not torch.conv2d or rest.get("groups", 1) != 1 or isinstance(rest.get("padding", 0), str):
        raise ValueError(
            f"moments: a full covariance with random weights in {op.func.__name__} is known for linear layers and for "
            "conv2d with one group and numbers for padding; use diagonal moments"
        )
    settings = {name: rest.get(name, usual) for name, usual in (("dilation", 1), ("padding", 0), ("stride", 1))}
    return F.unfold(index, op.weight.shape[2:], **settings)[0].round().long()


@rule(F.linear, torch.conv1d, torch.conv2d, torch.conv3d)
@rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def _fixed(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Moments:
    op: Any = bind(func, args, kwargs)
    return propagate_linear(op, None, None, op.input.settings)


def affine(x: Moments, loc: Tensor, var: Tensor, push: Callable[[Tensor], Tensor]) -> Moments:
    """Moments after a linear operation without randomness of its own.

    Args:
        x: The moments.
        loc: Mean of the result.
        var: Variance of the result, the entries of `x` taken as uncorrelated; not read with a full covariance.
        push: The linear map, `(B, r, *in) -> (B, r, *out)`.
    """
    link = Link(x, push)
    if x.cov is None:
        return Moments(loc, var, None, x.settings, (link,))
    cov = pushed(link, x.cov)
    return Moments(loc, cov.diagonal(dim1=1, dim2=2).reshape(loc.shape), cov, x.settings, (link,))


def scaled(x: Moments, loc: Tensor, gain: Tensor | float) -> Moments:
    """Moments after each entry was multiplied by a number of its own, and shifted.

    Args:
        x: The moments.
        loc: Mean of the result.
        gain: The factors, broadcast to the shape of `x`.
    """
    factor = torch.as_tensor(gain, dtype=x.loc.dtype, device=x.loc.device).expand(loc.shape)
    if loc.shape != x.loc.shape:
        raise ValueError(
            f"moments: expected an operand that broadcasts to {tuple(x.loc.shape)}, got a result of {tuple(loc.shape)}"
        )
    flat = per_example(factor)
    cov = None if x.cov is None else x.cov * flat.unsqueeze(1) * flat.unsqueeze(2)
    before = x.late

    def late() -> Tensor:
        return before() * flat.unsqueeze(1) * flat.unsqueeze(2)  # type: ignore[misc]

    link = Link(x, lambda rows: rows * factor.unsqueeze(1), lambda: factor)
    return Moments(loc, x.var * factor.square(), cov, x.settings, (link,), None if before is None else late)


@rule(F.batch_norm, torch.batch_norm)
def _batch_norm(
    func: Callable[..., Any],
    input: Moments,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *rest: Any,
) -> Moments:
    """Batch statistics, in training, are those of the mixture of the examples' distributions."""
    x = input
    if training or running_mean is None or running_var is None:
        axes = [axis for axis in range(x.loc.dim()) if axis != 1]
        mean = x.loc.mean(axes)
        variance = (x.var + x.loc.square()).mean(axes) - mean.square()
        if running_mean is not None and running_var is not None:
            count = x.loc.numel() / x.loc.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
                unbiased = variance.detach() * (count / max(count - 1.0, 1.0))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    else:
        mean, variance = running_mean, running_var
    shape = (1, -1, *[1] * (x.loc.dim() - 2))
    gain = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
    shift = -mean * gain if bias is None else bias - mean * gain
    return scaled(x, x.loc * gain.reshape(shape) + shift.reshape(shape), gain.reshape(shape))


@rule(F.layer_norm, torch.layer_norm)
def _layer_norm(
    func: Callable[..., Any],
    input: Moments,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Moments:
    r"""An approximation: the factor $f$ by which an example is multiplied is taken at the mean variance over features.

    What it does to the variances is kept to first order: with the normalized means $z$, the derivative is
    $f (I - 1/n - z z^\top / n)$.
    """
    x, axes = input, tuple(range(-len(normalized_shape), 0))
    count = math.prod(normalized_shape)
    center = x.loc.mean(axes, keepdim=True)
    # E of the sample variance: that of the means, and the variances that do not cancel with the mean's own.
    spread = x.var.mean(axes, keepdim=True) * (1.0 - 1.0 / count)
    factor = torch.rsqrt((x.loc - center).square().mean(axes, keepdim=True) + spread + eps)
    gain = factor if weight is None else factor * weight
    loc = (x.loc - center) * gain + (0.0 if bias is None else bias)
    z = (x.loc - center) * factor

    def average(values: Tensor) -> Tensor:
        return values.mean(axes, keepdim=True)

    others = average(x.var) + 2.0 * z * average(x.var * z) + z.square() * average(x.var * z.square())
    var = (x.var * (1.0 - 2.0 * (1.0 + z.square()) / count) + others / count) * gain.square()

    def push(rows: Tensor) -> Tensor:
        turned = z.unsqueeze(1)
        return (rows - average(rows) - turned * average(rows * turned)) * gain.unsqueeze(1)

    return affine(x, loc, var, push)


@rule(torch.mean, Tensor.mean, torch.sum, Tensor.sum)
def _reduce(
    func: Callable[..., Any],
    input: Moments,
    dim: Any = None,
    keepdim: bool = False,
    *,
    axis: Any = None,
    dtype: torch.dtype | None = None,
) -> Moments:
    x, dim = input, axis if dim is None else dim
    axes = {axis % x.loc.dim() for axis in ((dim,) if isinstance(dim, int) else dim or range(x.loc.dim()))}
    if 0 in axes:
        raise ValueError("moments: the first axis counts examples, whose mean or sum has no moments of its own here")
    over = sorted(axes)
    count = math.prod(x.loc.shape[axis] for axis in over)
    mean = func in (torch.mean, Tensor.mean)

    def reduced(values: Tensor, skip: int = 0) -> Tensor:
        return func(values, [axis + skip for axis in over], keepdim, dtype=dtype)

    return affine(x, reduced(x.loc), reduced(x.var) / (count if mean else 1), lambda rows: reduced(rows, 1))

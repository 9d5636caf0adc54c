r"""Rules of linear operations: layers with fixed or random weights, normalization, means and sums, scaling, shifting.

For independent weights with mean M and variance V and an input with mean m, variance v and covariance C,

$$ \mathrm{Var}(Wx)_o = \sum_i M_{oi}^2 v_i + V_{oi} (v_i + m_i^2), \qquad
\mathrm{Cov}(Wx) = M C M^\top + \mathrm{diag}\Bigl(\sum_i V_{oi} (v_i + m_i^2)\Bigr), $$

exact for any distributions of weights and inputs.

References:
    Wu et al., "Deterministic variational inference for robust Bayesian neural networks", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrostoch._ops import LinearOp, bind
from pyrostoch.moments.gaussian import Link, Moments, MomentSettings, entries_of, per_example, rows_of
from pyrostoch.moments.table import rule

__all__ = ["affine", "propagate_linear", "scaled"]

# Up to so many products of weights of two outputs, their sums over inputs are one multiplication of matrices.
_FEW_PRODUCTS = 2**20


class WholeWeight(Protocol):
    """The distribution of a weight whose entries depend on each other; see `distributions.JointWeights`."""

    def output_variance(self, op: LinearOp, mean: Tensor, variance: Tensor) -> Tensor:
        """What it adds to the variance of each output."""

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        """What it adds to the covariance of a linear layer's outputs."""


def propagate_linear(
    op: LinearOp,
    weight: tuple[Tensor | None, Tensor] | None,
    bias: tuple[Tensor | None, Tensor | None] | None,
    settings: MomentSettings,
    whole: WholeWeight | None = None,
    bias_cov: Tensor | None = None,
) -> Moments:
    """Moments of a linear operation with random weights.

    Args:
        op: The operation; its input is a tensor or `Moments`.
        weight: Mean and variance of the random weight, the mean `None` if it is zero; `None` if the weight is fixed.
        bias: The same for the bias; without a variance where `whole` includes it.
        settings: Options of the propagation, used if the input is a tensor.
        whole: The distribution of a weight whose entries depend on each other, in place of its variance.
        bias_cov: The covariance of a bias whose entries depend on each other, (out, out), beside its variance.

    Returns:
        Moments of the output.

    Raises:
        ValueError: A full covariance is asked for, and the operation has no rule for it with random weights.
    """
    x = op.input if isinstance(op.input, Moments) else Moments(op.input, torch.zeros_like(op.input), None, settings)
    fixed_input = not isinstance(op.input, Moments)
    weight_mean, weight_var = (op.weight, None) if weight is None else weight
    bias_mean, bias_var = (op.bias, None) if bias is None else bias
    settings = x.settings
    # The variance that weights and bias add: their variances times the second moment of the input.
    added_var: Any = None
    if whole is not None:
        added_var = whole.output_variance(op, x.loc, x.var)
        if bias_var is not None:
            added_var = added_var + bias_var.reshape(-1, *[1] * op.spatial)
    elif weight_var is not None:
        second = x.loc.square() if fixed_input else x.loc.square() + x.var
        added_var = op(second, weight_var, bias_var)
    elif bias_var is not None:
        added_var = op(torch.zeros_like(x.loc), torch.zeros_like(op.weight), bias_var)
    if weight_mean is None:
        loc = torch.zeros_like(added_var)
        if bias_mean is not None:
            loc = loc + bias_mean.reshape(-1, *[1] * op.spatial)
    else:
        loc = op(x.loc, weight_mean, bias_mean)
    input_var = None if fixed_input or weight_mean is None else op(x.var, weight_mean.square(), None)
    parts = [part for part in (input_var, added_var) if part is not None]
    var = sum(parts[1:], parts[0]) if parts else torch.zeros_like(loc)
    links = () if fixed_input or weight_mean is None else (Link(x, lambda rows: _apply_to_rows(op, rows, weight_mean)),)
    cov = None
    if settings.full:
        size = loc[0].numel()
        cov = pushed(links[0], x.covariance()) if links else loc.new_zeros(len(loc), size, size)
        if whole is not None or bias_cov is not None:
            if op.spatial or x.loc.dim() > 2:
                raise ValueError(
                    "moments: no rule for a full covariance with weights that depend on each other in "
                    f"{op.func.__name__}: expected a linear layer; use 'moments', which carries variances only"
                )
            cov = cov + _joint_covariance(x, x.covariance(), whole, weight_var, bias_var, bias_cov)
        elif added_var is not None:
            cov = cov + _added_covariance(op, x, weight_var, bias_var, added_var)
        var = cov.diagonal(dim1=1, dim2=2).reshape(loc.shape)
        return Moments(loc, var, cov, settings, links)
    lazy_covariance = None
    if op.spatial == 0 and loc.dim() == 2:

        def lazy_covariance() -> Tensor:
            """Covariance of the outputs, with the inputs taken as uncorrelated."""
            if whole is not None or bias_cov is not None:
                added = _joint_covariance(x, x.var, whole, weight_var, bias_var, bias_cov)
            else:
                added = torch.diag_embed(torch.zeros_like(loc) if added_var is None else added_var)
            if weight_mean is None or fixed_input:
                return added
            outs, ins = weight_mean.shape
            if outs * outs * ins <= _FEW_PRODUCTS:
                products = (weight_mean.unsqueeze(1) * weight_mean).flatten(0, 1)
                return (x.var @ products.T).unflatten(1, (outs, outs)) + added
            # Needs (B, out, in) numbers; the number of outputs is small where this is called.
            return torch.einsum("oi,bi,pi->bop", weight_mean, x.var, weight_mean) + added

    return Moments(loc, var, None, settings, links, lazy_covariance)


def _joint_covariance(
    x: Moments,
    second: Tensor,
    whole: WholeWeight | None,
    weight_var: Tensor | None,
    bias_var: Tensor | None,
    bias_cov: Tensor | None,
) -> Tensor:
    """The covariance that weight and bias of a linear layer add where entries of either depend on each other.

    Args:
        x: Moments of the input.
        second: The input's covariance, or its variances.
        whole: See `propagate_linear`.
        weight_var: Variances of independent entries of the weight.
        bias_var: Variances of the bias.
        bias_cov: See `propagate_linear`.
    """
    added: Any = 0.0
    if whole is not None:
        added = whole.output_covariance(x.loc, second)
    elif weight_var is not None:
        variances = second if second.dim() == 2 else second.diagonal(dim1=1, dim2=2)
        added = torch.diag_embed((x.loc.square() + variances) @ weight_var.mT)
    if bias_cov is not None:
        return added + bias_cov
    return added if bias_var is None else added + torch.diag(bias_var)


def pushed(link: Link, cov: Tensor) -> Tensor:
    """Covariance after the Jacobian J of a link, J C J'.

    Args:
        link: The link.
        cov: Covariance C of the parent, (B, n, n).
    """
    shape = link.parent.loc.shape[1:]
    half = rows_of(link.push(rows_of(cov, shape)))
    return rows_of(link.push(rows_of(half.mT, shape)))


def _apply_to_rows(op: LinearOp, rows: Tensor, weight: Tensor) -> Tensor:
    return op(rows.flatten(0, 1), weight, None).unflatten(0, rows.shape[:2])


def _added_covariance(
    op: LinearOp, x: Moments, weight_var: Tensor | None, bias_var: Tensor | None, added_var: Tensor
) -> Tensor:
    """The covariance that weights and bias add: a weight used at several positions makes outputs there correlated."""
    positions = op.applications(added_var)
    if positions == 1:
        return torch.diag_embed(per_example(added_var))
    outs = added_var.shape[1] if op.spatial else added_var.shape[-1]
    count = len(added_var)
    total = added_var.new_zeros(count, outs, positions, positions)
    if bias_var is not None:
        total = total + bias_var.reshape(1, -1, 1, 1)
    if weight_var is not None:
        flat = per_example(x.loc)
        second = F.pad(x.covariance() + flat.unsqueeze(2) * flat.unsqueeze(1), (1, 0, 1, 0))
        for index, variances in zip(_patches(op, x.loc), weight_var.flatten(1).T, strict=True):
            total = total + variances.reshape(1, -1, 1, 1) * second[:, index][:, :, index].unsqueeze(1)
    full = torch.diag_embed(total.movedim(1, -1), dim1=1, dim2=3)  # (B, out, position, out, position)
    if not op.spatial:
        full = full.permute(0, 2, 1, 4, 3)
    return full.reshape(count, outs * positions, outs * positions)


def _patches(op: LinearOp, x: Tensor) -> Tensor:
    """For each weight of an output, the input entry that it multiplies at each position, from 1; 0 for padding."""
    index = entries_of(x)
    if op.spatial == 0:
        return index.reshape(-1, x.shape[-1]).T.round().long()
    rest = op.rest
    if op.func is not torch.conv2d or rest.get("groups", 1) != 1 or isinstance(rest.get("padding", 0), str):
        raise ValueError(
            f"moments: no rule for a full covariance with random weights in {op.func.__name__}: expected a linear "
            "layer, or conv2d with one group and padding given as numbers; use 'moments', which carries variances only"
        )
    settings = {name: rest.get(name, default) for name, default in (("dilation", 1), ("padding", 0), ("stride", 1))}
    return F.unfold(index, op.weight.shape[2:], **settings)[0].round().long()


@rule(F.linear, torch.conv1d, torch.conv2d, torch.conv3d)
@rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def _fixed(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Moments:
    op: Any = bind(func, args, kwargs)
    return propagate_linear(op, None, None, op.input.settings)


def affine(x: Moments, loc: Tensor, var: Tensor, push: Callable[[Tensor], Tensor]) -> Moments:
    """Moments after a fixed linear operation.

    Args:
        x: The moments.
        loc: Mean of the result.
        var: Variance of the result for uncorrelated entries of `x`; not used with a full covariance.
        push: The linear map, applied to rows: `(B, r, *in) -> (B, r, *out)`.
    """
    link = Link(x, push)
    if x.cov is None:
        return Moments(loc, var, None, x.settings, (link,))
    cov = pushed(link, x.cov)
    return Moments(loc, cov.diagonal(dim1=1, dim2=2).reshape(loc.shape), cov, x.settings, (link,))


def scaled(x: Moments, loc: Tensor, gain: Tensor | float) -> Moments:
    """Moments after each entry is multiplied by a number and shifted.

    Args:
        x: The moments.
        loc: Mean of the result, which includes the shift.
        gain: The factors, broadcast to the shape of `x`.

    Raises:
        ValueError: The result is larger than `x`.
    """
    factor = torch.as_tensor(gain, dtype=x.loc.dtype, device=x.loc.device).expand(loc.shape)
    if loc.shape != x.loc.shape:
        raise ValueError(
            f"moments: expected an operand that broadcasts to {tuple(x.loc.shape)}, got a result of {tuple(loc.shape)}"
        )
    flat = per_example(factor)
    cov = None if x.cov is None else x.cov * flat.unsqueeze(1) * flat.unsqueeze(2)
    input_covariance = x.lazy_covariance

    def lazy_covariance() -> Tensor:
        return input_covariance() * flat.unsqueeze(1) * flat.unsqueeze(2)  # type: ignore[misc]

    link = Link(x, lambda rows: rows * factor.unsqueeze(1), lambda: factor)
    lazy = None if input_covariance is None else lazy_covariance
    return Moments(loc, x.var * factor.square(), cov, x.settings, (link,), lazy)


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
    """In training the batch statistics are mean and variance of the mixture of the examples' distributions."""
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
    r"""An approximation: the normalizing factor $f$ of an example is computed from the mean of its sample variance.

    Variances and covariances are propagated to first order: with the normalized means $z$ the Jacobian is
    $f (I - 1/n - z z^\top / n)$.
    """
    x, axes = input, tuple(range(-len(normalized_shape), 0))
    count = math.prod(normalized_shape)
    center = x.loc.mean(axes, keepdim=True)
    # Mean of the sample variance: sample variance of the means plus (1 - 1/n) times the average variance.
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
        z_rows = z.unsqueeze(1)
        return (rows - average(rows) - z_rows * average(rows * z_rows)) * gain.unsqueeze(1)

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
        raise ValueError(
            "moments: the first axis counts examples, and a mean or sum over examples has no rule; reduce other axes"
        )
    reduced_axes = sorted(axes)
    count = math.prod(x.loc.shape[axis] for axis in reduced_axes)
    mean = func in (torch.mean, Tensor.mean)

    def reduced(values: Tensor, skip: int = 0) -> Tensor:
        return func(values, [axis + skip for axis in reduced_axes], keepdim, dtype=dtype)

    return affine(x, reduced(x.loc), reduced(x.var) / (count if mean else 1), lambda rows: reduced(rows, 1))

"""Rules of pooling: averages are exact, maxima of a window are taken pair by pair with Clark's formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrostoch.moments.affine import affine, pushed
from pyrostoch.moments.bivariate import normal_parts
from pyrostoch.moments.gaussian import Link, Moments, entries_of, per_example
from pyrostoch.moments.table import rule
from pyrostoch.moments.units import root

__all__ = ["maximum", "tournament"]


def maximum(loc: tuple[Tensor, Tensor], var: tuple[Tensor, Tensor], cov: Tensor | float) -> tuple[Tensor, ...]:
    r"""Mean and variance of the larger of two Gaussian variables, and the probability that it is the first.

    With $\theta^2$ the variance of the difference, $\alpha = (m_1 - m_2) / \theta$ and $G(x) = x \Phi(x) + \varphi(x)$,

    $$ E = m_2 + \theta\,G(\alpha), \qquad
    \mathrm{Var} = v_2 + 2 (c - v_2) \Phi(\alpha) + \theta^2 (\Phi(\alpha) - G(\alpha) G(-\alpha)). $$

    Args:
        loc: The two means.
        var: The two variances.
        cov: Their covariance.

    Example:
        >>> zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> [round(value.item(), 6) for value in maximum((zero, zero), (one, one), 0.0)]
        [0.56419, 0.68169, 0.5]

    References:
        Clark, "The greatest of a finite set of random variables", 1961.
    """
    spread = (var[0] + var[1] - 2.0 * cov).clamp_min(0.0)
    theta = root(spread)
    alpha = (loc[0] - loc[1]) / theta
    first, over, under = normal_parts(alpha)
    variance = var[1] + 2.0 * (cov - var[1]) * first + spread * (first - over * under)
    return loc[1] + theta * over, variance.clamp_min(0.0), first


def tournament(loc: Tensor, var: Tensor, cov: Tensor | None = None) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Mean and variance of the largest of k Gaussian variables, by rounds of pairwise maxima taken as Gaussian.

    Args:
        loc: Means, (..., k).
        var: Variances, (..., k).
        cov: Covariances, (..., k, k); without them the variables are independent.

    Returns:
        Mean and variance of the largest, (...), and a function that returns weights (..., k) with sum 1: the covariance
        of the largest with any other variable is the weighted sum of those of the k variables.
    """
    rounds: list[Tensor] = []
    while loc.shape[-1] > 1:
        pairs, count = loc.shape[-1] // 2, loc.shape[-1]
        one, other = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        between: Tensor | float = 0.0
        if cov is not None:
            between = cov[..., one, other].diagonal(dim1=-2, dim2=-1)
        mean, variance, first = maximum((loc[..., one], loc[..., other]), (var[..., one], var[..., other]), between)
        rounds.append(first)
        if cov is not None:
            row_weight = first.unsqueeze(-1)
            rows = row_weight * cov[..., one, :] + (1.0 - row_weight) * cov[..., other, :]
            rows = torch.cat([rows, cov[..., 2 * pairs :, :]], dim=-2)
            column_weight = first.unsqueeze(-2)
            columns = column_weight * rows[..., one] + (1.0 - column_weight) * rows[..., other]
            cov = torch.cat([columns, rows[..., 2 * pairs :]], dim=-1)
        if count % 2:
            mean, variance = torch.cat([mean, loc[..., -1:]], dim=-1), torch.cat([variance, var[..., -1:]], dim=-1)
        loc, var = mean, variance
        if cov is not None:
            cov = torch.diagonal_scatter(cov, var, dim1=-2, dim2=-1)
    return loc[..., 0], var[..., 0], lambda: _weights(rounds, torch.ones_like(loc))


def _weights(rounds: list[Tensor], weights: Tensor) -> Tensor:
    """The weights of all variables, from the probabilities in each round that the first of a pair is the larger."""
    for first in reversed(rounds):
        pairs = first.shape[-1]
        both = torch.stack([first, 1.0 - first], dim=-1) * weights[..., :pairs].unsqueeze(-1)
        weights = torch.cat([both.flatten(-2), weights[..., pairs:]], dim=-1)
    return weights


def _per_axis(value: Any, count: int) -> tuple[int, ...]:
    """A setting of pooling for each of the spatial axes."""
    return (value,) * count if isinstance(value, int) else tuple(value) * (count if len(value) == 1 else 1)


@rule(F.max_pool1d, torch.max_pool1d, F.max_pool2d, torch.max_pool2d)
def _max_pool(
    func: Callable[..., Any],
    input: Moments,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Moments:
    count = 1 if func in (F.max_pool1d, torch.max_pool1d) else 2
    if ceil_mode or return_indices or set(_per_axis(dilation, count)) != {1} or input.loc.dim() != count + 2:
        raise ValueError(
            "moments: max pooling has a rule for 1 or 2 spatial axes behind batch and channels, without dilation, "
            "ceil_mode or indices"
        )
    size, pad = _per_axis(kernel_size, count), _per_axis(padding, count)
    step = _per_axis(stride, count) if stride else size

    def windows(values: Tensor, fill: float) -> Tensor:
        """The k values of each window: (..., *space) to (..., *positions, k)."""
        if any(pad):
            values = F.pad(values, [side for width in reversed(pad) for side in (width, width)], value=fill)
        ends = [size_ - width for size_, width in zip(values.shape[-count:], size, strict=True)]
        # In memory one place of all windows lies after the other, so that pairs of places are contiguous.
        parts = []
        for place in itertools.product(*map(range, size)):
            # Slices and no other views, which a runtime without strides would make copies of.
            rows: Any = (slice(i, i + end + 1, by) for i, end, by in zip(place, ends, step, strict=True))
            parts.append(values[(..., *rows)])
        last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
        if last and not values.is_contiguous():
            return torch.stack([part.permute(0, 2, 3, 1) for part in parts]).permute(1, 4, 2, 3, 0)
        return torch.stack(parts).movedim(0, -1)

    locs = windows(input.loc, 0.0)
    if any(pad):
        # Padding never is the maximum: its mean is twelve standard deviations below the smallest mean.
        low = input.loc.detach().amin() - 12.0 * input.var.detach().amax().sqrt() - 1e-6
        locs = torch.where(windows(torch.ones_like(input.loc[:1]), 0.0) > 0.5, locs, low)
    window_cov = None
    if input.cov is not None:
        index = windows(entries_of(input.loc), 0.0)[0].round().long()
        padded = F.pad(input.cov, (1, 0, 1, 0))
        window_cov = padded[:, index.unsqueeze(-1), index.unsqueeze(-2)]
    loc, var, weights = tournament(locs, windows(input.var, 0.0), window_cov)

    def push(rows: Tensor) -> Tensor:
        return (windows(rows, 0.0) * weights().unsqueeze(1)).sum(-1)

    link = Link(input, push)
    cov = None
    if input.cov is not None:
        cov = torch.diagonal_scatter(pushed(link, input.cov), per_example(var), dim1=1, dim2=2)
    return Moments(loc, var, cov, input.settings, (link,))


@rule(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def _avg_pool(
    func: Callable[..., Any],
    input: Moments,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Moments:
    if ceil_mode or divisor_override is not None:
        raise ValueError("moments: average pooling has no rule with ceil_mode or divisor_override")
    count = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}[func]
    size = math.prod(_per_axis(kernel_size, count))

    def pooled(values: Tensor) -> Tensor:
        return func(values, kernel_size, stride, padding, False, count_include_pad)

    def push(rows: Tensor) -> Tensor:
        return pooled(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

    # The variance of an average of n entries is their average variance over n; n is smaller where padding is left out.
    inside = func(torch.ones_like(input.loc[:1]), kernel_size, stride, padding, False, True)
    divisor = size if count_include_pad else inside * size
    return affine(input, pooled(input.loc), pooled(input.var) / divisor, push)


@rule(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
def _adaptive_avg_pool(func: Callable[..., Any], input: Moments, output_size: Any) -> Moments:
    loc = func(input.loc, output_size)
    count = loc.dim() - 2
    sizes = list(zip(input.loc.shape[-count:], loc.shape[-count:], strict=True))
    if any(before % after for before, after in sizes):
        raise ValueError(
            f"moments: adaptive average pooling has a rule only where each output size divides the input size, got "
            f"(input, output) sizes {sizes}"
        )
    divisor = math.prod(before // after for before, after in sizes)

    def push(rows: Tensor) -> Tensor:
        return func(rows.flatten(0, 1), output_size).unflatten(0, rows.shape[:2])

    return affine(input, loc, func(input.var, output_size) / divisor, push)

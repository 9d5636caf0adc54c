"""A network's inputs: how many examples they are, parts of them, and moving them to a device.

`in_dims` has the meaning that it has in `torch.vmap`: for each input the axis of the examples, or `None` where an input
belongs to all of them, such as the edges of a graph. One number stands for all inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from pyrostoch.protocols import InDims, Inputs

__all__ = [
    "check_in_dims",
    "count_examples",
    "device_of_inputs",
    "example_axes",
    "explain_dtypes",
    "take_examples",
    "to_device",
]


def check_in_dims(in_dims: InDims) -> InDims:
    """Return `in_dims` if it is a whole number, or a tuple of whole numbers and `None`; else raise a `TypeError`."""
    entries = in_dims if isinstance(in_dims, tuple) else (in_dims,)
    if not entries or any(entry is not None and type(entry) is not int for entry in entries):
        raise TypeError(
            f"in_dims: expected the axis that counts the examples, or a tuple with one entry for each input, None for "
            f"an input that belongs to all examples, got {in_dims!r}"
        )
    return in_dims


def example_axes(x: object, in_dims: InDims = 0) -> tuple[int | None, ...]:
    """The axis of each input that counts the examples, from 0 up; `None` for an input that belongs to all of them.

    Args:
        x: A tensor, or a tuple or list of tensors.
        in_dims: Their declaration.

    Raises:
        TypeError: An input that has such an axis by its declaration is no tensor, or has no axes.
        ValueError: There are not as many inputs as entries of `in_dims`, or an input lacks the axis.

    Example:
        >>> example_axes((torch.zeros(5, 2), torch.zeros(2, 9)), (0, None)), example_axes(torch.zeros(7, 5), -1)
        ((0, None), (1,))
    """
    parts = x if isinstance(x, (tuple, list)) else (x,)
    dims: Sequence[int | None] = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(parts)
    if len(dims) != len(parts):
        raise ValueError(f"inputs: expected {len(dims)}, as many as entries of in_dims={in_dims}, got {len(parts)}")
    # One number stands for all tensors among the inputs; an option such as a flag belongs to all examples.
    options = isinstance(in_dims, int) and any(isinstance(part, Tensor) for part in parts)
    axes: list[int | None] = []
    for part, dim in zip(parts, dims, strict=True):
        if dim is None or (options and not isinstance(part, Tensor)):
            axes.append(None)
            continue
        if not isinstance(part, Tensor) or part.dim() == 0:
            which = "first axis" if dim == 0 else f"axis {dim}"
            raise TypeError(
                f"inputs: expected a tensor (or a tuple of tensors) whose {which} counts the examples, got "
                f"{type(part).__name__}" + (" without axes" if isinstance(part, Tensor) else "")
            )
        if not -part.dim() <= dim < part.dim():
            raise ValueError(f"inputs: axis {dim} of in_dims={in_dims} does not exist in shape {tuple(part.shape)}")
        axes.append(dim % part.dim())
    return tuple(axes)


def count_examples(x: object, in_dims: InDims = 0) -> int | None:
    """Number of examples in a tensor or in a tuple of tensors; `None` where no input has an axis of examples.

    Args:
        x: A tensor, or a tuple or list of tensors.
        in_dims: The axis of each that counts the examples.

    Raises:
        TypeError: As in `example_axes`.
        ValueError: As in `example_axes`; or the inputs differ in their number of examples.

    Example:
        >>> count_examples((torch.zeros(5, 2), torch.zeros(2, 9)), (0, None))
        5
    """
    axes = example_axes(x, in_dims)
    parts = x if isinstance(x, (tuple, list)) else (x,)
    counts = [part.shape[axis] for part, axis in zip(parts, axes, strict=True) if axis is not None]
    if len(set(counts)) > 1:
        raise ValueError(
            f"inputs x: expected as many examples in each input, got {counts}; where an input belongs to all examples "
            "(the edges of a graph), say so to the model: BayesianModel(..., in_dims=(0, None))"
        )
    return counts[0] if counts else None


@overload
def take_examples(x: Tensor, rows: slice | Tensor, in_dims: InDims = 0) -> Tensor: ...


@overload
def take_examples(x: tuple[Tensor, ...], rows: slice | Tensor, in_dims: InDims = 0) -> tuple[Tensor, ...]: ...


def take_examples(x: Inputs, rows: slice | Tensor, in_dims: InDims = 0) -> Inputs:
    """Some of the examples; an input that belongs to all of them is returned as it is.

    Args:
        x: A tensor, or a tuple of tensors.
        rows: A slice, which gives views, or the indices of the examples.
        in_dims: The axis of each input that counts the examples.

    Example:
        >>> x = (torch.arange(3), torch.zeros(2, 9))
        >>> [part.shape for part in take_examples(x, slice(2), (0, None))]
        [torch.Size([2]), torch.Size([2, 9])]
    """
    parts = x if isinstance(x, tuple) else (x,)
    taken = tuple(
        part if axis is None else _take(part, rows, axis)
        for part, axis in zip(parts, example_axes(x, in_dims), strict=True)
    )
    return taken if isinstance(x, tuple) else taken[0]


def _take(part: Tensor, rows: slice | Tensor, axis: int) -> Tensor:
    if isinstance(rows, slice):
        return part[(slice(None),) * axis + (rows,)]
    return torch.index_select(part, axis, rows.to(part.device)) if axis else part[rows.to(part.device)]


def device_of_inputs(x: Inputs) -> torch.device:
    """The device of the first tensor among the inputs; options such as flags have none.

    Args:
        x: A tensor, or a tuple of inputs.

    Raises:
        TypeError: There is no tensor among them.
    """
    for part in x if isinstance(x, (tuple, list)) else (x,):
        if isinstance(part, Tensor):
            return part.device
    raise TypeError("inputs x: expected at least one tensor among them, got none")


@overload
def to_device(x: Tensor, device: torch.device) -> Tensor: ...


@overload
def to_device(x: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]: ...


def to_device(x: Inputs, device: torch.device) -> Inputs:
    """Move a tensor, or a tuple of tensors, to a device.

    Args:
        x: The tensor or tensors.
        device: The device.
    """
    if isinstance(x, tuple):
        # An option among the inputs, such as a flag, is no tensor.
        return tuple(part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in x)
    return x.to(device, non_blocking=True)


def explain_dtypes(error: RuntimeError, net: nn.Module, inputs: tuple[Any, ...]) -> ValueError | None:
    """An error that says how to convert inputs of another dtype than the weights, if that may be what torch's means.

    Args:
        error: The error of torch.
        net: The network.
        inputs: Its inputs.
    """
    wanted = {p.dtype for p in net.parameters() if p.is_floating_point()}
    given = {t.dtype for t in inputs if isinstance(t, Tensor)}
    if not ("dtype" in str(error) or "type" in str(error)) or not wanted or not given or wanted == given:
        return None
    real = all(dtype.is_floating_point for dtype in given)
    alternative = f" or model and guide (.to({_dtypes(given)}))" if real else ""
    return ValueError(
        f"inputs x are {_dtypes(given)}, the network's weights are {_dtypes(wanted)}: convert the inputs "
        f"(x.to({_dtypes(wanted)})){alternative}"
    )


def _dtypes(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(map(str, dtypes)))

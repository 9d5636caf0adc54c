"""A network's inputs: how many examples they are, parts of them, and moving them to a device.

`in_dims` has the meaning that it has in `torch.vmap`: for each input the axis of the examples, or `None` where an input
belongs to all of them, such as the edges of a graph. One number stands for all inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrostoch._structure import Structure
from pyrostoch._targets import Target
from pyrostoch.protocols import FlatInputs, InDims

__all__ = [
    "check_in_dims",
    "count_examples",
    "device_of_inputs",
    "example_axes",
    "explain_dtypes",
    "flat_dims",
    "have_common_part",
    "take_examples",
    "to_device",
]


def check_in_dims(in_dims: InDims) -> InDims:
    """Return `in_dims` if it is a whole number or `None`, or tuples and dictionaries of these; else raise an error.

    Args:
        in_dims: What a user gave.

    Raises:
        TypeError: It is something else.
    """
    if not _are_axes(in_dims):
        raise TypeError(
            f"in_dims: expected the axis that counts the examples, or a tuple with one entry for each input, None for "
            f"an input that belongs to all examples, or a dictionary of these, got {in_dims!r}"
        )
    return in_dims


def _are_axes(in_dims: object) -> bool:
    if isinstance(in_dims, (tuple, Mapping)):
        entries = list(in_dims.values() if isinstance(in_dims, Mapping) else in_dims)
        return bool(entries) and all(map(_are_axes, entries))
    return in_dims is None or type(in_dims) is int


def example_axes(x: object, in_dims: InDims = 0) -> tuple[int | None, ...]:
    """The axis of each input that counts the examples, from 0 up; `None` for an input that belongs to all of them.

    Args:
        x: A tensor, or a tuple or list of tensors, flat as `flat_inputs` makes it.
        in_dims: Their declaration.

    Raises:
        TypeError: An input that has such an axis by its declaration is no tensor, or has no axes.
        ValueError: There are not as many inputs as entries of `in_dims`, or an input lacks the axis.

    Example:
        >>> example_axes((torch.zeros(5, 2), torch.zeros(2, 9)), (0, None)), example_axes(torch.zeros(7, 5), -1)
        ((0, None), (1,))
    """
    parts = x if isinstance(x, (tuple, list)) else (x,)
    structure = parts[-1] if parts and isinstance(parts[-1], Structure) else None
    if structure is None and isinstance(in_dims, Mapping):
        raise ValueError(f"in_dims={in_dims} has keys: expected a dictionary of inputs, got {type(x).__name__}")
    dims: Sequence[Any]
    if structure is not None and not isinstance(in_dims, _FlatDims):
        dims = (*structure.axes(in_dims), None)
    else:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(parts)
    if len(dims) != len(parts):
        raise ValueError(f"inputs: expected {len(dims)}, as many as entries of in_dims={in_dims}, got {len(parts)}")
    # One number stands for all tensors among the inputs; an option such as a flag belongs to all examples.
    options = structure is not None or any(isinstance(part, PackedSequence) for part in parts)
    options = options or (isinstance(in_dims, int) and any(isinstance(part, Tensor) for part in parts))
    axes: list[int | None] = []
    for index, (part, dim) in enumerate(zip(parts, dims, strict=True)):
        if dim is None or (options and not isinstance(part, Tensor)):
            axes.append(None)
            continue
        if not isinstance(part, Tensor) or part.dim() == 0:
            which = "first axis" if dim == 0 else f"axis {dim}"
            where = "" if structure is None else structure.names[index]
            raise TypeError(
                f"inputs{where}: expected a tensor (or a tuple of tensors) whose {which} counts the examples, got "
                f"{type(part).__name__}" + (" without axes" if isinstance(part, Tensor) else "") + _hint_of(where)
            )
        if not -part.dim() <= dim < part.dim():
            raise ValueError(f"inputs: axis {dim} of in_dims={in_dims} does not exist in shape {tuple(part.shape)}")
        if part.layout not in (torch.strided, torch.sparse_coo):
            raise TypeError(
                f"inputs: a tensor of layout {part.layout} cannot be cut into batches; give x.to_sparse_coo(), or "
                "declare that it belongs to all examples by in_dims"
            )
        axes.append(dim % part.dim())
    return tuple(axes)


def have_common_part(x: object, in_dims: InDims = 0) -> bool:
    """Whether a part of the inputs belongs to all examples and may hold data: a tensor, or an object of some class.

    Args:
        x: A tensor, or a tuple or list of inputs.
        in_dims: The axis of each that counts the examples.

    Example:
        >>> have_common_part((torch.zeros(5, 2), torch.zeros(9)), (0, None)), have_common_part((torch.zeros(5), None))
        (True, False)
    """
    parts = x if isinstance(x, (tuple, list)) else (x,)
    without = [part for part, axis in zip(parts, example_axes(x, in_dims), strict=True) if axis is None]
    return any(part is not None and type(part) not in (bool, int, float, str, Structure) for part in without)


class _FlatDims(tuple[int | None, ...]):
    """A declaration that has an entry for each part of flat inputs."""


def flat_dims(inputs: tuple[Any, ...], in_dims: InDims) -> InDims:
    """A declaration with an entry for each part of flat inputs, or 0.

    Args:
        inputs: The parts.
        in_dims: The user's declaration.

    Example:
        >>> flat_dims((torch.zeros(2, 3), torch.zeros(4)), None)
        (None, None)
    """
    if isinstance(in_dims, int) and in_dims == 0:
        return 0
    if inputs and isinstance(inputs[-1], Structure):
        return _FlatDims(example_axes(inputs, in_dims))
    return in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(inputs)


def _hint_of(where: str) -> str:
    """What to do about an input that belongs to all examples, by its name."""
    return f"; if it belongs to all examples, say so to the model: in_dims={{{where[1:-1]}: None}}" if where else ""


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
    counts: list[Any] = [size for size in _sizes(parts, axes) if size is not None]
    if any(count != counts[0] for count in counts):
        if isinstance(parts[-1], Structure):
            sizes = {name: n for name, n in zip(parts[-1].names, _sizes(parts, axes), strict=False) if n is not None}
            counts = [f"{n} in x{name}" for name, n in sizes.items()]
        raise ValueError(
            f"inputs x: expected as many examples in each input, got {', '.join(map(str, counts))}; where an input "
            "belongs to all examples (the edges of a graph), say so to the model: BayesianModel(..., in_dims=(0, "
            "None)), or a dictionary by name"
        )
    return counts[0] if counts else None


def _sizes(parts: Sequence[Any], axes: Sequence[int | None]) -> list[int | None]:
    return [None if axis is None else part.shape[axis] for part, axis in zip(parts, axes, strict=True)]


@overload
def take_examples(x: Tensor, rows: slice | Tensor, in_dims: InDims = 0) -> Tensor: ...


@overload
def take_examples(x: tuple[Tensor, ...], rows: slice | Tensor, in_dims: InDims = 0) -> tuple[Tensor, ...]: ...


def take_examples(x: FlatInputs, rows: slice | Tensor, in_dims: InDims = 0) -> FlatInputs:
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
    if part.layout is torch.sparse_coo:  # which can be indexed, but not sliced
        whole = torch.arange(part.shape[axis], device=part.device)
        return torch.index_select(part, axis, whole[rows] if isinstance(rows, slice) else rows.to(part.device))
    if isinstance(rows, slice):
        return part[(slice(None),) * axis + (rows,)]
    return torch.index_select(part, axis, rows.to(part.device)) if axis else part[rows.to(part.device)]


def device_of_inputs(x: FlatInputs) -> torch.device:
    """The device of the first tensor among the inputs; options such as flags have none.

    Args:
        x: A tensor, or a tuple of inputs.

    Raises:
        TypeError: There is no tensor among them.
    """
    for part in x if isinstance(x, (tuple, list)) else (x,):
        if isinstance(part, (Tensor, PackedSequence)):
            return part.data.device
    kinds = [type(part).__name__ for part in (x if isinstance(x, tuple) else (x,)) if not isinstance(part, Structure)]
    raise TypeError(f"inputs x: expected at least one tensor among them, got {', '.join(kinds) or 'none'}")


@overload
def to_device(x: Tensor, device: torch.device) -> Tensor: ...


@overload
def to_device(x: Target, device: torch.device) -> Target: ...


@overload
def to_device(x: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]: ...


def to_device(x: FlatInputs | Target, device: torch.device) -> FlatInputs | Target:
    """Move a tensor, a tuple of tensors, or targets to a device.

    Args:
        x: The tensor or tensors.
        device: The device.
    """
    if isinstance(x, tuple):
        return tuple(_moved(part, device) for part in x)
    return _moved(x, device)


def _moved(part: Any, device: torch.device) -> Any:
    """A part on a device; an option among the inputs, such as a flag, is no tensor."""
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    return part.to(device) if callable(getattr(part, "to", None)) else part  # a PackedSequence, or a user's own


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

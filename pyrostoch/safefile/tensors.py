"""Which tensors a checkpoint can hold; a sparse one is stored as its parts, since safetensors has only dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["SPARSE", "check_layouts", "check_storable", "join_sparse", "split_sparse"]

#: Names of the sparse layouts, and of the two index tensors of each that is compressed along one axis.
SPARSE: dict[str, tuple[str, ...]] = {
    "sparse_coo": ("indices",),
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}


def check_layouts(tensors: Mapping[str, Tensor]) -> None:
    """Raise an error for a tensor that cannot be copied and put back exactly: it is named.

    Args:
        tensors: Tensors by name.

    Raises:
        TypeError: A tensor is nested, quantized, expanded, without data, or has another unusual layout.

    Example:
        >>> check_layouts({"a": torch.eye(2).to_sparse(), "b": torch.zeros(1).expand(3)})
        Traceback (most recent call last):
        ...
        TypeError: b: expected a dense or sparse tensor with memory of its own for each entry, got one that is \
expanded; it can be neither saved nor rolled back. Register it as a plain tensor
    """
    for name, value in tensors.items():
        kind = _layout(value)
        if value.is_nested:
            problem = "nested"
        elif value.is_meta:
            problem = "without data (device meta)"
        elif value.is_quantized:
            problem = "quantized"
        elif kind != "strided" and kind not in SPARSE:
            problem = f"of layout {kind}"
        elif kind == "strided" and any(
            not step and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)
        ):
            problem = "expanded"
        else:
            continue
        raise TypeError(
            f"{name}: expected a dense or sparse tensor with memory of its own for each entry, got one that is "
            f"{problem}; it can be neither saved nor rolled back. Register it as a plain tensor"
        )


def check_storable(tensors: Mapping[str, Tensor]) -> None:
    """Raise an error for a tensor that a checkpoint cannot hold: it is named.

    Args:
        tensors: Tensors by name.

    Raises:
        TypeError: Its layout or its dtype cannot be stored.

    Example:
        >>> check_storable({"a": torch.zeros(1, dtype=torch.complex128)})
        Traceback (most recent call last):
        ...
        TypeError: a: a checkpoint cannot hold the dtype torch.complex128; register it as another dtype
    """
    check_layouts(tensors)
    storable: dict[torch.dtype, bool] = {}
    for name, value in tensors.items():
        dtype = value.dtype
        if dtype not in storable:
            try:
                storable[dtype] = load(save({"x": torch.empty(0, dtype=dtype)}))["x"].dtype == dtype
            except (KeyError, ValueError, SafetensorError):
                storable[dtype] = False
        if not storable[dtype]:
            raise TypeError(f"{name}: a checkpoint cannot hold the dtype {dtype}; register it as another dtype")


def split_sparse(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Replace sparse tensors by their parts.

    Args:
        tensors: Tensors by name.

    Returns:
        Dense tensors by name, those of parts as `<name>:<part>`; and the description of each sparse tensor.

    Example:
        >>> dense, described = split_sparse({"a": torch.eye(2).to_sparse()})
        >>> list(dense), described["a"]["layout"]
        (['a:indices', 'a:values'], 'sparse_coo')
    """
    dense: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        parts, kind = {name: value}, _layout(value)
        if kind == "sparse_coo":
            # The methods without an underscore would refuse entries that are not coalesced.
            parts = {f"{name}:indices": value._indices(), f"{name}:values": value._values()}
            described[name] = {"layout": kind, "size": list(value.shape), "coalesced": value.is_coalesced()}
        elif kind in SPARSE:
            parts = {f"{name}:{part}": getattr(value, part)() for part in (*SPARSE[kind], "values")}
            described[name] = {"layout": kind, "size": list(value.shape)}
        if taken := parts.keys() & (dense.keys() | tensors.keys() - {name}):
            raise TypeError(f"{name}: another tensor is named {taken.pop()!r} like a part of it; rename one")
        dense |= parts
    return dense, described


def join_sparse(dense: Mapping[str, Tensor], described: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `split_sparse`; indices are checked, since torch would read outside of the memory by wrong ones.

    Args:
        dense: Dense tensors by name.
        described: Descriptions of the sparse tensors.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: The parts are not those of a sparse tensor.
    """
    tensors = dict(dense)
    for name, about in described.items():
        kind, size = about["layout"], about["size"]
        if any(type(length) is not int or length < 0 for length in size):
            raise ValueError(f"the sparse tensor {name!r} has the size {size}")
        if name in tensors:
            raise ValueError(f"the tensor {name!r} is there twice, sparse and dense")
        indices = [tensors.pop(f"{name}:{part}") for part in SPARSE[kind]]
        values = tensors.pop(f"{name}:values")
        if kind == "sparse_coo":
            coalesced = about["coalesced"]
            if type(coalesced) is not bool:
                raise ValueError(f"the sparse tensor {name!r} is coalesced: {coalesced!r}")
            tensors[name] = torch.sparse_coo_tensor(
                indices[0], values, size, check_invariants=True, is_coalesced=coalesced
            )
        else:
            first, second = indices
            tensors[name] = torch.sparse_compressed_tensor(
                first, second, values, size, layout=getattr(torch, kind), check_invariants=True
            )
    return tensors


def _layout(value: Tensor) -> str:
    return str(value.layout).removeprefix("torch.")

"""How to run many draws through a network, and the sizes of its activations, on which that depends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrostoch._ops import bind
from pyrostoch.effects.trees import tensors_in
from pyrostoch.moments.table import moments_in

__all__ = ["SamplingPlan", "SizeRecorder", "bytes_per_example", "is_out_of_memory", "tensor_bytes"]


@dataclass
class SamplingPlan:
    """How to run the draws of a prediction through a network.

    Args:
        vectorized: Whether several draws run through the network at a time, by `torch.vmap`.
        sampled_sites: Sites whose values are drawn before the network runs, anew for each draw.
        replaces_sites: Whether other sites are replaced by their distributions.
        ties_sites: Whether sites that are replaced share numbers with some that are drawn.
        channels_last: Whether images are given to the network in the memory format `torch.channels_last`.
        shared_bytes: Bytes per example of the largest activation that is the same for all draws.
        draw_bytes: Bytes per example and draw of the largest activation that differs between draws.
        weight_bytes: Bytes of the values of `sampled_sites` for one draw.
    """

    vectorized: bool = False
    sampled_sites: tuple[str, ...] = ()
    replaces_sites: bool = False
    ties_sites: bool = False
    channels_last: bool = False
    shared_bytes: int = 0
    draw_bytes: int = 0
    weight_bytes: int = 0


class SizeRecorder(TorchFunctionMode):
    """Records the size of every tensor that torch's functions return, and whether it differs between draws.

    Within `torch.vmap` over draws, a tensor that depends on the draw has one value for each of them.

    Attributes:
        shared: Bytes of each result that is the same for all draws, in order of execution; 0 for the others.
        per_draw: Bytes for one draw of each result that differs between draws, in the same order; 0 for the others.
        per_draw_kernels: Whether a convolution has another kernel for each draw.

    Example:
        >>> with SizeRecorder() as recorder:
        ...     _ = torch.vmap(lambda draw: draw + torch.zeros(4).exp())(torch.ones(3))
        >>> recorder.per_draw[-1], max(recorder.shared)
        (16, 16)
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared: list[int] = []
        self.per_draw: list[int] = []
        self.per_draw_kernels = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for moments in moments_in(result):
            self.shared.append(
                sum(tensor_bytes(part) for part in (moments.loc, moments.var, moments.cov) if part is not None)
            )
            self.per_draw.append(0)
        for tensor in tensors_in(result):
            size, differs = tensor_bytes(tensor), _differs_between_draws(tensor)
            self.shared.append(0 if differs else size)
            self.per_draw.append(size if differs else 0)
        op = bind(func, args, kwargs or {})
        if op is not None and op.spatial and _differs_between_draws(op.weight):
            self.per_draw_kernels = True
        return result


def _differs_between_draws(tensor: Tensor) -> bool:
    """Whether a tensor within `torch.vmap` has a value for each draw."""
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's entries.

    Args:
        tensor: The tensor; within `torch.vmap`, the bytes of one draw are counted.

    Example:
        >>> tensor_bytes(torch.zeros(3, 2))
        24
    """
    return tensor.numel() * tensor.element_size()


def bytes_per_example(sizes: list[int], sizes_of_more: list[int]) -> int:
    """Bytes that one more example adds to the result that grows most; weights, whose size is fixed, do not count.

    Args:
        sizes: Bytes of the results for some examples, in order of execution.
        sizes_of_more: Bytes of the same results for one example more, or for the same ones where there is a single
            example: the largest size is then returned.

    Example:
        >>> bytes_per_example([800, 16, 40], [800, 24, 60])
        20
    """
    if sizes == sizes_of_more or len(sizes) != len(sizes_of_more):
        return max(sizes_of_more, default=0)
    return max(more - some for some, more in zip(sizes, sizes_of_more, strict=True))


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or a CPU.

    Args:
        error: The exception that was raised.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError()), is_out_of_memory(ValueError("shape"))
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

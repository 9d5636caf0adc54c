"""What a look at few examples tells of how to run many: the sizes of activations, and where randomness begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrostoch._ops import bind
from pyrostoch.effects.usage import tensors_in
from pyrostoch.moments.table import moments_in

__all__ = ["Plan", "Watch", "growth", "size_of"]


@dataclass
class Plan:
    """How a network is run.

    Args:
        folded: Whether draws go through it side by side.
        shared: Sites of which each draw has a value of its own, before the network runs.
        replaces: Whether other sites are replaced by their distributions.
        channels_last: Whether images are laid out channel by channel.
        before: Bytes an example of the largest activation that no draw changes.
        after: Bytes an example and draw of the largest one that draws change.
        weights: Bytes of one draw of the shared sites.
    """

    folded: bool = False
    shared: tuple[str, ...] = ()
    replaces: bool = False
    channels_last: bool = False
    before: int = 0
    after: int = 0
    weights: int = 0


class Watch(TorchFunctionMode):
    """Notes the size of every tensor made, and whether kernels of convolutions differ between draws.

    Attributes:
        alike: Bytes of each result that no draw has a part in, in order; 0 for the others.
        apart: Bytes, for one draw, of each result that draws have a part in; 0 for the others.
        own_kernels: Whether a convolution has a kernel of each draw's own.

    Example:
        >>> with Watch() as watch:
        ...     _ = torch.vmap(lambda draw: draw + torch.zeros(4).exp())(torch.ones(3))
        >>> watch.apart[-1], max(watch.alike)
        (16, 16)
    """

    def __init__(self) -> None:
        super().__init__()
        self.alike: list[int] = []
        self.apart: list[int] = []
        self.own_kernels = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for moments in moments_in(result):
            self.alike.append(
                sum(size_of(part) for part in (moments.loc, moments.var, moments.cov) if part is not None)
            )
            self.apart.append(0)
        for tensor in tensors_in(result):
            size, apart = size_of(tensor), _differs(tensor)
            self.alike.append(0 if apart else size)
            self.apart.append(size if apart else 0)
        op = bind(func, args, kwargs or {})
        if op is not None and op.spatial and _differs(op.weight):
            self.own_kernels = True
        return result


def _differs(tensor: Tensor) -> bool:
    """Whether a tensor within `torch.vmap` stands for one a draw."""
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's entries.

    Args:
        tensor: The tensor; within `torch.vmap`, that of one draw.

    Example:
        >>> size_of(torch.zeros(3, 2))
        24
    """
    return tensor.numel() * tensor.element_size()


def growth(few: list[int], more: list[int]) -> int:
    """Bytes that the largest result grows by with each example; weights, which do not grow, do not count.

    Args:
        few: Sizes of the results, in order, for some examples.
        more: Those for one example more; or the same where there is only one.

    Example:
        >>> growth([800, 16, 40], [800, 24, 60])
        20
    """
    if few == more or len(few) != len(more):
        return max(more, default=0)
    return max(there - here for here, there in zip(few, more, strict=True))

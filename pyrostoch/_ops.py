"""The torch functions that are linear in a weight, and the names of their arguments.

Torch's layers, users' modules and functional calls all end in the same few functions. Binding their arguments by name
gives one description, `LinearOp`, that every interpretation works with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LinearOp", "bind"]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

# F.conv2d is torch.conv2d, so one entry serves a module, F.* and torch.*.
_ARGUMENTS: dict[Callable[..., Tensor], tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    torch.conv1d: _CONV,
    torch.conv2d: _CONV,
    torch.conv3d: _CONV,
    torch.conv_transpose1d: _CONV_TRANSPOSE,
    torch.conv_transpose2d: _CONV_TRANSPOSE,
    torch.conv_transpose3d: _CONV_TRANSPOSE,
}
_SPATIAL = {
    torch.conv1d: 1,
    torch.conv2d: 2,
    torch.conv3d: 3,
    torch.conv_transpose1d: 1,
    torch.conv_transpose2d: 2,
    torch.conv_transpose3d: 3,
}


@dataclass(frozen=True, eq=False)  # eq=False: torch.compile hashes the object before its fields are set
class LinearOp:
    """One call of a function that is linear in its weight and in its bias.

    Args:
        func: The torch function.
        input: Its input: `(batch, ..., in)` for `linear`, `(batch, in, *space)` or `(in, *space)` for a convolution.
        weight: The weight that was passed, not a copy: interpretations recognize it by identity.
        bias: The bias that was passed, or `None`.
        rest: The other arguments, by name.
    """

    func: Callable[..., Tensor]
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    rest: dict[str, Any]

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the same function, with the same stride, padding, groups, ..., to other operands."""
        return self.func(input, weight, bias, **self.rest)

    def of_squares(self, variance: Tensor, bias_variance: Tensor | None = None) -> Tensor:
        """The operation on squared inputs: the variance of its output for independent weights of some variances.

        Args:
            variance: Variances of the weight.
            bias_variance: Variances of the bias, if it is random.
        """
        if not _in_fp16(self.input):
            return self(self.input.square(), variance, bias_variance)
        # Squares of fp16 numbers overflow from 256 up and underflow below 2e-4.
        with torch.autocast(self.input.device.type, enabled=False):
            inputs, bias = self.input.float().square(), None if bias_variance is None else bias_variance.float()
            return self(inputs, variance.float(), bias)

    @property
    def spatial(self) -> int:
        """Number of spatial dimensions: 0 for a linear layer, 1 to 3 for a convolution."""
        return _SPATIAL.get(self.func, 0)

    def applications(self, output: Tensor) -> int:
        """How often one weight is applied to one row of the input.

        For a convolution, the number of output positions; for a linear layer, the product of the axes between the batch
        and the feature axis (tokens).

        Args:
            output: The call's output.
        """
        if self.spatial:
            return int(output.shape[-self.spatial :].numel())
        return int(output.shape[1:-1].numel())

    def folded(self, batch: int) -> int:
        """How many rows of the input belong to one example, where tokens or frames are folded into the batch.

        Args:
            batch: Number of examples of the network call.
        """
        return -(-self.input.shape[0] // max(batch, 1)) if self.batched() else 1

    def over_tokens(self, batch: int) -> bool:
        """Whether the weight is applied to several tokens or frames of one example, on their own axis or folded.

        Args:
            batch: Number of examples of the network call.
        """
        return self.folded(batch) > 1 or (self.spatial == 0 and self.input.shape[1:-1].numel() > 1)

    def batched(self) -> bool:
        """Whether the input has a leading batch axis."""
        return self.input.dim() > self.spatial + 1


def _in_fp16(values: Tensor) -> bool:
    kind = values.device.type
    return values.dtype == torch.float16 or (
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    )


def bind(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> LinearOp | None:
    """Describe a call of `func`, or return `None` where `func` is not linear in a weight.

    Args:
        func: The function that a `TorchFunctionMode` intercepted.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The bound call, or `None`.

    Example:
        >>> x, w = torch.ones(2, 3), torch.ones(4, 3)
        >>> bind(F.linear, (x,), {"weight": w}).weight is w
        True
        >>> bind(torch.add, (x, x), {}) is None
        True
    """
    names = _ARGUMENTS.get(func)
    if names is None:
        return None
    bound = dict(zip(names, args, strict=False))
    bound.update(kwargs)
    return LinearOp(func, bound.pop("input"), bound.pop("weight"), bound.pop("bias", None), bound)

"""Where a class that is selected at some places of a layer's input reaches the layer's output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch._seeds import forked
from pyrostoch.effects.repeatable import attributes_restored
from pyrostoch.layers.conditional.classes import parameters_of
from pyrostoch.layers.stochastic_additive import StochasticAdditive
from pyrostoch.layers.stochastic_kernels import StochasticLinear

__all__ = ["reach"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Sizes of the values that are tried; several, since an activation may be flat for some.
_SIZES = (1.0, 1.0, 0.1, 10.0)
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@torch.no_grad()
def reach(layer: nn.Module, selected: Tensor, shape: torch.Size, inputs: dict[str, Any]) -> Tensor:
    r"""Which outputs of a layer depend on inputs that are selected.

    A layer answers an input of zeros, too: with its biases, with the softplus of 0, with a recurrent network's own
    course. Outside of what this function returns such an answer belongs to no class.

    Convolutions and linear layers are known. Of other layers it is found by marking: what is selected becomes NaN, and
    so does every output that is computed from it. Where a layer holds torch's attention, or a convolution of
    somebody's own, whose masks multiply by 0, outputs that no other values of the selected inputs move are left out.

    Args:
        layer: The layer of one class.
        selected: Where its input is selected, (batch, \*input), boolean.
        shape: Shape of the output, (batch, \*output).
        inputs: What else the layer is called with.

    Returns:
        (batch, \*output), boolean.

    Example:
        >>> from pyrostoch.layers import StochasticConv1d
        >>> layer = StochasticConv1d(1, 1, 3, padding=1)
        >>> selected = torch.tensor([[[True, False, False, False]]])
        >>> reach(layer, selected, torch.Size([1, 1, 4]), {}).int().tolist()
        [[[1, 1, 0, 0]]]
    """
    kernel: Any = getattr(layer, "kernel", layer)
    if isinstance(layer, StochasticAdditive):
        return selected.expand(shape)
    if isinstance(layer, StochasticLinear) or type(layer) is nn.Linear:
        return selected.any(-1, keepdim=True).expand(shape)
    if type(kernel) in _CONVOLUTIONS and len(kernel.kernel_size) == selected.dim() - 2:
        return _of_convolution(kernel, selected, shape)
    found = _by_marking(layer, selected, inputs)
    if any(_may_mask(part) for part in layer.modules()):  # masks multiply by 0, which keeps NaN
        found = found & _by_trying(layer, selected, inputs)
    return found


def _may_mask(part: nn.Module) -> bool:
    convolution = isinstance(part, _CONVOLUTIONS) and type(part) not in _CONVOLUTIONS
    return convolution or isinstance(part, nn.MultiheadAttention)


def _of_convolution(kernel: Any, selected: Tensor, shape: torch.Size) -> Tensor:
    groups = kernel.groups
    given = selected.unflatten(1, (groups, -1)).any(2).to(kernel.weight.dtype)
    ones = torch.ones(groups, 1, *kernel.kernel_size, dtype=given.dtype, device=given.device)
    if kernel.transposed:
        convolve: Any = _TRANSPOSED[len(kernel.kernel_size)]
        found = convolve(
            given, ones, None, kernel.stride, kernel.padding, kernel.output_padding, groups, kernel.dilation
        )
    else:
        found = kernel._conv_forward(given, ones, None)  # with padding of the kernel's mode
    return (found > 0.5).repeat_interleave(shape[1] // groups, 1)


def _by_marking(layer: nn.Module, selected: Tensor, inputs: dict[str, Any]) -> Tensor:
    marked = _zeros(layer, selected).masked_fill_(selected, torch.nan)
    outputs = _outputs(layer, marked, inputs)
    found = torch.stack([torch.isnan(output).expand(outputs[0].shape) for output in outputs])
    return found.any(0)


def _by_trying(layer: nn.Module, selected: Tensor, inputs: dict[str, Any]) -> Tensor:
    zeros = _zeros(layer, selected)
    before = _outputs(layer, zeros, inputs)
    moved = torch.zeros(before[0].shape, dtype=torch.bool, device=selected.device)
    generator = torch.Generator().manual_seed(0)
    for size in _SIZES:
        noise = size * torch.randn(selected.shape, generator=generator).to(zeros)
        after = _outputs(layer, torch.where(selected, noise, zeros), inputs)
        for one, other in zip(before, after, strict=True):
            moved = moved | (one != other).expand(moved.shape)
    return moved


def _zeros(layer: nn.Module, selected: Tensor) -> Tensor:
    like = next((p for p in layer.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(selected.shape, dtype=like.dtype, device=selected.device)


def _outputs(layer: nn.Module, x: Tensor, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The layer's outputs in evaluation mode, with random numbers that every call repeats."""
    with (
        torch._C.DisableTorchFunction(),  # weights as they are: only what depends on what matters
        _plain_algorithms(),
        pyro.validation_enabled(False),
        attributes_restored(layer),
        forked(x.device, 0),
    ):
        for part in layer.modules():
            part.training = False
        return parameters_of(layer, x, inputs)


@contextlib.contextmanager
def _plain_algorithms() -> Iterator[None]:
    """Without fast algorithms of convolution, which spread NaN over whole tiles."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)

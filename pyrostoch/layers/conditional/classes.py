"""Runs the layers of several classes: each example through that of its own class, or all examples through several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch._manual import see
from pyrostoch.layers.partial import Partial
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.layers.stochastic_kernels import StochasticLinear
from pyrostoch.layers.stochastic_recurrent import StochasticGRU, StochasticLSTM

__all__ = ["batch_axis", "by_class", "by_label", "core_of", "parameters_of"]


def core_of(layer: nn.Module) -> StochasticLayer | None:
    """The part of a layer whose activations are drawn from the outputs of kernels; `None` for a deterministic layer.

    Args:
        layer: The layer of one class.
    """
    if isinstance(layer, (StochasticLSTM, StochasticGRU)):
        return layer.output if layer.sample == "output" else None
    return layer if isinstance(layer, StochasticLayer) else None


def batch_axis(layer: nn.Module) -> int:
    """The axis of a layer's input that counts the examples: the second one of torch's sequences by default.

    Args:
        layer: The layer of one class.

    Raises:
        ValueError: It holds a layer that has time first, and does not say itself which axis it has first.
    """
    if isinstance(layer, nn.TransformerEncoder):
        layer = layer.layers[0]
    inner = layer.self_attn if type(layer) is nn.TransformerEncoderLayer else layer
    if hasattr(inner, "batch_first"):
        return 0 if inner.batch_first else 1
    if any(getattr(part, "batch_first", True) is False for part in inner.modules()):
        raise ValueError(
            f"Conditional: {type(layer).__name__} holds a layer with batch_first=False, so that it is not known which "
            "axis of its input counts the examples; give it an attribute batch_first, True or False"
            f"{see('how-to/conditional_layers')}"
        )
    return 0


def parameters_of(layer: nn.Module, x: Tensor, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The outputs of a layer's kernels, or the activations of a deterministic layer; the first axis is the batch.

    Args:
        layer: The layer of one class.
        x: Its input; the first axis is the batch.
        inputs: What else it is called with.
    """
    ordered = x.transpose(0, 1) if batch_axis(layer) else x
    if isinstance(layer, (StochasticLSTM, StochasticGRU)) and layer.sample == "output":
        return layer.outputs(ordered, **inputs)
    if isinstance(layer, StochasticLayer):
        return layer.outputs(ordered, **inputs)
    found = layer(ordered, **inputs)
    found = found[0] if isinstance(found, tuple) else found  # recurrent layers and attention return states besides
    return (found.transpose(0, 1) if batch_axis(layer) else found,)


def by_label(
    layers: Sequence[nn.Module], x: Tensor, labels: Tensor, inputs: dict[str, Any], by_example: Sequence[str]
) -> tuple[Any, ...]:
    """The outputs for every example from the layer of its class; layers of other classes do not run.

    Args:
        layers: The layer of each class.
        x: Inputs; the first axis is the batch.
        labels: The class of each example.
        inputs: What else the layers are called with.
        by_example: Names of those that have an entry for each example.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=len(layers)).tolist()
    found: list[tuple[Any, ...]] = []
    start = 0
    for layer, count in zip(layers, counts, strict=True):
        if count:
            rows = order[start : start + count]
            start += count
            whole = count == len(labels)
            found.append(parameters_of(layer, x if whole else x.index_select(0, rows), taken(inputs, rows, by_example)))
    if len(found) == 1:
        return found[0]
    back = order.argsort()
    outputs = tuple(torch.cat(parts).index_select(0, back) for parts in zip(*found, strict=True))
    if isinstance(found[0], Partial):
        partial = Partial(outputs)
        partial.absent = torch.cat([part.absent for part in found]).index_select(0, back)  # type: ignore[attr-defined]
        return partial
    return outputs


def taken(inputs: dict[str, Any], rows: Tensor, by_example: Sequence[str]) -> dict[str, Any]:
    """The further inputs of some examples.

    Args:
        inputs: The inputs by name.
        rows: The examples.
        by_example: Names of those that have an entry for each example.
    """
    return {
        name: value.index_select(0, rows) if name in by_example and isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def by_class(
    layers: Sequence[nn.Module], x: Tensor, inputs: dict[str, Any], *, own: bool
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The outputs of several classes, (batch, classes, ...), by one call where their kernels are alike.

    Args:
        layers: The layer of each class.
        x: Inputs, (batch, ...), or with `own` those of each class, (batch, classes, ...).
        inputs: What else the layers are called with.
        own: Whether each class has inputs of its own.

    Returns:
        The outputs, and where they belong to no activation.

    Raises:
        ValueError: They have different shapes.
    """
    kernels = [_plain_kernel(layer) for layer in layers]
    first = kernels[0]
    if len(layers) > 1 and not inputs and first is not None and all(_alike(first, kernel) for kernel in kernels):
        joined = _one_call(kernels, x, own=own)
        core: Any = core_of(layers[0])
        count = 1 if core is None else len(core.family.links)
        if count == 1:
            return (joined,), None
        return tuple(joined.chunk(count, 2 if isinstance(first, nn.modules.conv._ConvNd) else -1)), None
    found = [parameters_of(layer, x[:, c] if own else x, inputs) for c, layer in enumerate(layers)]
    shapes = [tuple(output.shape) for outputs in found for output in outputs]
    if any(shape != shapes[0] for shape in shapes[1:]):
        raise ValueError(
            f"Conditional: expected layers whose outputs have one shape, got {shapes}{see('how-to/conditional_layers')}"
        )
    absent = getattr(found[0], "absent", None)
    return tuple(torch.stack(parts, 1) for parts in zip(*found, strict=True)), absent


def _plain_kernel(layer: nn.Module) -> Any:
    """The linear map or convolution that a layer is, if nothing is hooked to it; `None` else."""
    kernel: Any = layer.kernel if isinstance(core_of(layer), StochasticLayer) and hasattr(layer, "kernel") else layer
    own = isinstance(layer, StochasticLayer) and type(layer).outputs is not StochasticLinear.outputs
    plain = type(kernel) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and not own
    if plain and isinstance(layer, StochasticLayer) and not isinstance(layer, StochasticLinear):
        plain = len(layer.family.links) == 1 or kernel.groups == 1
    convolution = plain and type(kernel) is not nn.Linear
    if convolution and (kernel.groups != 1 or kernel.padding_mode != "zeros"):
        return None
    hooks = (kernel._forward_hooks, kernel._forward_pre_hooks, layer._forward_hooks, layer._forward_pre_hooks)
    return kernel if plain and not any(hooks) else None


def _alike(first: Any, other: Any) -> bool:
    if type(first) is not type(other) or first.weight.shape != other.weight.shape:
        return False
    names = () if isinstance(first, nn.Linear) else ("stride", "padding", "dilation")
    same = all(getattr(first, name) == getattr(other, name) for name in names)
    return same and (first.bias is None) == (other.bias is None)


def _one_call(kernels: list[Any], x: Tensor, *, own: bool) -> Tensor:
    """The outputs of linear maps or convolutions, (batch, classes, ...), by one batched or grouped call."""
    first, count = kernels[0], len(kernels)
    bias = None if first.bias is None else torch.cat([kernel.bias for kernel in kernels])
    if isinstance(first, nn.Linear):
        if not own:
            found = F.linear(x, torch.cat([kernel.weight for kernel in kernels]), bias)
            return found.unflatten(-1, (count, -1)).movedim(-2, 1)
        weight = torch.stack([kernel.weight for kernel in kernels])
        found = torch.einsum("bc...i,coi->bc...o", x, weight)
        middle = (1,) * (found.dim() - 3)
        return found if bias is None else found + bias.reshape(count, *middle, -1)
    convolve: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(first.kernel_size)]
    given = x.flatten(1, 2) if own else x
    weight = torch.cat([kernel.weight for kernel in kernels])
    found = convolve(given, weight, bias, first.stride, first.padding, first.dilation, count if own else 1)
    return found.unflatten(1, (count, -1))

"""Conversion of a trained network with discrete neurons and weights on a grid to integers with the same states."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_positive
from pyrostoch._manual import see
from pyrostoch.effects import NoiseFree
from pyrostoch.layers import KState, ThresholdNeuron
from pyrostoch.models import CropAndFlip
from pyrostoch.quantize.gradients import DiscreteGradient
from pyrostoch.quantize.integer import IntegerLayer, IntegerNetwork, integer_steps

__all__ = ["export_integer", "as_int8"]

# The largest integer of int8 whose negative is in int8 too.
_MAX_INT8 = 127
# Rounding error allowed in a sum of products, in units of the machine epsilon relative to its size.
_ROUNDING = 32.0
# Modules without effect in evaluation mode and without noise; `Flatten` has none because an integer layer flattens.
_NO_EFFECT = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Flatten, nn.Identity),
    *(CropAndFlip, DiscreteGradient),
)


def as_int8(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Write values as int8 times a unit, the largest unit for which this is possible.

    Args:
        values: The values.

    Returns:
        The int8 tensor and the unit in double precision, or `None` if there is no such unit.

    Example:
        >>> as_int8(torch.tensor([-0.5, 0.0, 1.0]))
        (tensor([-1,  0,  2], dtype=torch.int8), tensor(0.5000, dtype=torch.float64))
    """
    wide = values.detach().double()
    distinct = wide.abs().unique()
    largest = distinct.max()
    tolerance = 4.0 * (torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0) + 1e-9
    if largest == 0:
        return torch.zeros_like(values, dtype=torch.int8), torch.ones_like(largest)
    if len(distinct) > _MAX_INT8 + 1:
        return None
    for parts in range(1, _MAX_INT8 + 1):
        unit = largest / parts
        distance = (distinct / unit - (distinct / unit).round()).abs()
        # With a tolerance near half a unit any values would lie on the grid.
        if tolerance * parts < 0.2 and bool((distance <= tolerance * parts).all()):
            return (wide / unit).round().to(torch.int8), unit
    return None


def export_integer(net: nn.Module, x: Tensor, *, input_step: float | None = None) -> IntegerNetwork:
    """Convert a network of neurons with discrete states to layers of integers, and compare the two on examples.

    Weights become int8; biases, scales and batch normalization become part of the neurons' thresholds. The network's
    children must run one after the other in the order of registration: linear layers and 2d convolutions, each followed
    optionally by `MaxPool2d`, optionally by `BatchNorm1d` or `BatchNorm2d`, and by neurons with states (`KState`), in
    this order. The last linear layer or convolution may have no neurons; it gives scores. Modules without effect in
    evaluation mode, such as dropout, are left out.

    Args:
        net: The network, its weights on a grid, such as one made by `CategoricalWeights.export` or trained with
            `GridUpdates`.
        x: Examples on which the noise-free states of every layer, and the scores, are compared. A state may differ only
            where the network's own sum equals a threshold up to rounding, so that rounding decides its state; `ties` of
            the result counts these states.
        input_step: A step of which all inputs are integer multiples (1 / 255 for the pixels of an image), so that the
            first layer's sums are integers too. By default inputs are real numbers.

    Returns:
        The network of integers, on the same device.

    Raises:
        ValueError: A module cannot be converted, the weights of a layer are not on a grid of int8, the inputs are not
            integer multiples of the step, or states or scores differ. The message names the layer.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), ps.layers.Ternary(), nn.Linear(8, 3)).eval()
        >>> with torch.no_grad():
        ...     for layer in (net[0], net[3]):
        ...         _ = layer.weight.sign_()
        >>> exported = export_integer(net, torch.randn(5, 4))
        >>> exported.states(torch.randn(5, 4))["0"].dtype
        torch.int8
        >>> exported.costs(torch.randn(5, 4)).total.multiplications  # the scores' scale
        3
    """
    if len(x) == 0:
        raise ValueError("export_integer: expected examples to compare states on, got none")
    if input_step is not None:
        check_positive("export_integer input_step", input_step)
    copied = copy.deepcopy(net).eval()
    layers: dict[str, IntegerLayer] = {}
    unit: Tensor | None = None
    largest: int | None = None
    with torch.no_grad():
        if input_step is not None:
            unit = torch.tensor(input_step, dtype=torch.float64)
            # At least 255, since other examples may have larger inputs than these.
            largest = max(255, int(integer_steps(x, input_step).abs().max()))
        groups = list(_groups(copied))
        for name, group in groups:
            layers[name], largest, unit = _layer(name, group, unit, largest)
            if layers[name].states is None and name != groups[-1][0]:
                raise ValueError(
                    f"export_integer: expected neurons with states after layer {name!r}, got none; only the last "
                    "layer, which gives scores, may have none"
                    f"{see('how-to/discrete_networks')}"
                )
        exported = IntegerNetwork(layers, input_step)
        exported.ties = _compare(copied, exported, x)
    return exported


def _groups(net: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Each linear layer or convolution by name, with the modules up to the next one."""
    group: tuple[str, list[nn.Module]] | None = None
    for name, module in _in_order(net, ""):
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name:
            name = "scores"
        if isinstance(module, _NO_EFFECT):
            continue
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if group is not None:
                yield group
            group = (name, [module])
        elif group is None:
            raise ValueError(f"export_integer: expected a Linear or a Conv2d first, got a {type(module).__name__}")
        else:
            group[1].append(module)
    if group is None:
        raise ValueError(f"export_integer: {type(net).__name__} has no linear layer or convolution")
    yield group


def _in_order(net: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    # Not named_children(), which lists a layer of neurons that is used in two places only once.
    children = [(name, child) for name, child in net._modules.items() if child is not None]
    if isinstance(net, (KState, *_NO_EFFECT)) or not children:
        yield prefix, net
        return
    for name, child in children:
        yield from _in_order(child, f"{prefix}.{name}" if prefix else name)


def _layer(
    name: str, group: list[nn.Module], unit: Tensor | None, largest: int | None
) -> tuple[IntegerLayer, int, Tensor | None]:
    """Convert a linear layer or convolution with the modules that follow it.

    Args:
        name: Name of the layer.
        group: The layer and the modules that follow it.
        unit: Unit of the layer's inputs, or `None` for real inputs.
        largest: The largest absolute input in units, or `None` for real inputs.

    Returns:
        The layer of integers, its largest absolute state, and the unit of its states.
    """
    op: Any = group[0]
    rest = group[1:]
    pool = rest.pop(0) if rest and isinstance(rest[0], nn.MaxPool2d) else None
    norm = rest.pop(0) if rest and isinstance(rest[0], (nn.BatchNorm1d, nn.BatchNorm2d)) else None
    neurons: Any = rest.pop(0) if rest and isinstance(rest[0], KState) else None
    if rest:
        kinds = ", ".join(f"a {type(module).__name__}" for module in rest)
        raise ValueError(
            f"export_integer: after layer {name!r} expected at most MaxPool2d, BatchNorm and neurons with states, in "
            f"this order, got also {kinds}"
            f"{see('how-to/discrete_networks')}"
        )
    weight: Tensor = op.weight
    on_grid = as_int8(weight)
    if on_grid is None:
        raise ValueError(
            f"export_integer: the weights of layer {name!r} are not on a grid of int8; train them on one (GridUpdates, "
            "or CategoricalWeights and its export)"
            f"{see('how-to/discrete_networks')}"
        )
    integers, scale = on_grid
    scale = scale if unit is None else scale * unit
    slope, offset = _affine(op, norm)
    if isinstance(neurons, ThresholdNeuron):
        if neurons.correlation:
            raise ValueError(f"export_integer: the noise of the neurons after layer {name!r} is correlated")
        slope, offset = slope * neurons.gain.double(), offset * neurons.gain.double() + neurons.bias.double()
    settings: dict[str, Any] = {"options": _options(name, op), "pool": pool, "largest": largest}
    if neurons is None:
        if pool is not None and bool((slope < 0).any()):
            raise ValueError(
                f"export_integer: layer {name!r}, which gives scores, has max pooling followed by a batch "
                "normalization with a negative scale"
            )
        layer = IntegerLayer(integers, scale=slope * scale, bias=offset, **settings)
        return layer, 0, None
    states, unit = _states(neurons)
    # An output whose batch normalization has a weight of 0 ignores its inputs: only bias and noise act on its neuron.
    constant = slope == 0
    integers = torch.where(constant.reshape(-1, *[1] * (integers.dim() - 1)), 0, integers).to(torch.int8)
    per_sum = torch.where(constant, 1.0, slope.abs()) * scale
    as_double = partial(torch.as_tensor, dtype=torch.float64, device=weight.device)
    thresholds = torch.stack([(as_double(t).expand_as(slope) - offset) / per_sum for t in neurons.thresholds])
    layer = IntegerLayer(
        integers,
        states=states.to(weight.device),
        sign=torch.where(slope < 0, -1, 1).to(torch.int8),
        thresholds=thresholds,
        noise=(as_double(neurons.noise) / per_sum).float(),
        noise_distribution=neurons.noise_distribution,
        **settings,
    )
    return layer, int(states.abs().max()), unit


def _states(neurons: KState) -> tuple[Tensor, Tensor]:
    """The states of neurons as int8, and their unit."""
    on_grid = as_int8(torch.tensor(neurons.states, dtype=torch.float64))
    if on_grid is None:
        raise ValueError(f"export_integer: the states {neurons.states} are not on a grid of int8")
    return on_grid


def _options(name: str, op: Any) -> dict[str, Any] | None:
    """The arguments of a convolution, or `None` for a linear layer."""
    if isinstance(op, nn.Linear):
        return None
    if op.padding_mode != "zeros":
        raise ValueError(f"export_integer: layer {name!r}: expected padding with zeros, got {op.padding_mode!r}")
    return {key: getattr(op, key) for key in ("stride", "padding", "dilation", "groups")}


def _affine(op: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Slope and offset of each output: bias and batch normalization map a layer's sums to slope * sum + offset."""
    first_column = op.weight.flatten(1)[:, 0].double()
    bias = torch.zeros_like(first_column) if op.bias is None else op.bias.double()
    if norm is None:
        return torch.ones_like(first_column), bias
    if norm.running_var is None:
        raise ValueError("export_integer: a batch normalization without running statistics depends on its batch")
    slope = (norm.running_var.double() + norm.eps).rsqrt()
    slope = slope if norm.weight is None else slope * norm.weight.double()
    offset = (bias - norm.running_mean.double()) * slope
    return slope, offset if norm.bias is None else offset + norm.bias.double()


def _compare(net: nn.Module, exported: IntegerNetwork, x: Tensor) -> int:
    """Raise an error if states or scores of an export differ from the network's; return the number of ties."""
    all_states: list[Tensor] = []

    def record(neurons: KState, _: Any, states: Tensor) -> None:
        all_states.append((states.double() / _states(neurons)[1].to(states.device)).round())

    hooks = [module.register_forward_hook(record) for module in set(net.modules()) if isinstance(module, KState)]
    try:
        with NoiseFree():
            scores = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    eps = _ROUNDING * torch.finfo(scores.dtype).eps
    layers = list(exported.named_layers())
    if len(all_states) != len(layers) - (layers[-1][1].states is None):
        raise ValueError(
            f"export_integer: the export has {len(layers)} layers, but {len(all_states)} layers of neurons have run; "
            "do the network's children run one after the other, as they are registered?"
            f"{see('how-to/discrete_networks')}"
        )
    inputs, ties = exported.to_steps(x), 0
    for (name, layer), expected in zip(layers, all_states, strict=False):
        # Each layer gets the network's own states as inputs, so that a tie does not change the layers after it.
        states = layer(inputs)
        same_shape = states.shape == expected.shape
        differs = states != expected if same_shape else torch.ones_like(expected, dtype=torch.bool)
        count = int(differs.sum())
        if count and (not same_shape or not bool(layer.near(inputs, eps)[differs].all())):
            raise ValueError(
                f"export_integer: {count} of {expected.numel()} states after layer {name!r} differ from the network's; "
                "do its children run one after the other, as they are registered?"
                f"{see('how-to/discrete_networks')}"
            )
        ties, inputs = ties + count, expected
    if layers[-1][1].states is None:
        size = scores.abs().max().item() + 1e-12
        if not torch.allclose(layers[-1][1](inputs).double(), scores.double(), rtol=0.0, atol=10.0 * eps * size):
            raise ValueError("export_integer: the scores differ from the network's")
    return ties

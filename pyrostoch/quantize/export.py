"""A trained network of neurons with states and weights on a grid, as layers of integers that give the same states."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_positive
from pyrostoch.effects import NoiseFree
from pyrostoch.layers import KState, ThresholdNeuron
from pyrostoch.models import CropAndFlip
from pyrostoch.quantize.gradients import DiscreteGradient
from pyrostoch.quantize.integer import IntegerLayer, IntegerNetwork, whole_steps

__all__ = ["export_integer", "whole_numbers"]

_MOST = 127
# Rounding of a sum of products, in units of the last digit of its largest part.
_DIGITS = 32.0
# What does nothing in evaluation mode and without noise; a linear layer flattens by itself.
_PASSED = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Flatten, nn.Identity),
    *(CropAndFlip, DiscreteGradient),
)


def whole_numbers(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Values as int8 times a unit, the largest unit that does it; nothing where none does.

    Args:
        values: The values.

    Returns:
        Whole numbers, and the unit in double precision.

    Example:
        >>> whole_numbers(torch.tensor([-0.5, 0.0, 1.0]))
        (tensor([-1,  0,  2], dtype=torch.int8), tensor(0.5000, dtype=torch.float64))
    """
    wide = values.detach().double()
    distinct = wide.abs().unique()
    largest = distinct.max()
    digit = 4.0 * (torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0) + 1e-9
    if largest == 0:
        return torch.zeros_like(values, dtype=torch.int8), torch.ones_like(largest)
    if len(distinct) > _MOST + 1:
        return None
    for parts in range(1, _MOST + 1):
        unit = largest / parts
        apart = (distinct / unit - (distinct / unit).round()).abs()
        # Where rounding could put anything on a grid, nothing is said to be on one.
        if digit * parts < 0.2 and bool((apart <= digit * parts).all()):
            return (wide / unit).round().to(torch.int8), unit
    return None


def export_integer(net: nn.Module, x: Tensor, *, input_step: float | None = None) -> IntegerNetwork:
    """A network of neurons with states as layers of integers, checked against it on examples, layer by layer.

    Weights become int8; biases, scales and batch normalization go into the neurons' thresholds. The children of the
    network must run one behind the other: linear layers and 2d convolutions, each followed by `MaxPool2d`,
    `BatchNorm1d` or `BatchNorm2d` where there is one, then by neurons with states; the last one gives scores. What does
    nothing in evaluation mode is left out.

    Args:
        net: The network, its weights on a grid: `CategoricalWeights.export` gives one, `GridUpdates` keeps one so.
        x: Examples on which the states of every layer without noise, and the scores, are compared. A state may differ
            only where the network's own sum is on a threshold but for rounding: there it is an accident. How many do
            is said by `ties` of what is returned.
        input_step: Inputs are whole multiples of it (1 / 255 for the pixels of an image), so that the first layer's
            sums are whole numbers too; by default they are taken as real.

    Returns:
        The network of integers, on the same device.

    Raises:
        ValueError: A module has no place in such a network, a weight is on no grid of int8, the inputs are no
            multiples of the step, or a state or score differs; named.

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
    twin = copy.deepcopy(net).eval()
    layers: dict[str, IntegerLayer] = {}
    unit: Tensor | None = None
    largest: int | None = None
    with torch.no_grad():
        if input_step is not None:
            unit = torch.tensor(input_step, dtype=torch.float64)
            # Other examples may be larger than these.
            largest = max(255, int(whole_steps(x, input_step).abs().max()))
        groups = list(_groups(twin))
        for name, group in groups:
            layers[name], largest, unit = _layer(name, group, unit, largest)
            if layers[name].states is None and name != groups[-1][0]:
                raise ValueError(
                    f"export_integer: expected neurons with states behind layer {name!r}, got none; only the last "
                    "layer, of scores, is without"
                )
        found = IntegerNetwork(layers, input_step)
        found.ties = _compare(twin, found, x)
    return found


def _groups(net: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Each linear layer or convolution by name, with what stands behind it."""
    group: tuple[str, list[nn.Module]] | None = None
    for name, module in _in_order(net, ""):
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name:
            name = "scores"
        if isinstance(module, _PASSED):
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
    # With what is used twice: a layer of neurons may stand in two places.
    children = [(name, child) for name, child in net._modules.items() if child is not None]
    if isinstance(net, (KState, *_PASSED)) or not children:
        yield prefix, net
        return
    for name, child in children:
        yield from _in_order(child, f"{prefix}.{name}" if prefix else name)


def _layer(
    name: str, group: list[nn.Module], unit: Tensor | None, largest: int | None
) -> tuple[IntegerLayer, int, Tensor | None]:
    """A layer of integers, with the largest state that it makes and their unit."""
    op: Any = group[0]
    behind = group[1:]
    pool = behind.pop(0) if behind and isinstance(behind[0], nn.MaxPool2d) else None
    norm = behind.pop(0) if behind and isinstance(behind[0], (nn.BatchNorm1d, nn.BatchNorm2d)) else None
    neurons: Any = behind.pop(0) if behind and isinstance(behind[0], KState) else None
    if behind:
        where = ", ".join(f"a {type(module).__name__}" for module in behind)
        raise ValueError(
            f"export_integer: behind layer {name!r} expected at most MaxPool2d, BatchNorm and neurons with states, in "
            f"this order, got further {where}"
        )
    weight: Tensor = op.weight
    found = whole_numbers(weight)
    if found is None:
        raise ValueError(
            f"export_integer: the weights of layer {name!r} lie on no grid of int8; train them on one (GridUpdates, or "
            "CategoricalWeights and its export)"
        )
    whole, scale = found
    scale = scale if unit is None else scale * unit
    slope, offset = _affine(op, norm)
    if isinstance(neurons, ThresholdNeuron):
        if neurons.correlation:
            raise ValueError(f"export_integer: the noise of the neurons behind layer {name!r} is correlated")
        slope, offset = slope * neurons.gain.double(), offset * neurons.gain.double() + neurons.bias.double()
    settings: dict[str, Any] = {"options": _options(name, op), "pool": pool, "largest": largest}
    if neurons is None:
        if pool is not None and bool((slope < 0).any()):
            raise ValueError(f"export_integer: layer {name!r} of scores: a maximum in front of a negative scale")
        layer = IntegerLayer(whole, scale=slope * scale, bias=offset, **settings)
        return layer, 0, None
    states, unit = _states(neurons)
    # What is multiplied by 0 weighs nothing: its neuron has its bias and its noise, in any unit.
    idle = slope == 0
    whole = torch.where(idle.reshape(-1, *[1] * (whole.dim() - 1)), 0, whole).to(torch.int8)
    per_sum = torch.where(idle, 1.0, slope.abs()) * scale
    wide = partial(torch.as_tensor, dtype=torch.float64, device=weight.device)
    thresholds = torch.stack([(wide(at).expand_as(slope) - offset) / per_sum for at in neurons.thresholds])
    layer = IntegerLayer(
        whole,
        states=states.to(weight.device),
        sign=torch.where(slope < 0, -1, 1).to(torch.int8),
        thresholds=thresholds,
        noise=(wide(neurons.noise) / per_sum).float(),
        noise_distribution=neurons.noise_distribution,
        **settings,
    )
    return layer, int(states.abs().max()), unit


def _states(neurons: KState) -> tuple[Tensor, Tensor]:
    """Their states as whole numbers, and the unit."""
    found = whole_numbers(torch.tensor(neurons.states, dtype=torch.float64))
    if found is None:
        raise ValueError(f"export_integer: the states {neurons.states} lie on no grid of int8")
    return found


def _options(name: str, op: Any) -> dict[str, Any] | None:
    """What a convolution is called with."""
    if isinstance(op, nn.Linear):
        return None
    if op.padding_mode != "zeros":
        raise ValueError(f"export_integer: layer {name!r}: expected padding with zeros, got {op.padding_mode!r}")
    return {key: getattr(op, key) for key in ("stride", "padding", "dilation", "groups")}


def _affine(op: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """What a layer's sums are multiplied with, and what is added, for each output."""
    like = op.weight.flatten(1)[:, 0].double()
    bias = torch.zeros_like(like) if op.bias is None else op.bias.double()
    if norm is None:
        return torch.ones_like(like), bias
    if norm.running_var is None:
        raise ValueError("export_integer: a batch normalization without running statistics depends on its batch")
    slope = (norm.running_var.double() + norm.eps).rsqrt()
    slope = slope if norm.weight is None else slope * norm.weight.double()
    offset = (bias - norm.running_mean.double()) * slope
    return slope, offset if norm.bias is None else offset + norm.bias.double()


def _compare(net: nn.Module, found: IntegerNetwork, x: Tensor) -> int:
    """Refuse an export whose states or scores differ from those of the network; returns the number of ties."""
    seen: list[Tensor] = []

    def keep(neurons: KState, _: Any, states: Tensor) -> None:
        seen.append((states.double() / _states(neurons)[1].to(states.device)).round())

    hooks = [module.register_forward_hook(keep) for module in set(net.modules()) if isinstance(module, KState)]
    try:
        with NoiseFree():
            scores = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    eps = _DIGITS * torch.finfo(scores.dtype).eps
    layers = list(found.named_layers())
    if len(seen) != len(layers) - (layers[-1][1].states is None):
        raise ValueError(f"export_integer: {len(layers)} layers were found, and {len(seen)} layers of neurons have run")
    given, ties = found.whole(x), 0
    for (name, layer), theirs in zip(layers, seen, strict=False):
        # From the network's own states: one that is a tie must not be held against the layers behind it.
        mine = layer(given)
        apart = mine != theirs if mine.shape == theirs.shape else torch.ones_like(theirs, dtype=torch.bool)
        differ = int(apart.sum())
        if differ and (mine.shape != theirs.shape or not bool(layer.near(given, eps)[apart].all())):
            raise ValueError(
                f"export_integer: {differ} of {theirs.numel()} states behind layer {name!r} differ from the network's; "
                "do its children run one behind the other, as they are registered?"
            )
        ties, given = ties + differ, theirs
    if layers[-1][1].states is None:
        size = scores.abs().max().item() + 1e-12
        if not torch.allclose(layers[-1][1](given).double(), scores.double(), rtol=0.0, atol=10.0 * eps * size):
            raise ValueError("export_integer: the scores differ from the network's")
    return ties

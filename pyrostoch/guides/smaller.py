"""Networks that have lost neurons and channels: with zeros in their place, or with smaller layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.guides.layer_probe import call_plain, is_cut
from pyrostoch.guides.plain import with_weights
from pyrostoch.guides.units import Wires
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import FlatInputs

__all__ = ["largest_difference", "load_smaller", "masked_network", "smaller_network"]

#: The attributes that hold the sizes of a layer, by the axis of its weight.
_SIZES = {
    "out_features": 0,
    "out_channels": 0,
    "in_features": 1,
    "in_channels": 1,
    "num_features": 0,
    "num_parameters": 0,
}

#: Instance normalization, which may have no tensors that tell its size, with the number of axes after its channels.
_SPATIAL = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def masked_network(net: nn.Module, wires: Mapping[str, Wires], kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network in which the weights of the removed units are zero.

    Where the wires say `silent`, the units' biases and the shifts of their batch normalization are zero as well.

    Args:
        net: A plain network.
        wires: The wires of its layers.
        kept: For each layer that loses units, a boolean tensor that is True where a unit is kept.
    """
    net = copy.deepcopy(net)
    modules: dict[str, Any] = dict(net.named_modules())
    with torch.no_grad():
        for name, keep in kept.items():
            modules[name].weight[~keep] = 0.0
            if not wires[name].silent:
                continue
            if modules[name].bias is not None:
                modules[name].bias[~keep] = 0.0
            for reader, features in wires[name].readers.items():
                if not is_cut(modules[reader]):
                    for part in ("running_mean", "weight", "bias"):
                        held = getattr(modules[reader], part, None)
                        if held is not None and not isinstance(modules[reader], nn.PReLU):
                            held[features[~keep].flatten()] = 0.0
    return net


def smaller_network(masked: nn.Module, wires: Mapping[str, Wires], kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a masked network without the removed units, whose outputs are the same.

    What a unit without weights still adds to the layers that read it is constant, and goes into their biases.

    Args:
        masked: The network, as `masked_network` returns it.
        wires: The wires of its layers.
        kept: For each layer that loses units, a boolean tensor that is True where a unit is kept.
    """
    net = copy.deepcopy(masked)
    modules: dict[str, Any] = dict(net.named_modules())
    rows = {name: keep.clone() for name, keep in kept.items()}
    columns: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, keep in kept.items():
            for reader, features in wires[name].readers.items():
                module = modules[reader]
                if is_cut(module):
                    keeps = columns.setdefault(reader, torch.ones(module.weight.shape[1], dtype=torch.bool))
                    _fold(module, features[~keep].flatten(), wires[name].constants[reader][~keep].flatten())
                else:
                    keeps = rows.setdefault(reader, torch.ones(_channels(module), dtype=torch.bool))
                keeps[features[~keep].flatten()] = False
        for name in dict.fromkeys((*rows, *columns)):
            module = modules[name]
            row = slice(None) if name not in rows else torch.nonzero(rows[name])[:, 0]
            for part in ("weight", "bias", "running_mean", "running_var"):
                held = getattr(module, part, None)
                if isinstance(held, Tensor):
                    _set(module, part, held[row.to(held.device) if isinstance(row, Tensor) else row])
            if name in columns:
                held = module.weight
                _set(module, "weight", held[:, torch.nonzero(columns[name])[:, 0].to(held.device)])
            _set_sizes(module, len(torch.nonzero(rows[name])) if name in rows else None)
    _count_channels_once(net)
    return net


def largest_difference(one: nn.Module, other: nn.Module, x: FlatInputs) -> float:
    """The largest difference between the outputs of two networks, relative to the largest; infinite if shapes differ.

    It is computed in double precision, or in the networks' own where they do not run in double.

    Args:
        one: A network.
        other: The other network.
        x: Inputs, as `flat_inputs` returns them.
    """
    try:
        doubled = pytree.tree_map_only(Tensor, _doubled, x)
        left, right = (call_plain(copy.deepcopy(net).double(), doubled) for net in (one, other))
    except (RuntimeError, TypeError):
        left, right = call_plain(one, x), call_plain(other, x)
    if [value.shape for value in left] != [value.shape for value in right]:
        return float("inf")
    worst = 0.0
    for value, expected in zip(left, right, strict=True):
        if value.numel():
            size = expected.abs().max().clamp_min(1e-30)
            worst = max(worst, ((value - expected).abs().max() / size).item())
    return worst


def load_smaller(net: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """Load the network that `GroupPruning.export` returned from its saved state dict.

    Args:
        net: A plain network of the original architecture, or a `BayesianModel` of one; its weights do not matter. It is
            copied and not changed.
        state_dict: The state dict of the exported network, fine-tuned or not.

    Returns:
        A copy of the network with layers of the sizes in the state dict, and its weights, in evaluation mode.

    Raises:
        TypeError: The network is not a module, or the state dict not a mapping.
        ValueError: A layer of one is missing in the other, or has another size and is none that loses units.

    Example:
        >>> small = {"0.weight": torch.ones(2, 4), "0.bias": torch.zeros(2), "2.weight": torch.ones(1, 2)}
        >>> load_smaller(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1, bias=False)), small)
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=False)
        )
    """
    if not isinstance(net, nn.Module) or not isinstance(state_dict, Mapping):
        raise TypeError(
            f"load_smaller: expected a network and the state dict of an exported one, got {type(net).__name__} and "
            f"{type(state_dict).__name__}{see('how-to/prune_and_export')}"
        )
    loaded = with_weights(net.net if isinstance(net, BayesianModel) else net, {})
    for name, module in loaded.named_modules():
        if not (is_cut(module) or isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.PReLU))):
            continue
        prefix = f"{name}." if name else ""
        for part in ("weight", "bias", "running_mean", "running_var"):
            held, given = getattr(module, part, None), state_dict.get(f"{prefix}{part}")
            if not isinstance(given, Tensor) or (not isinstance(held, Tensor) and part != "bias"):
                continue
            like = held if isinstance(held, Tensor) else module.weight
            _set(module, part, torch.zeros(given.shape, dtype=like.dtype, device=like.device))
        _set_sizes(module, None)
    _count_channels_once(loaded)
    try:
        loaded.load_state_dict(state_dict)
    except RuntimeError as error:
        faults = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
        raise ValueError(
            f"load_smaller: the state dict is that of another architecture: {'; '.join(faults)}; the network has "
            f"{name_list(name for name, _ in loaded.named_parameters())}{see('how-to/prune_and_export')}"
        ) from error
    return loaded


def _count_channels_once(net: nn.Module) -> None:
    """Let instance normalization that has no tensors take its size from what it gets in its next call.

    Only a call tells which channels it reads. It works with any number, but warns where its size is another.
    """
    for module in net.modules():
        if isinstance(module, tuple(_SPATIAL)) and not module.state_dict():
            module.register_forward_pre_hook(_count_channels)


def _count_channels(module: Any, args: tuple[Any, ...]) -> None:
    spatial = next(axes for kind, axes in _SPATIAL.items() if isinstance(module, kind))
    if args:
        module.num_features = args[0].shape[-1 - spatial]
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _count_channels:
            del module._forward_pre_hooks[key]


def _fold(module: Any, features: Tensor, constants: Tensor) -> None:
    """Add to a layer's bias what constant features of its input add to its output."""
    if not bool(constants.any()):
        return
    weight = module.weight.detach()
    columns = weight[:, features.to(weight.device)].double()
    shift = (columns.flatten(2).sum(2) if columns.dim() > 2 else columns) @ constants.to(weight.device).double()
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros_like(shift, dtype=weight.dtype))
    module.bias.add_(shift.to(weight.dtype))


def _doubled(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _channels(module: Any) -> int:
    """Number of channels that a normalization layer or PReLU treats."""
    return int(module.num_parameters if isinstance(module, nn.PReLU) else module.num_features)


def _set(module: nn.Module, part: str, value: Tensor) -> None:
    held = getattr(module, part, None)
    if isinstance(held, nn.Parameter) or held is None:
        trained = held is None or held.requires_grad
        setattr(module, part, nn.Parameter(value.detach().clone(), requires_grad=trained))
    else:
        setattr(module, part, value.detach().clone())


def _set_sizes(module: Any, channels: int | None) -> None:
    """Bring the attributes that tell a layer's sizes in line with its weight."""
    weight = getattr(module, "weight", None)
    for attribute, axis in _SIZES.items():
        if not hasattr(module, attribute):
            continue
        if isinstance(weight, Tensor):
            setattr(module, attribute, weight.shape[axis])
        elif channels is not None:  # normalization without weights
            setattr(module, attribute, channels)

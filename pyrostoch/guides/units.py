"""Which neurons and channels of a network feed which inputs of its later layers, found by experiment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.guides.layer_probe import CHANNELWISE, Probe, feature_axis, is_cut
from pyrostoch.protocols import FlatInputs

__all__ = ["Wires", "wires_of"]


@dataclass
class Wires:
    """What the outputs of a layer feed.

    Args:
        readers: For each later layer that reads them, and each normalization between, the features of its input that
            each unit feeds: `(units, features per unit)`.
        constants: For each reader the values of these features where a unit's weights are all zero.
        silent: Whether the shift of a unit without weights (bias, and batch normalization's) has to be zero as well,
            since what it adds is not the same everywhere.
        reason: Why no unit of the layer can be removed; empty where some can.
    """

    readers: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    silent: bool = False
    reason: str = ""


def wires_of(net: nn.Module, x: FlatInputs) -> dict[str, Wires]:
    """What the outputs of each linear layer and convolution feed.

    The outputs of some units are perturbed while every other layer returns what it did before, and it is seen which
    features of the inputs of the others change. With the units of each binary digit, and its complement, that tells for
    every feature which unit feeds it, or that several do. It is an experiment in evaluation mode on the inputs given,
    not a theorem.

    Args:
        net: A plain network in evaluation mode; hooks are added and removed again.
        x: Inputs, as `flat_inputs` returns them.

    Returns:
        The wires by the layer's name, in the order in which layers are called; those of a layer that cannot be cut say
        why.

    Raises:
        ValueError: Two calls of the network give different outputs, or they are not finite.
    """
    probe = Probe(_without_normalization(net), x)
    found = {name: _read(probe, name) for name in probe.calls if name in probe.cut}
    _join(found)
    probe = Probe(net, x)
    for name, wires in found.items():
        if not wires.reason:
            _settle(probe, name, wires)
    for name in probe.cut:
        found.setdefault(name, Wires(reason="it is not called as a module in a forward pass"))
    return found


def _without_normalization(net: nn.Module) -> nn.Module:
    """A copy whose batch normalization does nothing, so that it hides no channel by a factor of 0 or a large shift."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if type(module) in CHANNELWISE and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
    return net


def _read(probe: Probe, name: str) -> Wires:
    """The readers of one layer."""
    if probe.calls[name] > 1:
        return Wires(reason=f"it is called {probe.calls[name]} times in a forward pass")
    if probe.tied(name):
        return Wires(reason="another layer holds the same weight")
    module = probe.holders[name]
    units: int = module.weight.shape[0]
    digits = max(1, (units - 1).bit_length())
    index = torch.arange(units)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for digit in range(digits):
        is_set = (index >> digit) % 2 == 1
        features, reaches = probe.changed(name, ~is_set)
        of_set, reaches_too = probe.changed(name, is_set)
        if reaches or reaches_too:
            return Wires(reason="its outputs reach the network's output without another layer between")
        for other in dict.fromkeys((*features, *of_set)):
            low, high = features.get(other, False), of_set.get(other, False)
            if isinstance(low, bool) or isinstance(high, bool):
                if low is not False or high is not False:
                    return Wires(reason=_cannot_lose(probe, other))
                continue
            seen.setdefault(other, []).append((low, high))
    wires = Wires()
    for other, found in seen.items():
        lows, highs = torch.stack([low for low, _ in found]), torch.stack([high for _, high in found])
        fed = (lows | highs).any(0)
        if not bool(fed.any()):
            continue
        features_of = torch.nonzero(fed)[:, 0]
        wires.readers[other] = features_of
        if bool((lows & highs).any()):
            wires.reason = f"a feature of the input of {other!r} depends on several of its outputs"
            continue
        unit = (highs * (2 ** torch.arange(digits))[:, None]).sum(0)
        counts = torch.bincount(unit[fed], minlength=units)
        if not bool((lows ^ highs)[:, fed].all()) or len(counts) > units or int(counts.min()) != int(counts.max()):
            wires.reason = f"it was not seen which features of the input of {other!r} each of its outputs feeds"
            continue
        wires.readers[other] = features_of[torch.argsort(unit[fed], stable=True)].reshape(units, -1)
    if not wires.reason and not any(is_cut(probe.holders[other]) for other in wires.readers):
        wires.reason = "no linear layer or convolution reads its outputs"
    return wires


def _join(found: dict[str, Wires]) -> None:
    """Name the layers whose outputs meet at a feature: added, multiplied or compared."""
    fed_by: dict[tuple[str, int], str] = {}
    for name, wires in found.items():
        for reader, features in wires.readers.items():
            for feature in features.flatten().tolist():
                other = fed_by.setdefault((reader, feature), name)
                if other != name:
                    found[other].reason = f"its outputs and those of {name!r} meet before {reader!r}"
                    wires.reason = f"its outputs and those of {other!r} meet before {reader!r}"


def _settle(probe: Probe, name: str, wires: Wires) -> None:
    """Measure what the features are where the layer's outputs are constant, and whether a reader can do without."""
    module = probe.holders[name]
    axis = feature_axis(module)
    bias: Any = module.bias

    def constant(output: Tensor) -> Tensor:
        value = output.new_zeros(output.shape[axis]) if bias is None else bias.detach()
        return value.reshape(-1, *(1,) * (-1 - axis)).expand(output.shape).clone()

    cut = [reader for reader in wires.readers if is_cut(probe.holders[reader])]
    wires.constants = _constants(probe, cut, wires, {name: constant})
    if len(wires.constants) == len(cut) and all(
        _takes_constants(probe.holders[reader]) or not bool(value.any()) for reader, value in wires.constants.items()
    ):
        return
    changes: dict[str, Callable[[Tensor], Tensor]] = {name: torch.zeros_like}
    for reader, features in wires.readers.items():
        if reader not in cut and not isinstance(probe.holders[reader], nn.PReLU):
            changes[reader] = _silencing(features.flatten())
    wires.constants = _constants(probe, cut, wires, changes)
    wires.silent = True
    for reader in cut:
        if reader not in wires.constants:
            wires.reason = f"without its weights, the input of {reader!r} still depends on other inputs (is it added?)"
        elif bool(wires.constants[reader].any()):
            wires.reason = (
                f"without its weights, it still adds something to the input of {reader!r}, which pads with zeros; an "
                "activation that is 0 at 0, such as ReLU, or padding=0 would do"
            )


def _silencing(features: Tensor) -> Callable[[Tensor], Tensor]:
    def silence(output: Tensor) -> Tensor:
        return output.index_fill(1, features.to(output.device), 0.0)

    return silence


def _constants(
    probe: Probe, readers: list[str], wires: Wires, changes: dict[str, Callable[[Tensor], Tensor]]
) -> dict[str, Tensor]:
    """The values of the readers' features under changes, where they are the same for all examples and positions."""
    found: dict[str, list[Tensor]] = {}
    for at, x in enumerate(probe.runs):
        inputs, _ = probe.run(x, changes, at)
        for reader in readers:
            rows = inputs[reader][0].movedim(feature_axis(probe.holders[reader]), -1)
            features = wires.readers[reader].to(rows.device)
            found.setdefault(reader, []).append(rows.reshape(-1, rows.shape[-1])[:, features.flatten()])
    constants = {}
    for reader, parts in found.items():
        values = torch.cat(parts)
        first = values[0]
        if bool((values - first).abs().max() <= 1e-6 * (1.0 + first.abs().max())):
            constants[reader] = first.reshape(wires.readers[reader].shape)
    return constants


def _takes_constants(module: nn.Module) -> bool:
    """Whether a constant input adds the same to every output position, so that the bias can hold it."""
    if isinstance(module, nn.Linear):
        return True
    padding: Any = module.padding
    without = padding == "valid" if isinstance(padding, str) else not any(padding)
    return without or module.padding_mode != "zeros"


def _cannot_lose(probe: Probe, name: str) -> str:
    module = probe.holders[name]
    kind = f"{name!r} ({type(module).__name__})"
    if probe.calls[name] > 1:
        return f"{kind} reads its outputs, and is called {probe.calls[name]} times in a forward pass"
    if probe.tied(name):
        return f"{kind} reads its outputs, and shares its weight with another layer"
    if getattr(module, "groups", 1) != 1:
        return f"{kind} reads its outputs in groups"
    return f"{kind} reads its outputs, and its inputs cannot be removed"

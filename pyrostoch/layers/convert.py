"""Turn layers of an existing network into stochastic ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_positive, name_list
from pyrostoch._manual import see
from pyrostoch.layers.activations import ActivationDistribution, PriorOfActivations
from pyrostoch.layers.stochastic_kernels import (
    StochasticConv1d,
    StochasticConv2d,
    StochasticConv3d,
    StochasticConvTranspose1d,
    StochasticConvTranspose2d,
    StochasticConvTranspose3d,
    StochasticLinear,
)

__all__ = ["check_replaceable", "chosen_modules", "make_stochastic", "replace_module"]

_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
#: The stochastic layer of each of torch's, and the options that both have.
_KINDS: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    nn.Linear: (StochasticLinear, ()),
    nn.Conv1d: (StochasticConv1d, _OPTIONS),
    nn.Conv2d: (StochasticConv2d, _OPTIONS),
    nn.Conv3d: (StochasticConv3d, _OPTIONS),
    nn.ConvTranspose1d: (StochasticConvTranspose1d, (*_OPTIONS, "output_padding")),
    nn.ConvTranspose2d: (StochasticConvTranspose2d, (*_OPTIONS, "output_padding")),
    nn.ConvTranspose3d: (StochasticConvTranspose3d, (*_OPTIONS, "output_padding")),
}


def make_stochastic(
    net: nn.Module,
    names: str | Iterable[str],
    *,
    distribution: ActivationDistribution | str = "gaussian",
    prior: PriorOfActivations = "learned",
    scale: float = 0.1,
) -> nn.Module:
    """Replace linear layers and convolutions of a network by stochastic ones.

    The weights of a layer become the kernel of the distribution's first parameter, the location or the logits. A second
    one starts at the same value for every input.

    Args:
        net: The network, which is changed.
        names: Names of the modules, such as `"conv1"`.
        distribution: The distribution of their activations.
        prior: The prior of their activations; see `StochasticLayer`.
        scale: Start of the standard deviation, or of the scale.

    Returns:
        The network.

    Raises:
        ValueError: There is no such module, the scale is not positive, or a layer cannot be replaced without losing
            something: hooks, a tied parameter, another name, or that it is fixed.
        TypeError: A module is neither a linear layer nor a convolution of torch.

    Example:
        >>> net = make_stochastic(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "0")
        >>> type(net[0]).__name__, net(torch.zeros(5, 3)).shape
        ('StochasticLinear', torch.Size([5, 2]))
    """
    check_positive("make_stochastic scale", scale)
    modules = chosen_modules(net, names, "make_stochastic", see("how-to/stochastic_layers"))
    if wrong := [name for name in modules if type(modules[name]) not in _KINDS]:
        kind = type(modules[wrong[0]]).__name__
        conditional = kind == "Conditional"
        advice = "make it stochastic first" if conditional else "put a stochastic layer beside it by layers.embody"
        raise TypeError(
            f"make_stochastic: expected linear layers or convolutions of torch, but {wrong[0]!r} is a {kind}; {advice}"
            f"{see('how-to/stochastic_layers')}"
        )
    for name, module in modules.items():
        check_replaceable(net, name, module, "make_stochastic", see("how-to/stochastic_layers"))
    for name, module in modules.items():
        replace_module(net, name, _converted(module, distribution, prior, scale))
    return net


def chosen_modules(net: nn.Module, names: str | Iterable[str], what: str, hint: str) -> dict[str, nn.Module]:
    """Modules of a network by name.

    Args:
        net: The network.
        names: The names.
        what: Name of the function that asks, for error messages.
        hint: The end of error messages, such as a page of the manual.

    Raises:
        ValueError: There is no such module.
    """
    modules = dict(net.named_modules())
    chosen = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in chosen if name not in modules or not name]:
        raise ValueError(
            f"{what}: no module(s) {name_list(unknown)}; the network has "
            f"{name_list([name for name in modules if name], 99)}{hint}"
        )
    return {name: modules[name] for name in chosen}


def replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another one.

    Args:
        net: The network.
        name: Name of the other one.
        module: The module.
    """
    holder, _, last = name.rpartition(".")
    setattr(net.get_submodule(holder), last, module)


def _converted(
    layer: Any, distribution: ActivationDistribution | str, prior: PriorOfActivations, scale: float
) -> nn.Module:
    kind, options = _KINDS[type(layer)]
    convolution = bool(options)
    sizes = (layer.in_channels, layer.out_channels) if convolution else (layer.in_features, layer.out_features)
    made: Any = kind(
        *sizes,
        distribution=distribution,
        prior=prior,
        bias=True,
        **{option: getattr(layer, option) for option in options},
    )
    made.to(layer.weight.device, layer.weight.dtype).train(layer.training)
    count = len(made.family.links)
    with torch.no_grad():
        # In a transposed convolution the channels of the output are on the second axis, those of one group.
        transposed = getattr(layer, "transposed", False)
        groups = getattr(layer, "groups", 1)
        weight = made.kernel.weight.movedim(1, 0) if transposed else made.kernel.weight
        own = layer.weight.movedim(1, 0) if transposed else layer.weight
        _put(weight, own, count, 1 if transposed else groups, 0.0)
        start = _output_for(made.family, scale) if count > 1 else 0.0
        _put(made.kernel.bias, torch.zeros(sizes[1]) if layer.bias is None else layer.bias, count, groups, start)
    return made


def _output_for(family: ActivationDistribution, scale: float) -> float:
    """The kernel's output at which the scale has a value; 0 for a family without one."""
    if family.noise != "scale":
        return 0.0
    link = family.links["scale"]
    starts = (math.log(math.expm1(scale)), math.log(scale), scale)  # of softplus, exp and the absolute value
    return min(starts, key=lambda start: abs(float(link(torch.tensor(start, dtype=torch.float64))) - scale))


def check_replaceable(net: nn.Module, name: str, layer: nn.Module, what: str, hint: str) -> None:
    """Raise an error for a layer that is more than its class says, which would be lost.

    Args:
        net: The network.
        name: Name of the layer.
        layer: The layer.
        what: Name of the function that replaces it, for error messages.
        hint: The end of error messages, such as a page of the manual.

    Raises:
        ValueError: It has hooks, several names, or tied or fixed parameters.
    """
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    hooks = [getattr(part, kind) for part in layer.modules() for kind in kinds]
    names = [other for other, part in net.named_modules(remove_duplicate=False) if part is layer]
    tied = [
        other
        for other, parameter in net.named_parameters(remove_duplicate=False)
        if not other.startswith(tuple(f"{own}." for own in names))
        and any(parameter is own for own in layer.parameters())
    ]
    reason = None
    if any(hooks):
        reason = "it has hooks, such as those of weight_norm, spectral_norm or prune"
    elif len(names) > 1:
        reason = f"it has several names, {name_list(names)}"
    elif tied:
        reason = f"it shares a parameter with {tied[0]!r}"
    elif not all(parameter.requires_grad for parameter in layer.parameters()):
        reason = "a parameter of it is fixed (requires_grad=False), and what takes its place is trained"
    if reason:
        raise ValueError(
            f"{what}: {name!r} cannot be replaced without losing something: {reason}; put a stochastic layer beside it "
            f"by layers.embody{hint}"
        )


def _put(kernels: Tensor, own: Tensor, count: int, groups: int, others: float) -> None:
    """Put values into the first of the kernels of each group, and a constant into the others."""
    parts = kernels.unflatten(0, (groups, count, -1))
    parts.fill_(others)
    parts[:, 0] = own.to(kernels).unflatten(0, (groups, -1))

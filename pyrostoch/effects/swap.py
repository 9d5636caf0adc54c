"""Calling a network with other tensors in place of its parameters and buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyrostoch._structure import positional_and_keyword

__all__ = ["call_with", "tied_values"]


def tied_values(net: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for every place that holds a parameter or buffer, each place once.

    A tensor may be held by several modules (tied weights), and a module by several others, or several times by one.
    `torch.func.functional_call` ties by name, and swaps a module that it meets under two names twice: restoring it then
    leaves the swapped tensor in place of the parameter.

    Args:
        net: The network.
        values: Values by the first name of each parameter or buffer.

    Returns:
        Values by name, for `functional_call(..., tie_weights=False)`.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> sorted(tied_values(nn.Sequential(layer, nn.ReLU(), layer), {"0.weight": torch.zeros(2, 2)}))
        ['0.weight']
        >>> other = nn.Linear(2, 2, bias=False)
        >>> other.weight = layer.weight
        >>> sorted(tied_values(nn.Sequential(layer, other), {"0.weight": torch.zeros(2, 2)}))
        ['0.weight', '1.weight']
    """
    names: dict[int, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for prefix, module in net.named_modules():
        for last, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{last}" if prefix else last
                tensors[name] = tensor
                names.setdefault(id(tensor), []).append(name)
    return {place: value for name, value in values.items() for place in names[id(tensors[name])]}


def call_with(net: nn.Module, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a network with values in place of its parameters and buffers; it is left as it was, whatever happens.

    Parts that `torch.compile` wraps run as they are.

    Args:
        net: The network.
        values: Values by the first name of each parameter or buffer.
        args: Positional inputs, perhaps flat ones with their structure; see `flat_inputs`.
        kwargs: Keyword inputs.

    Example:
        >>> import torch
        >>> call_with(nn.Linear(2, 1, bias=False), {"weight": torch.ones(1, 2)}, (torch.ones(1, 2),), {}).item()
        2.0
    """
    args, kwargs = positional_and_keyword(args, kwargs)
    with _uncompiled(net):
        return functional_call(net, tied_values(net, values), args, kwargs, tie_weights=False)


def _uncompiled(net: nn.Module) -> AbstractContextManager[None]:
    # torch.compile would compile the interception of torch functions, anew for every draw, which is slower than no
    # compilation; `compile_step` compiles what the interception leaves.
    wrapped = any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in net.modules())
    return torch.compiler.set_stance("force_eager") if wrapped else contextlib.nullcontext()

"""Which parameters scale and shift a normalized activation: torch's layers, and those of others by name and by code."""

from __future__ import annotations

from types import CodeType, FunctionType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

__all__ = ["is_normalization"]

_OF_TORCH = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# What a forward method calls where it divides by the size or the spread of its input.
_CALLS = {
    *("rsqrt", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "normalize"),
    *("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"),
}


def is_normalization(parameter: nn.Parameter, holder: nn.Module) -> bool:
    """Whether a parameter scales or shifts a normalized activation, which a single prior is not meant for.

    True in a normalization layer of torch, and for a parameter with one axis in a module with `Norm` in its class name
    or, where none of its own parameters has more axes, with a `forward` that divides by a norm or standard deviation.

    Args:
        parameter: The parameter.
        holder: The module that holds it.

    Example:
        >>> class Rescale(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.g = nn.Parameter(torch.ones(4))
        ...     def forward(self, x):
        ...         return self.g * x / x.square().mean(-1, keepdim=True).sqrt()
        >>> import torch
        >>> is_normalization(Rescale().g, Rescale())
        True
    """
    if isinstance(holder, _OF_TORCH):
        return True
    if isinstance(parameter, UninitializedParameter) or parameter.dim() > 1:
        return False
    if "norm" in type(holder).__name__.lower():
        return True
    own = list(holder.parameters(recurse=False))
    if any(isinstance(other, UninitializedParameter) or other.dim() > 1 for other in own):
        return False
    return _divides_by_size(holder)


def _divides_by_size(module: nn.Module) -> bool:
    names = _names_in(type(module), "forward", set()) - set(module._modules)
    return bool(names & _CALLS) or {"mean", "sqrt"} <= names


def _names_in(cls: type, method: str, seen: set[str]) -> set[str]:
    """The names that a method uses, and those in the methods of its class that it calls."""
    function = getattr(cls, method, None)
    if method in seen or not isinstance(function, FunctionType) or function.__module__.startswith("torch."):
        return set()
    seen.add(method)
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names.union(*(_names_in(cls, name, seen) for name in list(names)))

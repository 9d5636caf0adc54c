"""Which parameter of a network gets which prior."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from pyrostoch._checks import name_list
from pyrostoch.priors.base import Prior, as_prior

__all__ = ["assign", "clean_name", "is_bias", "owners"]

_NORMALIZATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def clean_name(name: str) -> str:
    """A parameter's name without the prefix that `torch.compile` puts in."""
    return name.replace("_orig_mod.", "")


def is_bias(name: str) -> bool:
    """Whether a parameter's name is that of a bias (`bias`, `bias_ih_l0`, `in_proj_bias`, ...)."""
    last = name.rsplit(".", 1)[-1]
    return last.startswith("bias") or last.endswith("bias")


def owners(net: nn.Module) -> dict[str, nn.Module]:
    """The module that holds each parameter, by the parameter's (first) name."""
    modules = dict(net.named_modules(remove_duplicate=False))  # scripted modules have no get_submodule
    return {name: modules[name.rpartition(".")[0]] for name, _ in net.named_parameters(remove_duplicate=True)}


def assign(net: nn.Module, spec: Any) -> dict[str, Prior]:
    """Give each parameter its prior.

    A single prior goes to every parameter except biases and those of normalization layers. A dictionary maps name
    patterns (shell wildcards) to priors; the last match wins; a pattern that matches a bias by name asks for it, while
    a normalization layer is reached only by a pattern that spells out its module (`"bn1.weight"`, `"bn1.*"`). A
    callable gets each parameter's name and value and returns a prior or `None`. A layer's own `prior=` (see
    `pyrostoch.layers`) holds where `spec` is `None` or does not reach it.

    Args:
        net: The network.
        spec: Prior, distribution, dictionary, callable or `None`.

    Returns:
        A prior for each random parameter, by the name in `net.named_parameters()`.

    Raises:
        ValueError: A pattern matches nothing, or a chosen parameter cannot be made random.

    Example:
        >>> from pyrostoch import priors
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> assign(net, priors.Normal())
        {'0.weight': Normal(loc=0, scale=1)}
        >>> sorted(assign(net, {"*": priors.Normal()}))
        ['0.bias', '0.weight']
    """
    parameters = dict(net.named_parameters(remove_duplicate=True))
    holders = owners(net)
    own = _own_priors(net)
    chosen: dict[str, Prior | None] = {name: own.get(id(parameter)) for name, parameter in parameters.items()}
    if isinstance(spec, dict):
        _by_pattern(spec, parameters, holders, chosen)
    elif isinstance(spec, (Prior, Distribution)):
        for name in parameters:
            if chosen[name] is None and not is_bias(name) and not isinstance(holders[name], _NORMALIZATION):
                chosen[name] = as_prior(spec)
    elif callable(spec) and not isinstance(spec, type):
        for name, parameter in parameters.items():
            chosen[name] = as_prior(spec(clean_name(name), parameter))
    elif spec is not None:
        as_prior(spec)  # raises
    random = {name: prior for name, prior in chosen.items() if prior is not None}
    for name in random:
        _check_can_be_random(name, parameters[name], holders[name])
    return {name: prior.for_parameter(parameters[name]) for name, prior in random.items()}


def _own_priors(net: nn.Module) -> dict[int, Prior]:
    """The priors that layers bring, by the identity of the parameter: a tied one may be held by several modules."""
    found: dict[int, Prior] = {}
    for module in net.modules():
        for last, prior in getattr(module, "priors", {}).items():
            parameter = getattr(module, last, None)
            if isinstance(parameter, nn.Parameter) and isinstance(prior, Prior):
                found.setdefault(id(parameter), prior)
    return found


def _by_pattern(
    rules: dict[str, Any],
    parameters: dict[str, nn.Parameter],
    holders: dict[str, nn.Module],
    chosen: dict[str, Prior | None],
) -> None:
    for pattern, value in rules.items():
        matched = False
        for name, parameter in parameters.items():
            clean = clean_name(name)
            if not fnmatch.fnmatchcase(clean, pattern):
                continue
            module, _, _ = clean.rpartition(".")
            spelled_out = pattern == clean or pattern.rpartition(".")[0] == module
            if isinstance(holders[name], _NORMALIZATION) and not (spelled_out and module):
                continue
            chosen[name] = as_prior(value(clean, parameter) if _is_rule(value) else value)
            matched = True
        if not matched:
            raise ValueError(
                f"prior rule {pattern!r} matches no parameter; the network has "
                f"{name_list(clean_name(n) for n in parameters)} (a normalization layer must be spelled out)"
            )


def _is_rule(value: Any) -> bool:
    return callable(value) and not isinstance(value, (Prior, Distribution))


def _check_can_be_random(name: str, parameter: nn.Parameter, owner: nn.Module) -> None:
    reason = None
    if isinstance(parameter, UninitializedParameter):
        reason = "it has no shape yet: run the network once on an example first"
    elif not parameter.is_floating_point():
        reason = f"its dtype is {parameter.dtype}; real floating-point parameters can be random"
    elif "/" in name:
        reason = "its name holds a '/', which stands for a dot in names of priors and guides; rename it"
    elif parameter.numel() == 0:
        reason = f"it is empty, of shape {tuple(parameter.shape)}"
    elif type(owner).__module__.startswith("torch.jit"):
        reason = "it lives in a scripted module, which does not accept a drawn weight"
    if reason:
        raise ValueError(f"parameter {clean_name(name)!r} of {type(owner).__name__} cannot be made random: {reason}")

"""A network with fixed, mostly zero weights, made from a trained one: a copy that owes nothing to model or guide."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch.guides.sparse import SparseConv2d, SparseLinear, csr_bytes
from pyrostoch.layers import Conv2d, Linear
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Prior, clean_name

__all__ = ["make_sparse", "with_weights"]

# Exactly these types: what a subclass makes of its weight is its own affair.
_SPARSE: dict[type, type[SparseLinear] | type[SparseConv2d]] = {
    nn.Linear: SparseLinear,
    Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
    Conv2d: SparseConv2d,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of a network with other weights, in evaluation mode, an ordinary module again.

    Nothing in it is random or frozen: parameters that a `BayesianModel` had frozen can be trained, and random layers
    (`pyrostoch.layers`) are torch's own.

    Args:
        model: A `BayesianModel`, or the network itself.
        weights: New values by site name (the parameter's name).

    Returns:
        The copy.

    Raises:
        ValueError: A name or shape does not fit the network, or random weights of the model are not among them.
    """
    net = model
    if isinstance(model, BayesianModel):
        left = [site.name for site in model.sites.values() if site.role != "scale" and site.name not in weights]
        if left:
            raise ValueError(
                f"export: random weight(s) {name_list(left)} of the model have no value here: the guide that was "
                "pruned does not cover them"
            )
        net = model.net
    twin = copy.deepcopy(net)
    parameters = {clean_name(name): parameter for name, parameter in twin.named_parameters()}
    for name, value in weights.items():
        if name not in parameters:
            raise ValueError(f"export: the network has no parameter {name!r}; it has {name_list(parameters)}")
        if parameters[name].shape != value.shape:
            raise ValueError(
                f"export: expected parameter {name!r} of shape {tuple(value.shape)}, as it was pruned, got "
                f"{tuple(parameters[name].shape)} in the network"
            )
        with torch.no_grad():
            parameters[name].copy_(value)
    for module in twin.modules():
        for last in module.__dict__.pop("_pyrostoch_frozen", ()):
            getattr(module, last).requires_grad_(True)
        own = module.__dict__.get("priors")
        if isinstance(own, dict) and own and all(isinstance(prior, Prior) for prior in own.values()):
            for last in own:
                nn.Module.get_parameter(module, last).requires_grad_(True)
            module.priors = {}  # type: ignore[assignment]
    for parameter in twin.parameters():
        parameter.grad = None
    return twin.eval()


def make_sparse(net: nn.Module, names: list[str]) -> nn.Module:
    """Put sparse layers in place of those linear and 2d convolution layers whose weight is among the named ones.

    A layer stays dense where that is smaller, where its weight is also read by a module of another kind (an embedding
    tied to it), and where it has hooks, a parametrization or a forward pass of its own.

    Args:
        net: The network, changed in place.
        names: Names of weights, mostly zero.

    Returns:
        The network, or the sparse layer that stands for it if the network is a single layer.
    """
    parameters = {clean_name(name): parameter for name, parameter in net.named_parameters()}
    named = {id(parameters[name]) for name in names}
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in net.modules():
        for last, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in named:
                holders.setdefault(id(parameter), []).append((module, last))
    new: dict[int, SparseLinear | SparseConv2d] = {}
    for held in holders.values():
        weight = held[0][0]._parameters[held[0][1]]
        if weight is None or not all(last == "weight" and _replaceable(module) for module, last in held):
            continue
        if csr_bytes(weight) >= weight.numel() * weight.element_size():
            continue
        made = [_SPARSE[type(module)](module) for module, _ in held]  # type: ignore[arg-type]
        for other in made[1:]:  # tied weights stay tied
            other.values = made[0].values
            other.crow_indices, other.col_indices = made[0].crow_indices, made[0].col_indices
        new.update({id(module): layer for (module, _), layer in zip(held, made, strict=True)})
    for module in list(net.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return new.get(id(net), net).eval()


def _replaceable(module: nn.Module) -> bool:
    own = "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS)
    return type(module) in _SPARSE and not own

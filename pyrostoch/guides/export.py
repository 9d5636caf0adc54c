"""A network with fixed, mostly zero weights, made from a trained one or from what was saved of it; always a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch.guides.sparse import SparseConv2d, SparseLinear, csr_bytes
from pyrostoch.layers import Conv2d, Linear
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Prior, clean_name

__all__ = ["load_pruned", "make_sparse", "with_weights"]

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
    groups = []
    for held in holders.values():
        weight = held[0][0]._parameters[held[0][1]]
        if weight is None or not all(last == "weight" and _replaceable(module) for module, last in held):
            continue
        if csr_bytes(weight) >= weight.numel() * weight.element_size():
            continue
        groups.append([module for module, _ in held])
    return _replaced(net, groups)


def load_pruned(net: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """The network that a pruning exported, from the state dict it was saved as.

    Args:
        net: A network of the same architecture, plain and dense, as it is before training; of a `BayesianModel`, its
            network is meant. It is copied and stays as it is.
        state_dict: The state dict of what `Pruning.export` returned, dense or not, also after fine-tuning.

    Returns:
        A copy of the network with these weights, on its device and in its dtype, in evaluation mode, with
        `SparseLinear` and `SparseConv2d` where the state dict has them.

    Raises:
        TypeError: The network is no module, or the state dict no mapping.
        ValueError: A layer of the state dict is not in the network or of another shape or kind there, or one of the
            network is not in the state dict; named.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(4, 2), prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = ps.guides.WeightwiseAlpha(model, init_log_alpha=lambda site: torch.tensor([0.0, 9.0, 9.0, 9.0]))
        >>> exported = ps.guides.prune(guide).export(model)
        >>> load_pruned(nn.Linear(4, 2), exported.state_dict())
        SparseLinear(in_features=4, out_features=2, bias=True, kept=2 of 8)
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"load_pruned: expected a network (an nn.Module), got {type(net).__name__}")
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"load_pruned: expected the state dict of an exported network, got {type(state_dict).__name__}; of a file, "
            "pass what safetensors.torch.load_file or torch.load returns, of a module its .state_dict()"
        )
    twin = with_weights(net.net if isinstance(net, BayesianModel) else net, {})
    own, modules = twin.state_dict(), dict(twin.named_modules(remove_duplicate=False))
    groups: dict[int, list[nn.Module]] = {}
    for key in state_dict:
        name, _, last = key.rpartition(".")
        if last != "crow_indices" or key in own:
            continue
        module = modules.get(name)
        if module is None:
            raise ValueError(
                f"load_pruned: the state dict has a sparse layer {name!r}, and the network no such layer; it has "
                f"{name_list(found for found in modules if found)}"
            )
        if not _replaceable(module):
            raise ValueError(
                f"load_pruned: expected a linear or 2d convolution layer without hooks at {name!r}, where the state "
                f"dict has a sparse one, got {type(module).__name__}"
            )
        held = groups.setdefault(id(module.weight), [])
        if not any(module is other for other in held):
            held.append(module)
    with torch.no_grad():
        for held in groups.values():
            held[0].weight.zero_()  # type: ignore[operator]
    loaded = _replaced(twin, groups.values())
    try:
        loaded.load_state_dict(state_dict)
    except RuntimeError as error:
        faults = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines()[1:])
        raise ValueError(f"load_pruned: the state dict is of another architecture: {faults}") from error
    return loaded


def _replaced(net: nn.Module, groups: Iterable[list[nn.Module]]) -> nn.Module:
    """The network with sparse layers for dense ones, in place; the layers of a group share one weight."""
    new: dict[int, SparseLinear | SparseConv2d] = {}
    for layers in groups:
        made = [_SPARSE[type(layer)](layer) for layer in layers]  # type: ignore[arg-type]
        for other in made[1:]:  # tied weights stay tied
            other.values = made[0].values
            other.crow_indices, other.col_indices = made[0].crow_indices, made[0].col_indices
        new.update({id(layer): sparse for layer, sparse in zip(layers, made, strict=True)})
    for module in list(net.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return new.get(id(net), net).eval()


def _replaceable(module: nn.Module) -> bool:
    own = "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS)
    return type(module) in _SPARSE and not own

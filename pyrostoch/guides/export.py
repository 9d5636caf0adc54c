"""Plain networks with fixed, mostly zero weights: exported from a trained network, or loaded from a state dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.guides.plain import with_weights
from pyrostoch.guides.ratio import free_entries, weight_distributions
from pyrostoch.guides.sparse import SparseConv2d, SparseLinear, csr_bytes
from pyrostoch.layers import Conv2d, Linear
from pyrostoch.model import BayesianModel
from pyrostoch.priors import clean_name
from pyrostoch.protocols import SiteGuide

__all__ = ["load_pruned", "make_sparse", "most_probable"]

# Exactly these types: a subclass may use its weight in another way.
_SPARSE: dict[type, type[SparseLinear] | type[SparseConv2d]] = {
    nn.Linear: SparseLinear,
    Linear: SparseLinear,
    nn.Conv2d: SparseConv2d,
    Conv2d: SparseConv2d,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def most_probable(guide: SiteGuide) -> dict[str, Tensor]:
    """The most probable value of each weight on a grid, with the constants in their places, by site.

    Args:
        guide: A guide whose weights are `Levels`.
    """
    weights = {}
    for name, whole in weight_distributions(guide, "export").items():
        distribution, fixed = free_entries(whole)
        weights[name] = distribution.mode if fixed is None else fixed.put_into(distribution.mode)
    return weights


def make_sparse(net: nn.Module, names: list[str]) -> nn.Module:
    """Replace linear and 2d convolution layers, those whose weight is named, by sparse layers.

    A layer stays dense where that takes less memory, where another kind of module (such as a tied embedding) holds the
    same weight, and where it has hooks, a parametrization or a replaced `forward`.

    Args:
        net: The network, changed in place.
        names: Names of weights, mostly zero.

    Returns:
        The network; a sparse layer if the network is a single layer that was replaced.
    """
    parameters = {clean_name(name): parameter for name, parameter in net.named_parameters()}
    wanted = {id(parameters[name]) for name in names}
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in net.modules():
        for last, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in wanted:
                holders.setdefault(id(parameter), []).append((module, last))
    groups = []
    for places in holders.values():
        weight = places[0][0]._parameters[places[0][1]]
        if weight is None or not all(last == "weight" and _replaceable(module) for module, last in places):
            continue
        if csr_bytes(weight) >= weight.numel() * weight.element_size():
            continue
        groups.append([module for module, _ in places])
    return _replaced(net, groups)


def load_pruned(net: nn.Module, state_dict: Mapping[str, Any]) -> nn.Module:
    """Load the network that `Pruning.export` returned from its saved state dict.

    Args:
        net: A plain dense network of the same architecture, or a `BayesianModel` of one; its weights do not matter. It
            is copied and not changed.
        state_dict: The state dict of the exported network, with sparse or only dense layers, fine-tuned or not.

    Returns:
        A copy of the network with these weights, on the device and in the dtype of `net`, in evaluation mode, with
        `SparseLinear` and `SparseConv2d` where the state dict has them.

    Raises:
        TypeError: The network is not a module, or the state dict not a mapping.
        ValueError: A layer of the state dict is missing in the network or has another shape or kind there, or a layer
            of the network is missing in the state dict. The message names it.

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
            f"load_pruned: expected the state dict of an exported network, got {type(state_dict).__name__}; pass "
            "what safetensors.torch.load_file or torch.load returns for a file, or a module's .state_dict()"
            f"{see('how-to/prune_and_export')}"
        )
    copied = with_weights(net.net if isinstance(net, BayesianModel) else net, {})
    dense_keys, modules = copied.state_dict().keys(), dict(copied.named_modules(remove_duplicate=False))
    groups: dict[int, list[nn.Module]] = {}
    for key in state_dict:
        name, _, last = key.rpartition(".")
        if last != "crow_indices" or key in dense_keys:
            continue
        module = modules.get(name)
        if module is None:
            raise ValueError(
                f"load_pruned: the state dict has a sparse layer {name!r}, but the network has no such layer; it has "
                f"{name_list(other for other in modules if other)}"
            )
        if not _replaceable(module):
            raise ValueError(
                f"load_pruned: expected a linear or 2d convolution layer without hooks at {name!r}, where the state "
                f"dict has a sparse layer, got {type(module).__name__}"
                f"{see('how-to/prune_and_export')}"
            )
        tied = groups.setdefault(id(module.weight), [])
        if not any(module is other for other in tied):
            tied.append(module)
    with torch.no_grad():
        for tied in groups.values():
            tied[0].weight.zero_()  # type: ignore[operator]
    loaded = _replaced(copied, groups.values())
    try:
        loaded.load_state_dict(state_dict)
    except RuntimeError as error:
        faults = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines()[1:])
        raise ValueError(f"load_pruned: the state dict is that of another architecture: {faults}") from error
    return loaded


def _replaced(net: nn.Module, groups: Iterable[list[nn.Module]]) -> nn.Module:
    """The network with dense layers replaced by sparse ones, in place; the layers of a group share one weight."""
    new: dict[int, SparseLinear | SparseConv2d] = {}
    for layers in groups:
        sparse_layers = [_SPARSE[type(layer)](layer) for layer in layers]  # type: ignore[arg-type]
        first = sparse_layers[0]
        for other in sparse_layers[1:]:  # tied weights stay tied
            other.values = first.values
            other.crow_indices, other.col_indices = first.crow_indices, first.col_indices
        new.update({id(layer): sparse for layer, sparse in zip(layers, sparse_layers, strict=True)})
    for module in list(net.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]
    return new.get(id(net), net).eval()


def _replaceable(module: nn.Module) -> bool:
    modified = "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS)
    return type(module) in _SPARSE and not modified

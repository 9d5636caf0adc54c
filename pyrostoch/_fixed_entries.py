"""Entries of weights that torch holds constant: padding rows of embeddings, and what `torch.nn.utils.prune` cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

__all__ = ["FixedEntries", "fixed_entries", "partly_fixed"]


@dataclass(frozen=True, eq=False)
class FixedEntries:
    """Which entries of a weight are constant, and their values; both broadcast to the weight's shape.

    Args:
        mask: True where an entry is fixed.
        value: The constants; where the mask is False they mean nothing.
    """

    mask: Tensor
    value: Tensor

    def put_into(self, weight: Tensor) -> Tensor:
        """A weight with the constants in place of its own entries; no gradient passes through them.

        Args:
            weight: The weight.

        Example:
            >>> FixedEntries(torch.tensor([True, False]), torch.zeros(())).put_into(torch.ones(2))
            tensor([0., 1.])
        """
        return torch.where(self.mask, self.value.to(weight.dtype), weight)


def partly_fixed(net: nn.Module) -> frozenset[str]:
    """Names of the parameters of which torch holds some entries constant, wherever the network uses them.

    The padding row of an embedding whose weight is also that of another layer is trained through that layer, so it is
    not constant.

    Args:
        net: The network.

    Example:
        >>> net = nn.Sequential(nn.Embedding(5, 2, padding_idx=0), nn.Linear(2, 5))
        >>> sorted(partly_fixed(net))
        ['0.weight']
        >>> net[1].weight = net[0].weight
        >>> sorted(partly_fixed(net))
        []
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in net.modules():
        for last, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, last))
    return frozenset(
        name
        for name, parameter in net.named_parameters()
        if all(_kind(module, last) for module, last in places[id(parameter)])
        and len({_kind(module, last) for module, last in places[id(parameter)]}) == 1
    )


def fixed_entries(net: nn.Module, name: str) -> FixedEntries:
    """The constant entries of a parameter of `partly_fixed`, as they are now.

    Args:
        net: The network.
        name: Name of the parameter.

    Example:
        >>> fixed_entries(nn.Embedding(3, 2, padding_idx=-1), "weight").mask.flatten().tolist()
        [False, False, True]
    """
    path, _, last = name.rpartition(".")
    module = net.get_submodule(path)
    weight = module._parameters[last]
    if weight is None:
        raise ValueError(f"parameter {name!r}: the network has lost it")
    constants = weight.detach()
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
        rows = torch.arange(len(constants), device=constants.device)[:, None]
        return FixedEntries(torch.eq(rows, module.padding_idx), constants[module.padding_idx])
    mask: Tensor = getattr(module, f"{last.removesuffix('_orig')}_mask")
    return FixedEntries(torch.eq(mask, 0), constants)


def _kind(module: nn.Module, last: str) -> str:
    """How a module holds entries of a parameter constant, as text; empty where it does not."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and last == "weight" and module.padding_idx is not None:
        return f"padding row {module.padding_idx}"
    # torch.nn.utils.prune keeps the weight as <name>_orig, and multiplies it by <name>_mask before each call.
    pruned = last.endswith("_orig") and isinstance(getattr(module, f"{last.removesuffix('_orig')}_mask", None), Tensor)
    hooks = module._forward_pre_hooks.values()
    return "pruned" if pruned and any(isinstance(hook, BasePruningMethod) for hook in hooks) else ""

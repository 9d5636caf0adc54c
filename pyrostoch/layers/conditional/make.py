"""Turn layers of an existing network into conditional ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal

from torch import nn

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch.layers.conditional.combine import Combination
from pyrostoch.layers.conditional.conditional import Conditional
from pyrostoch.layers.convert import check_replaceable, chosen_modules, replace_module

__all__ = ["make_conditional"]


def make_conditional(
    net: nn.Module,
    names: str | Iterable[str],
    num_classes: int,
    *,
    where: Literal["input", "output"] = "output",
    combine: Combination = "shared",
) -> nn.Module:
    """Give every class a copy of layers of a network, deterministic or stochastic; see `Conditional`.

    All classes start from the layer's weights. Set `layer.selection` for unknown labels, or give selections to
    `fit_two_steps`.

    Args:
        net: The network, which is changed.
        names: Names of the modules, such as `"conv1"`.
        num_classes: Number of classes.
        where: What a selection multiplies: the `"input"`, or the `"output"`.
        combine: How several classes become one distribution.

    Returns:
        The network.

    Raises:
        ValueError: There is no such module, or it cannot be replaced without losing something: hooks, a tied parameter,
            another name, that it is fixed, or no parameter in which classes could differ.

    Example:
        >>> import torch
        >>> net = make_conditional(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "0", 5)
        >>> type(net[0]).__name__, net[0](torch.zeros(2, 3), labels=torch.tensor([4, 0])).shape
        ('Conditional', torch.Size([2, 4]))
    """
    check_count("make_conditional num_classes", num_classes, 2)
    hint = see("how-to/conditional_layers")
    if not names:
        raise ValueError(f"make_conditional names: expected at least one module, got none{hint}")
    modules = chosen_modules(net, names, "make_conditional", hint)
    for name, module in modules.items():
        check_replaceable(net, name, module, "make_conditional", hint)
        if any(isinstance(part, Conditional) for part in module.modules()):
            raise ValueError(f"make_conditional: {name!r} is conditional already, or holds such a layer{hint}")
        if not any(True for _ in module.parameters()):
            raise ValueError(
                f"make_conditional: {name!r} is a {type(module).__name__} without parameters, in which classes could "
                f"differ; choose another{hint}"
            )
    for name, module in modules.items():
        layer = Conditional(lambda module=module: copy.deepcopy(module), num_classes, where=where, combine=combine)  # type: ignore[misc]
        replace_module(net, name, layer.train(module.training))
    return net

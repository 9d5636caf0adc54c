"""Parameters that are fixed for a part of a training, and trainable again behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from pyrostoch.model import BayesianModel

__all__ = ["fixed", "keeping_statistics", "parameters_below"]


def parameters_below(model: BayesianModel, guide: Any, prefixes: tuple[str, ...]) -> list[nn.Parameter]:
    """The parameters of some of a network's modules, and those of the guide for the weights in them.

    Args:
        model: The model.
        guide: Its guide; of one that does not tell its parameters by site, none are found.
        prefixes: How names of their parameters and sites start, such as `("conv1.",)`.
    """
    found = [p for name, p in model.net.named_parameters() if name.startswith(prefixes)]
    for site in getattr(model, "sites", {}):
        if site.startswith(prefixes) and hasattr(guide, "parameters_for"):
            found += guide.parameters_for(site).values()
    return found


@contextlib.contextmanager
def fixed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block parameters are not trained; behind it those are that were before.

    Args:
        parameters: The parameters.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with fixed(layer.parameters()):
        ...     layer.weight.requires_grad
        False
        >>> layer.weight.requires_grad
        True
    """
    before = [(p, p.requires_grad) for p in parameters]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, trained in reversed(before):  # where one is given twice, its first state counts
            parameter.requires_grad_(trained)


@contextlib.contextmanager
def keeping_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, `fit` keeps the running statistics of batch normalization among these modules.

    Args:
        modules: The modules.
    """
    parts = list(modules)
    try:
        for part in parts:
            part.__dict__["_pyrostoch_keeps_statistics"] = True
        yield
    finally:
        for part in parts:
            part.__dict__.pop("_pyrostoch_keeps_statistics", None)

"""A network without the stochastic layer in front of it, for clean examples and for those that are obfuscated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from pyrostoch._manual import see
from pyrostoch.layers.embody import Prepended
from pyrostoch.model import BayesianModel
from pyrostoch.training.fixed import fixed, keeping_statistics, parameters_below

__all__ = ["LAYER", "bypassed", "check_prepended", "only_the_layer"]

#: Prefix of the stochastic layer's parameters in a network made by `prepend`.
LAYER = ("stochastic.",)


def check_prepended(model: BayesianModel, what: str) -> Prepended:
    """Return the network of a model with a stochastic layer directly in front of it, or raise an error.

    Args:
        model: The model.
        what: What needs it, for the message.

    Raises:
        TypeError: Its network is another one.
        ValueError: There are further layers in front of the stochastic one.
    """
    net = model.net
    if not isinstance(net, Prepended):
        raise TypeError(
            f"{what}: expected a model of layers.embody.prepend(network, layer), whose layer obfuscates the input "
            f"itself, got one of {type(net).__name__}{see('how-to/progressive_training')}"
        )
    if net.layers is not None:
        raise ValueError(
            f"{what}: the stochastic layer reads the output of {type(net.layers).__name__}, so that obfuscated "
            "examples are none that the network takes for its input; leave layers= out of prepend"
            f"{see('how-to/progressive_training')}"
        )
    return net


@contextlib.contextmanager
def bypassed(model: BayesianModel) -> Iterator[None]:
    """Within the block the network reads its inputs as they are, without the stochastic layer in front of it.

    So it is read on clean examples, and on examples that have been obfuscated before.

    Args:
        model: A model of `layers.embody.prepend(network, layer)`.

    Raises:
        TypeError: Its network is another one.
        ValueError: There are further layers in front of the stochastic one.

    Example:
        >>> import torch, pyrostoch as ps
        >>> net = ps.layers.embody.prepend(torch.nn.Linear(3, 2), ps.layers.StochasticAdditive(3, scale=9.0))
        >>> model = BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> x = torch.zeros(4, 3)
        >>> with bypassed(model):
        ...     bool((net(x) == net.network(x)).all())
        True
    """
    net = check_prepended(model, "bypassed")
    before = net.bypassed
    # What is known of how examples and weights are used is that of the whole network, or of the part behind the layer.
    _forget(model)
    try:
        net.bypassed = True
        yield
    finally:
        net.bypassed = before
        _forget(model)


@contextlib.contextmanager
def only_the_layer(model: BayesianModel, guide: nn.Module) -> Iterator[None]:
    """Within the block everything is fixed but the stochastic layer, its selection, and their weights' guide.

    Args:
        model: A model of `layers.embody.prepend(network, layer)`.
        guide: Its guide.
    """
    layer = {id(p) for p in parameters_below(model, guide, LAYER)}
    others = [p for p in (*model.parameters(), *guide.parameters()) if id(p) not in layer]
    network: Any = model.net.network
    with fixed(others), keeping_statistics(network.modules()):
        yield


def _forget(model: BayesianModel) -> None:
    model._usage_cache.clear()
    model._meeting_cache.clear()

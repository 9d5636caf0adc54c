"""The random weights that what a client sends may depend on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from pyrostoch.obfuscate.client import Client
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import FlatInputs

__all__ = ["weights_before"]


def weights_before(client: Client, x: FlatInputs) -> list[str]:
    """The random weights in front of the cut: all but those of modules that are called behind it only.

    Args:
        client: The client.
        x: Some examples, as `client.read` returns them.

    Example:
        >>> import pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(3, 3), ps.layers.StochasticAdditive(3, scale=0.5), nn.Linear(3, 2))
        >>> priors = {"0.weight": ps.priors.Normal(), "2.weight": ps.priors.Normal()}
        >>> model = ps.BayesianModel(net, prior=priors, likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> client = Client(model, ps.guides.Additive(model), at="1")
        >>> weights_before(client, torch.zeros(2, 3))
        ['0.weight']
    """
    sites = [name for name, site in client.model.sites.items() if site.role != "scale"]
    modules = dict(client.model.net.named_modules())
    called, at_cut = set[str](), set[str]()

    def note(name: str, module: nn.Module, args: Any) -> None:
        called.add(name)

    handles = [part.register_forward_pre_hook(partial(note, name)) for name, part in modules.items()]
    try:
        with training_mode(False, *client.modules), torch.no_grad(), torch.random.fork_rng():
            list(client.run([x], "mc", done=lambda: at_cut.update(called)))
            called.clear()
            at_cut.clear()
            list(client.run([x], "mc", done=lambda: at_cut.update(called)))
    finally:
        for handle in handles:
            handle.remove()
    owners = {name: name.rpartition(".")[0] for name in sites}
    behind = called - at_cut
    return [name for name in sites if owners[name] not in behind]

"""The network of a guide's means, or of one of its draws, as an ordinary module in which nothing is random."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch._seeds import forked
from pyrostoch.effects import MeanPropagation, SharedSample
from pyrostoch.effects.statistics import drawn_buffers
from pyrostoch.layers import MCDropout
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Prior, clean_name
from pyrostoch.sites import latent_sites, trace_of

__all__ = ["Exportable", "plain_network", "with_weights"]


def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of a network with other weights, as an ordinary module in evaluation mode.

    Nothing in it is random or frozen: parameters that a `BayesianModel` froze can be trained again, and layers of
    `pyrostoch.layers` have no priors anymore, so that they act like torch's.

    Args:
        model: A `BayesianModel`, or the network itself.
        weights: New values by site name (the parameter's name).

    Returns:
        The copy.

    Raises:
        ValueError: A name or shape does not fit the network, or a random weight of the model has no new value.
    """
    net = model
    if isinstance(model, BayesianModel):
        missing = [site.name for site in model.sites.values() if site.role != "scale" and site.name not in weights]
        if missing:
            raise ValueError(
                f"export: no value is given for random weight(s) {name_list(missing)} of the model: the guide that was "
                "pruned does not cover them"
                f"{see('how-to/prune_and_export')}"
            )
        net = model.net
    copied = copy.deepcopy(net)
    parameters = {clean_name(name): parameter for name, parameter in copied.named_parameters()}
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
    for module in copied.modules():
        for last in module.__dict__.pop("_pyrostoch_frozen", ()):
            getattr(module, last).requires_grad_(True)
        priors = module.__dict__.get("priors")
        if isinstance(priors, dict) and priors and all(isinstance(prior, Prior) for prior in priors.values()):
            for last in priors:
                nn.Module.get_parameter(module, last).requires_grad_(True)
            module.priors = {}  # type: ignore[assignment]
    for parameter in copied.parameters():
        parameter.grad = None
    return copied.eval()


def plain_network(model: nn.Module, guide: Any, draw: int | None = None) -> nn.Module:
    """A copy of a model's network with the guide's mean weights, or with one draw of them.

    Args:
        model: The `BayesianModel`.
        guide: A guide whose draws do not depend on data.
        draw: Seed of the draw; the means by default.

    Returns:
        The copy, in evaluation mode, with nothing random in it. Running statistics are those of the guide where it has
        its own.

    Raises:
        TypeError: `model` is no `BayesianModel`.
        ValueError: A layer of the network is random itself (a stochastic neuron, `MCDropout`), or a weight has no mean.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> guide = ps.guides.Additive(model)
        >>> mean = ps.guides.plain_network(model, guide)
        >>> type(mean).__name__, bool(torch.equal(mean.weight, guide.site_distribution("weight").mean))
        ('Linear', True)
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(f"export: expected a BayesianModel, got {type(model).__name__}{see('how-to/take_it_out')}")
    random = [name or type(part).__name__ for name, part in model.net.named_modules() if _draws(part)]
    if random:
        raise ValueError(
            f"export: layer(s) {name_list(random)} are random themselves, so that no weights make an ordinary network; "
            f"Predictor(...).export exports their moments, or their means{see('how-to/take_it_out')}"
        )
    device = next((tensor.device for tensor in guide.parameters()), torch.device("cpu"))
    with torch.no_grad(), forked(device, draw), MeanPropagation() if draw is None else SharedSample():
        trace = trace_of(guide)
    names = {site.name for site in model.sites.values() if site.role != "scale"}
    weights = {name: node["value"] for name, node in latent_sites(trace) if name in names}
    copied = with_weights(model, weights)
    with torch.no_grad():
        for name, value in drawn_buffers(trace).items():
            copied.get_buffer(name).copy_(value)
    return copied


def _draws(part: nn.Module) -> bool:
    """Whether a module draws activations: each such layer says what it is without its noise, or on average."""
    return isinstance(part, MCDropout) or (hasattr(part, "expected") and hasattr(part, "noise_free"))


class Exportable:
    """What guides have in common whose means and draws make ordinary networks."""

    def export(self, model: nn.Module, *, draw: int | None = None) -> nn.Module:
        """A copy of the model's network, an ordinary module, with the mean weights or one draw of them.

        Args:
            model: The `BayesianModel`.
            draw: Seed of the draw; the means by default.

        Returns:
            The copy, in evaluation mode, with nothing random in it.

        Raises:
            ValueError: A layer of the network is random itself; it is named.
        """
        return plain_network(model, self, draw)

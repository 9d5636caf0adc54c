"""Everything that is looked at once before a training run, so that its steps need no checks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrostoch._checks import check_finite, name_list
from pyrostoch._seeds import forked
from pyrostoch.effects import base_distribution
from pyrostoch.effects.usage import Use, weight_usage
from pyrostoch.infer.batches import Batches, to_device
from pyrostoch.likelihoods import Bernoulli, Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.validation import training_mode

__all__ = ["check_data", "check_parties", "check_store", "place"]


def check_parties(model: Any, guide: Any) -> None:
    """Refuse what `fit` cannot train.

    Args:
        model: To be a `BayesianModel`.
        guide: To be a module that holds its own parameters.

    Raises:
        TypeError: One of them is something else.
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(
            f"fit: expected a BayesianModel, got {type(model).__name__}; train any other Pyro model by "
            "pyro.infer.SVI(model, guide, optimizer, pyrostoch.ELBO())"
        )
    if not isinstance(guide, nn.Module):
        raise TypeError(
            "fit: expected a guide that is a torch.nn.Module (pyrostoch.guides.*, or an autoguide of Pyro), got "
            f"{type(guide).__name__}; train a guide function by pyro.infer.SVI(model, guide, optimizer, "
            "pyrostoch.ELBO()). Where nothing is random, pyrostoch.guides.Additive(model) is the empty guide"
        )


def place(model: nn.Module, guide: nn.Module, device: str | torch.device | None) -> torch.device:
    """Move model and guide to a device, or find the one they are on.

    Args:
        model: The model.
        guide: The guide.
        device: Where to, or `None` to leave them.

    Returns:
        The device.

    Raises:
        ValueError: The device does not exist here, or model and guide are on different ones.
    """
    if device is not None:
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; use device='cpu'") from error
        model.to(chosen)
        guide.to(chosen)
    devices = {part: {p.device for p in module.parameters()} for part, module in (("model", model), ("guide", guide))}
    if devices["model"] and not devices["guide"] <= devices["model"]:
        raise ValueError(
            f"fit: expected model and guide on one device, got the model on {_names(devices['model'])} and the guide "
            f"on {_names(devices['guide'])}; give device=, or move both before"
        )
    return next((p.device for module in (model, guide) for p in module.parameters()), torch.device("cpu"))


def check_data(
    model: BayesianModel, guide: nn.Module, batches: Batches, device: torch.device, what: str = "data"
) -> Callable[[Any, Tensor], None] | None:
    """Look at the data once: sizes, finite inputs, targets that the likelihood can have produced.

    The first batch goes through the model once, which leaves buffers and random generators as they were.

    Args:
        model: The model.
        guide: Its guide.
        batches: The data.
        device: Where model and guide live.
        what: What the errors call the data.

    Warns:
        UserWarning: A distribution of mean zero makes the logits, so that nothing can be learned; its site is named.

    Returns:
        A check of a further batch, for data that are not in memory; `None` where all has been looked at.

    Raises:
        TypeError: Targets of a wrong type.
        ValueError: Anything else that does not fit.
    """
    if what == "data" and batches.num_data != model.num_data:
        raise ValueError(
            f"data: expected num_data={model.num_data} examples, as the model was built for, got {batches.num_data}; "
            f"build it with num_data={batches.num_data}, or give all of its training data"
        )
    if len(batches) == 0:
        raise ValueError(
            f"{what}: the loader gives no batch of its {batches.num_data} examples; drop_last=True, perhaps?"
        )
    if what == "data":
        _check_last_batch(model, batches)
    if batches.whole is not None:
        check_finite(f"{what}: inputs x", batches.whole[0])
    generators = [(generator, generator.get_state()) for generator in batches.generators()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with training_mode(False, model, guide), forked(device), torch.no_grad():
            x, y = next(iter(batches.epoch(None, 0)))
            check_finite(f"{what}: inputs x", x)
            x, y = to_device(x, device), to_device(y, device)
            trace = poutine.trace(guide).get_trace(x, y)
            centered = _centered_sites(model, trace) if what == "data" else set()
            with _RecordUsage(centered) as usage:
                distribution = poutine.replay(model.observation, trace=trace)(x)
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for generator, state in generators:
            generator.set_state(state)

    def check(x: Any, y: Tensor) -> None:
        check_finite(f"{what}: inputs x", x)
        _check_target(model, distribution, y.to(device), what)

    _warn_of_centered_output(model, usage.uses)
    model.likelihood.check_shape(distribution, y)
    _check_target(model, distribution, y if batches.whole is None else batches.whole[1].to(device), what)
    return check if batches.whole is None else None


def check_store(model: nn.Module, guide: nn.Module) -> None:
    """Refuse parameters that a model or guide made by `pyro.param`: no module holds them, so no step would move them.

    Args:
        model: The model, run once within an empty parameter store.
        guide: Its guide, likewise.

    Raises:
        ValueError: There are such parameters; they are named.
    """
    known = {id(parameter) for module in (model, guide) for parameter in module.parameters()}
    stray = [name for name, value in pyro.get_param_store().named_parameters() if id(value) not in known]
    if stray:
        raise ValueError(
            f"fit: parameter(s) {name_list(stray)} made by pyro.param live in no module and would not be trained; make "
            "them nn.Parameter of the guide, or train by pyro.infer.SVI"
        )


def _check_target(model: BayesianModel, distribution: Any, y: Tensor, what: str) -> None:
    try:
        model.likelihood.check_target(distribution, y)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _check_last_batch(model: BayesianModel, batches: Batches) -> None:
    """A batch of one example has no variance for a BatchNorm1d to divide by."""
    if batches.batch_size is None or batches.num_data - (len(batches) - 1) * batches.batch_size != 1:
        return
    name = next((name for name, part in model.net.named_modules() if isinstance(part, nn.BatchNorm1d)), None)
    if name is not None:
        raise ValueError(
            f"batch_size={batches.batch_size} leaves a last batch of one example out of {batches.num_data}, which the "
            f"BatchNorm1d {name!r} cannot normalize; choose another batch_size"
        )


class _RecordUsage(Messenger):
    """Analyzes the weight usage of the network called inside it, where sites are asked for, and keeps theirs."""

    def __init__(self, sites: set[str]) -> None:
        super().__init__()
        self.sites = sites
        self.uses: dict[str, tuple[Use, ...]] = {}

    def _pyro_network(self, msg: Any) -> None:
        call = msg["args"][0]
        if self.sites & set(call.sites.values()):
            usage = weight_usage(call.net, call.weights, call.args, call.kwargs)
            self.uses = {call.sites[name]: uses for name, uses in usage.items() if call.sites[name] in self.sites}


def _centered_sites(model: BayesianModel, trace: Any) -> set[str]:
    """Sites whose distribution has mean zero by construction, where the network's output are logits."""
    # By the distribution that turns outputs into a distribution, which a subclass may have changed.
    if type(model.likelihood).distribution not in (Categorical.distribution, Bernoulli.distribution):
        return set()
    distributions = {
        name: base_distribution(node["fn"]) for name, node in trace.nodes.items() if node["type"] == "sample"
    }
    return {name for name in model.sites if getattr(distributions.get(name), "zero_mean", False)}


def _warn_of_centered_output(model: BayesianModel, uses: dict[str, tuple[Use, ...]]) -> None:
    # The log-likelihood is concave in the logits, so its mean over logits spread about the bias is at most that at the
    # bias (Jensen): no input helps. Not so where the same weight also makes what the last layer reads.
    for site, found in uses.items():
        if len(found) == 1 and found[0].output:
            warnings.warn(
                f"fit: the distribution of {site!r} has mean zero and makes the network's output, the logits of a "
                f"{type(model.likelihood).__name__} likelihood: they are symmetric around the bias whatever the input, "
                "and their expected log-likelihood is never above that of the bias alone, so nothing can be learned. "
                f"Give this layer a distribution with a mean, such as guides.PerSite(model, {{'*': "
                f"guides.VarianceOnly, {site!r}: guides.Additive}}), or no prior (prior rule {{{site!r}: None}})",
                UserWarning,
                stacklevel=4,
            )


def _names(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))

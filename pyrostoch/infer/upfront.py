"""Everything that is looked at once before a training run, so that its steps need no checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrostoch._checks import check_finite, name_list
from pyrostoch.infer.batches import Batches, to_device
from pyrostoch.infer.heldout import mode
from pyrostoch.infer.state import forked
from pyrostoch.model import BayesianModel

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
            "pyrostoch.ELBO())"
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
        with mode(False, model, guide), forked(device), torch.no_grad():
            x, y = next(iter(batches.epoch(None, 0)))
            check_finite(f"{what}: inputs x", x)
            x, y = to_device(x, device), to_device(y, device)
            trace = poutine.trace(guide).get_trace(x, y)
            law = poutine.replay(model.observation, trace=trace)(x)
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for generator, state in generators:
            generator.set_state(state)

    def check(x: Any, y: Tensor) -> None:
        check_finite(f"{what}: inputs x", x)
        _check_target(model, law, y.to(device), what)

    model.likelihood.check_shape(law, y)
    _check_target(model, law, y if batches.whole is None else batches.whole[1].to(device), what)
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


def _check_target(model: BayesianModel, law: Any, y: Tensor, what: str) -> None:
    try:
        model.likelihood.check_target(law, y)
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
            f"BatchNorm1d {name!r} cannot normalise; choose another batch_size"
        )


def _names(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))

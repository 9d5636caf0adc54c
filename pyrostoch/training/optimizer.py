"""The optimizer of a run: Adam, or what the user makes; and its state as tensors by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._manual import see
from pyrostoch.training.settings import Settings

__all__ = ["ADAM", "OptimizerFactory", "make_optimizer", "optimizer_tensors", "restore_optimizer"]

#: What Adam keeps of each parameter.
ADAM = ("step", "exp_avg", "exp_avg_sq")

#: Makes an optimizer from parameter groups, each with its learning rate: a class of `torch.optim`, or a
#: `functools.partial` of one with other options.
OptimizerFactory = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]


def make_optimizer(
    guide: nn.Module,
    names: dict[nn.Parameter, str],
    settings: Settings,
    factory: OptimizerFactory | None = None,
) -> torch.optim.Optimizer:
    """Make the optimizer; the guide's logarithms of alpha are a parameter group with its own learning rate.

    Args:
        guide: The guide; its `parameter_groups()["alpha"]`, if it has that method, are the logarithms of alpha.
        names: The trained parameters of model and guide.
        settings: The initial learning rates `lr` and `lr_alpha`.
        factory: Makes the optimizer from the groups; Adam by default.

    Raises:
        TypeError: The factory makes no optimizer, or one whose step needs a function that computes the loss again.
        ValueError: The optimizer has other parameters than those it was given.
    """
    groups = guide.parameter_groups() if hasattr(guide, "parameter_groups") else {}  # type: ignore[operator]
    alphas = {id(parameter) for parameter in groups.get("alpha", ())}
    param_groups = [
        {"params": [p for p in names if id(p) not in alphas], "lr": settings.lr},
        {
            "params": [p for p in names if id(p) in alphas],
            "lr": settings.lr if settings.lr_alpha is None else settings.lr_alpha,
        },
    ]
    optimizer = (torch.optim.Adam if factory is None else factory)([group for group in param_groups if group["params"]])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"fit optimizer: expected a function that makes a torch.optim.Optimizer from parameter groups, got one "
            f"that makes a {type(optimizer).__name__}{see('how-to/ensembles')}"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"fit optimizer: {type(optimizer).__name__} computes the loss several times in a step, and fit draws new "
            f"noise each time; take another one, such as torch.optim.AdamW{see('how-to/ensembles')}"
        )
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if {id(parameter) for parameter in found} != {id(parameter) for parameter in names}:
        raise ValueError(
            f"fit optimizer: expected one of the {len(names)} parameters it is given, got {len(found)} parameters; the "
            "function must use the groups that it is called with"
        )
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """What an optimizer keeps of each parameter, as `optimizer.<kind>.<parameter>`: the tensors themselves.

    Args:
        optimizer: The optimizer.
        names: Name of each parameter.

    Raises:
        TypeError: It keeps something that is no tensor, which could be neither put back nor saved.
    """
    found = {}
    for parameter, name in names.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is None:  # as SGD's buffer without momentum
                continue
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"fit optimizer: expected one that keeps tensors, got {type(optimizer).__name__}, which keeps a "
                    f"{type(value).__name__} of each parameter, {kind!r}, that cannot be put back. Train in a loop of "
                    f"your own: ELBO()(model, guide) is the loss{see('how-to/ensembles')}"
                )
            found[f"optimizer.{kind}.{name}"] = value
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], state: Mapping[str, Tensor]
) -> None:
    """Put back what an optimizer kept of each parameter, as copies.

    Args:
        optimizer: The optimizer, whose state is replaced.
        names: Name of each parameter.
        state: Tensors by name, from `optimizer_tensors`; others are ignored.
    """
    parameters = {name: parameter for parameter, name in names.items()}
    optimizer.state.clear()
    for key, value in state.items():
        prefix, _, rest = key.partition(".")
        kind, _, name = rest.partition(".")
        if prefix == "optimizer" and name in parameters:
            # Adam keeps its step count on the CPU, so that reading it does not wait for the device.
            device = value.device if kind == "step" else parameters[name].device
            optimizer.state[parameters[name]][kind] = value.detach().clone().to(device)

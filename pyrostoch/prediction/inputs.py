"""Inputs of a prediction in parts, on the device where it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrostoch._checks import check_count
from pyrostoch._inputs import count_examples, device_of_inputs, take_examples
from pyrostoch._targets import Target
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import device_of, same_device
from pyrostoch.protocols import FlatInputs, Guide, Model

__all__ = ["compute_device", "split"]


def split(model: Model, x: FlatInputs, y: Target | None, size: int) -> list[tuple[FlatInputs, Target | None]]:
    """Check inputs and targets, and return views of them with `size` examples each, or all where they meet.

    Args:
        model: The model.
        x: Inputs.
        y: Targets, if there are any.
        size: Number of examples of a part.

    Raises:
        ValueError: There are no examples, or not as many inputs as targets.
    """
    size = check_count("batch_size", size)
    in_dims = getattr(model, "in_dims", 0)
    count = count_examples(x, in_dims)
    if count is None:
        return [(x, y)]
    if count == 0:
        raise ValueError("inputs x: expected at least one example, got none")
    if y is not None and ((isinstance(y, Tensor) and y.dim() == 0) or len(y) != count):
        found = "one without axes" if isinstance(y, Tensor) and y.dim() == 0 else len(y)
        raise ValueError(f"targets y: expected a tensor of {count} targets, one per example, got {found}")
    if count > size and isinstance(model, BayesianModel) and model.examples_meet(x, y):
        size = count
    starts = [slice(i, i + size) for i in range(0, count, size)]
    return [(take_examples(x, rows, in_dims), None if y is None else y[rows]) for rows in starts]


def compute_device(x: FlatInputs, model: Model, guide: Guide, device: str | torch.device | None) -> torch.device:
    """The device to compute on: that of the model, where the inputs must be unless `device` is given.

    Args:
        x: Inputs.
        model: The model.
        guide: Its guide.
        device: The device that the user gave.

    Raises:
        ValueError: The inputs are on another device.
    """
    given = device_of_inputs(x)
    found = device_of(model, guide, device)
    if device is None and found is not None and not same_device(found, given):
        raise ValueError(f"inputs x are on {given}, the model is on {found}: give device={str(found)!r} to move them")
    return given if found is None else found

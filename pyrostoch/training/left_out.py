"""Checkpoints without the parameters that the user has fixed: a checksum stands for them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.model import BayesianModel
from pyrostoch.priors import clean_name, fixed_parameters

__all__ = ["check_unchanged", "fixed_text", "leave_out_fixed", "left_out"]


def leave_out_fixed(model: BayesianModel) -> None:
    """Leave the parameters that are fixed now (`requires_grad=False`) out of the files and copies of a model.

    `save`, and the checkpoints of `fit`, then hold what is trained and the checksum of what is not; nor does `fit` copy
    it at the start of an epoch. That is for large pretrained networks, of which the user has a file anyway. A file is
    loaded into a model that was made in the same way around the same fixed parameters; others are refused.

    Args:
        model: The model. Nothing may write into its fixed parameters while it is trained.

    Raises:
        TypeError: It is no `BayesianModel`.
        ValueError: No parameter is fixed.

    Example:
        >>> import pyrostoch as ps, os, tempfile
        >>> net = nn.Sequential(nn.Linear(500, 100), nn.Linear(100, 1))
        >>> _ = net[0].requires_grad_(False)  # a pretrained part
        >>> model = BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> leave_out_fixed(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ps.save(f"{folder}/net.safetensors", model, ps.guides.Additive(model))
        ...     os.path.getsize(f"{folder}/net.safetensors") < 10_000  # of 200,000 bytes
        True
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(f"leave_out_fixed: expected a BayesianModel, got {type(model).__name__}")
    fixed = fixed_parameters(model.net)
    names = tuple(name for name, parameter in model.net.named_parameters() if id(parameter) in fixed)
    if not names:
        raise ValueError(
            f"leave_out_fixed: no parameter of {type(model.net).__name__} is fixed (requires_grad=False); fix them "
            f"before{see('how-to/adapters')}"
        )
    model.__dict__["_left_out"] = names


def left_out(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model's network that `leave_out_fixed` has left out, by name.

    Args:
        model: A model; of one without such parameters there are none.

    Raises:
        ValueError: One of them is trained now.
    """
    found = {name: model.net.get_parameter(name) for name in getattr(model, "_left_out", ())}  # type: ignore
    trained = [name for name, parameter in found.items() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"leave_out_fixed: parameter(s) {name_list(trained)} were fixed when it was called, and are trained now, "
            f"so that they would be in no file; call it again{see('how-to/adapters')}"
        )
    return found


def fixed_text(model: nn.Module) -> list[str]:
    """What stands for the parameters that are left out in the description of a model: a checksum, if there are any.

    Args:
        model: The model.
    """
    tensors = left_out(model)
    if not tensors:
        return []
    checksum = hashlib.sha256()
    for name, tensor in sorted((clean_name(name), tensor) for name, tensor in tensors.items()):
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        numbers = tensor.detach().cpu().contiguous().reshape(-1)
        checksum.update(numbers.view(torch.uint8).numpy().data)
    return [f"fixed parameters left out, of checksum {checksum.hexdigest()[:32]}"]


def check_unchanged(model: nn.Module, before: list[str]) -> None:
    """Raise an error if parameters that are left out have changed.

    Args:
        model: The model.
        before: What `fixed_text` was.

    Raises:
        RuntimeError: They have.
    """
    if fixed_text(model) != before:
        raise RuntimeError(
            f"fit: the fixed parameters of {type(getattr(model, 'net', model)).__name__} have changed during the "
            "epoch (its forward pass writes into them), but leave_out_fixed has left them out, so that no checkpoint "
            f"holds them; make the model without it{see('how-to/adapters')}"
        )

"""Saving and loading a model with its guide; a file that does not fit them exactly is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._version import __version__
from pyrostoch.model import BayesianModel
from pyrostoch.priors import clean_name
from pyrostoch.safefile import CheckpointError, read_file, write_file
from pyrostoch.sites import Site
from pyrostoch.training.state import module_state

__all__ = ["CheckpointError", "check_fits", "describe", "load", "save"]


def save(path: str | Path, model: BayesianModel, guide: nn.Module, **extra: object) -> None:
    """Save a model and its guide in one safetensors file.

    The file holds every parameter and buffer of the network, its priors, its likelihood and the guide, and a
    description by which `load` recognizes the model. Writing is atomic: an existing file is replaced completely or not
    at all.

    Args:
        path: The file; its folder is made if it is missing.
        model: The model.
        guide: Its guide.
        extra: Plain data (numbers, strings, lists, dictionaries) to save with them; `load` returns it.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; an existing file is left as it was.
        TypeError: Something in `extra` is not plain data.

    Example:
        >>> import pyrostoch as ps, tempfile
        >>> model = BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                       likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = ps.guides.Additive(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/net.safetensors", model, guide, accuracy=0.98)
        ...     load(f"{folder}/net.safetensors", model, guide)["extra"]
        {'accuracy': 0.98}
    """
    for name, value in extra.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"save: {name} is of type {type(value).__name__}, which is not plain data ({error}); give numbers, "
                "strings, lists and dictionaries"
            ) from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, module_state(model, guide), {**describe(model, guide), "extra": extra})


def load(path: str | Path, model: BayesianModel, guide: nn.Module) -> dict[str, Any]:
    """Load a file of `save`, or the checkpoint of a training run, into a model and a guide built in the same way.

    Nothing is changed unless everything fits. Model and guide keep their devices and dtypes. Nothing is unpickled, so a
    file from an unknown source cannot run code.

    Args:
        path: The file.
        model: The model to load into.
        guide: The guide to load into.

    Returns:
        The plain data of the file: `"guide"`, `"likelihood"`, `"network"`, `"sites"` (shape and prior of each),
        `"num_data"`, `"versions"`; `"extra"` as given to `save`; and for the checkpoint of a training run `"training"`:
        its epoch, settings and history.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is not a checkpoint, or belongs to another model or guide.

    Example:
        >>> import pyrostoch as ps, tempfile
        >>> def build():
        ...     model = BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                           likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        ...     return model, ps.guides.Additive(model)
        >>> (model, guide), (other, other_guide) = build(), build()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/net.safetensors", model, guide)
        ...     load(f"{folder}/net.safetensors", other, other_guide)["guide"]
        ['Additive()']
        >>> bool((guide.site_distribution("weight").mean == other_guide.site_distribution("weight").mean).all())
        True
    """
    path = Path(path)
    tensors, content = read_file(path)
    check_fits(path, tensors, content, model, guide)
    with torch.no_grad():
        for name, value in module_state(model, guide).items():
            value.copy_(tensors[name])
    return content


def describe(model: BayesianModel, guide: nn.Module) -> dict[str, Any]:
    """A description of a model and its guide, as plain data, by which a checkpoint is compared with them.

    Args:
        model: The model.
        guide: Its guide.
    """
    containers = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)
    return {
        "guide": [
            f"{name + ': ' if name else ''}{type(module).__name__}({module.extra_repr()})"
            for name, module in guide.named_modules()
            if not isinstance(module, containers)
        ],
        "likelihood": model.likelihood.identity(),
        "network": _network_text(model.net),
        "sites": {
            name: {"shape": list(site.init.shape), "prior": _prior_text(model, site)}
            for name, site in model.sites.items()
        },
        "num_data": model.num_data,
        "versions": {"pyrostoch": __version__, "torch": torch.__version__, "pyro": pyro.__version__},
    }


def check_fits(
    path: Path, tensors: dict[str, Tensor], content: dict[str, Any], model: BayesianModel, guide: nn.Module
) -> None:
    """Raise an error if a checkpoint belongs to another model or guide.

    Args:
        path: The file, for the message.
        tensors: The file's tensors.
        content: The file's plain data.
        model: The model to load into.
        guide: The guide to load into.

    Raises:
        CheckpointError: Something differs; the message names it.
    """
    description = describe(model, guide)
    state = module_state(model, guide)
    advice = "build model and guide as they were when it was written, or load another file. Nothing was changed"
    sites = content.get("sites", {})
    missing = [name for name in description["sites"] if name not in sites]
    unknown = [name for name in sites if name not in description["sites"]]
    if missing or unknown:
        raise CheckpointError(
            f"checkpoint {path}: expected the random sites {_names(description['sites'])}, got {_names(sites)} "
            f"(missing {_names(missing)}, unknown {_names(unknown)}); {advice}"
        )
    for name, site in description["sites"].items():
        for field in ("shape", "prior"):
            expected, got = site[field], sites[name].get(field)
            if expected != got:
                raise CheckpointError(
                    f"checkpoint {path}: site {name!r}: expected the {field} {expected}, got {got}; {advice}"
                )
    if not any(name.startswith("guide.") for name in state) and any(name.startswith("guide.") for name in tensors):
        raise CheckpointError(
            f"checkpoint {path}: expected no guide parameters, got some; call the guide once on a batch if it makes "
            "its parameters only then (Pyro's autoguides do), and load again. Nothing was changed"
        )
    for part in ("guide", "likelihood", "network", "num_data"):
        if description[part] != content.get(part):
            expected, got = _text(description[part]), _text(content.get(part))
            raise CheckpointError(f"checkpoint {path}: expected the {part} {expected}, got {got}; {advice}")
    _check_tensors(path, state, tensors, advice)


def _check_tensors(path: Path, state: dict[str, Tensor], tensors: dict[str, Tensor], advice: str) -> None:
    given = {name for name in tensors if name.startswith(("model.", "guide."))}
    missing = [name for name in state if name not in given]
    unknown = sorted(name for name in given if name not in state)
    if missing or unknown:
        raise CheckpointError(
            f"checkpoint {path}: its tensors are not those of this model and guide: missing {_names(missing)}, unknown "
            f"{_names(unknown)}; {advice}"
        )
    for name, value in state.items():
        expected, got = tuple(value.shape), tuple(tensors[name].shape)
        if expected != got:
            raise CheckpointError(f"checkpoint {path}: {name!r}: expected the shape {expected}, got {got}; {advice}")


def _prior_text(model: BayesianModel, site: Site) -> str:
    """The text of a prior; without its parameters if they are learned, since they are then part of the state."""
    learned = site.role != "scale" and any(True for _ in model.prior(site.name).parameters())
    return site.prior.partition("(")[0] if learned else site.prior


def _network_text(net: nn.Module) -> list[str]:
    """A network's modules and tied parameters, since networks that differ in them may have the same tensors."""
    modules = [f"{clean_name(name)}: {type(part).__name__}({part.extra_repr()})" for name, part in net.named_modules()]
    first: dict[int, str] = {}
    ties = []
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            ties.append(f"{clean_name(name)} is {clean_name(first[id(parameter)])}")
    return modules + ties


def _names(names: Iterable[str]) -> str:
    return name_list(names) or "none"


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)

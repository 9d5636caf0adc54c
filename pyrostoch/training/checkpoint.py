"""Saving and loading a model with its guide: everything is compared before anything is changed."""

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
from pyrostoch.model import BayesianModel, Site
from pyrostoch.priors import clean_name
from pyrostoch.safefile import CheckpointError, read_file, write_file
from pyrostoch.training.state import module_state

__all__ = ["CheckpointError", "check_fits", "describe", "load", "save"]


def save(path: str | Path, model: BayesianModel, guide: nn.Module, **extra: Any) -> None:
    """Save a model and its guide in one safetensors file.

    It holds every parameter and buffer of the network, its priors, its likelihood and the guide, and the texts that
    tell one model from another. It is written in one piece: an old file is replaced by the whole new one, or stays.

    Args:
        path: The file; its folder is made where it is missing.
        model: The model.
        guide: Its guide.
        extra: Anything plain (numbers, texts, lists, dictionaries) to be kept with it; `load` gives it back.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; the old file is left as it was.
        TypeError: Something in `extra` is not plain.

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
                "texts, lists and dictionaries"
            ) from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, module_state(model, guide), {**describe(model, guide), "extra": extra})


def load(path: str | Path, model: BayesianModel, guide: nn.Module) -> dict[str, Any]:
    """Load what `save` or a training run has written into a model and guide built in the same way.

    Nothing is changed unless everything fits. Model and guide keep their devices and dtypes. Nothing is unpickled, so a
    file from elsewhere runs no code.

    Args:
        path: The file.
        model: The model to load into.
        guide: The guide to load into.

    Returns:
        What the file says of itself: `"guide"`, `"likelihood"`, `"sites"` (shape and prior of each), `"num_data"`,
        `"versions"`; `"extra"` as given to `save`; and for the checkpoint of a training run `"training"`: its epoch,
        settings and history.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is something else, or belongs to another model or guide.

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
    """What tells a model and its guide from others, as plain data."""
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
    """Refuse a checkpoint that belongs to another model or guide.

    Args:
        path: The file, for the message.
        tensors: Its tensors.
        content: Its plain data.
        model: The model to load into.
        guide: The guide to load into.

    Raises:
        CheckpointError: Something differs; it is named.
    """
    here = describe(model, guide)
    own = module_state(model, guide)
    advice = "build model and guide as they were when it was written, or load another file. Nothing was changed"
    there = content.get("sites", {})
    missing = [name for name in here["sites"] if name not in there]
    surplus = [name for name in there if name not in here["sites"]]
    if missing or surplus:
        raise CheckpointError(
            f"checkpoint {path}: expected the random sites {_names(here['sites'])}, got {_names(there)} (missing "
            f"{_names(missing)}, unknown {_names(surplus)}); {advice}"
        )
    for name, site in here["sites"].items():
        for quality in ("shape", "prior"):
            expected, got = site[quality], there[name].get(quality)
            if expected != got:
                raise CheckpointError(
                    f"checkpoint {path}: site {name!r}: expected the {quality} {expected}, got {got}; {advice}"
                )
    if not any(name.startswith("guide.") for name in own) and any(name.startswith("guide.") for name in tensors):
        raise CheckpointError(
            f"checkpoint {path}: expected no guide parameters, got some; call the guide once on a batch if it makes "
            "its parameters only then (Pyro's autoguides do), and load again. Nothing was changed"
        )
    for part in ("guide", "likelihood", "network", "num_data"):
        if here[part] != content.get(part):
            expected, got = _text(here[part]), _text(content.get(part))
            raise CheckpointError(f"checkpoint {path}: expected the {part} {expected}, got {got}; {advice}")
    _check_tensors(path, own, tensors, advice)


def _check_tensors(path: Path, own: dict[str, Tensor], tensors: dict[str, Tensor], advice: str) -> None:
    given = {name for name in tensors if name.startswith(("model.", "guide."))}
    missing = [name for name in own if name not in given]
    surplus = sorted(name for name in given if name not in own)
    if missing or surplus:
        raise CheckpointError(
            f"checkpoint {path}: its tensors are not those of this model and guide: missing {_names(missing)}, unknown "
            f"{_names(surplus)}; {advice}"
        )
    for name, value in own.items():
        expected, got = tuple(value.shape), tuple(tensors[name].shape)
        if expected != got:
            raise CheckpointError(f"checkpoint {path}: {name!r}: expected the shape {expected}, got {got}; {advice}")


def _prior_text(model: BayesianModel, site: Site) -> str:
    """A prior's text; without its numbers where they are learned, since then they are part of the state."""
    learned = site.role != "scale" and any(True for _ in model.prior(site.name).parameters())
    return site.prior.partition("(")[0] if learned else site.prior


def _network_text(net: nn.Module) -> list[str]:
    """The modules of a network and the parameters it ties: another activation has the same tensors."""
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

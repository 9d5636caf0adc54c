"""Saving and loading a model with its guide; a file that does not fit them exactly is refused."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._descriptions import describe_function, describe_settings, describe_value
from pyrostoch._manual import see
from pyrostoch._version import __version__
from pyrostoch.guides.statistics_owner import note_owner
from pyrostoch.guides.temperature import check_temperatures, marked_temperatures, set_temperatures
from pyrostoch.model import BayesianModel
from pyrostoch.priors import FromDistribution, clean_name
from pyrostoch.safefile import CheckpointError, check_layouts, not_while_written, read_file, write_file
from pyrostoch.sites import Site
from pyrostoch.training.left_out import fixed_text
from pyrostoch.training.resume import read_training
from pyrostoch.training.state import form, module_state, overwrite
from pyrostoch.training.statistics import give_members_statistics

__all__ = ["CheckpointError", "check_fits", "describe", "load", "save"]

# Number of entries in which descriptions differ that are shown.
_SHOWN = 5
# Length of a text that is shown, and of what is before the first difference where it is cut.
_LONGEST, _BEFORE = 400, 80
# The type of each part of a checkpoint's plain data, and of the items of its lists and dictionaries.
_TYPES: dict[str, tuple[type, type | None]] = {
    "guide": (list, str),
    "likelihood": (str, None),
    "network": (list, str),
    "model": (list, str),
    "sites": (dict, dict),
    "num_data": (int, None),
    "temperatures": (dict, None),
    "versions": (dict, str),
    "extra": (dict, None),
}


def save(path: str | Path, model: BayesianModel, guide: nn.Module, **extra: object) -> None:
    """Save a model and its guide in one safetensors file.

    The file holds every parameter and buffer of the network, but for those that `leave_out_fixed` leaves out, its
    priors, its likelihood and the guide, a description by which `load` recognizes the model, and a checksum of all of
    it. Writing is atomic: an existing file is replaced completely or not at all.

    Args:
        path: The file; its folder is made if it is missing.
        model: The model.
        guide: Its guide.
        extra: Plain data (numbers, strings, lists, dictionaries) to save with them; `load` returns it.

    Raises:
        BlockingIOError: A run is writing this file; its process is named.
        OSError: The folder cannot be written to, or the disk is full; an existing file is left as it was.
        TypeError: Something in `extra` is not plain data, or a tensor has a layout or dtype that cannot be saved.

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
            if json.loads(json.dumps(value)) != _as_lists(value):
                raise TypeError("a key of a dictionary is no string")
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"save: {name} is of type {type(value).__name__}, which is not plain data ({error}); give numbers, "
                "strings, lists and dictionaries"
                f"{see('how-to/save_and_load')}"
            ) from error
    path = Path(path)
    give_members_statistics(model, guide)
    with not_while_written(path):
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

    Warns:
        UserWarning: The likelihood is a function that cannot be compared with the one that was saved.

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
    give_members_statistics(model, guide)
    tensors, content = read_file(path)
    check_fits(path, tensors, content, model, guide)
    if "training" in content:
        read_training(path, tensors, content)
    overwrite(module_state(model, guide), tensors)
    set_temperatures(guide, content["temperatures"])
    note_owner(model, guide)
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
            f"{name + ': ' if name else ''}{type(module).__name__}"
            f"({_joined(module.extra_repr(), describe_settings(module)[0])})"
            for name, module in guide.named_modules()
            if not isinstance(module, containers)
        ],
        "likelihood": model.likelihood.identity(),
        "network": _network_text(model.net),
        "model": [*_model_text(model)[0], *fixed_text(model)],
        "sites": {
            name: {"shape": list(site.init.shape), "prior": _prior_text(model, site)}
            for name, site in model.sites.items()
        },
        "num_data": model.num_data,
        "temperatures": marked_temperatures(guide),
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
    _check_types(path, content)
    description = describe(model, guide)
    state = module_state(model, guide)
    check_layouts(state)
    advice = "build model and guide as they were when it was written, or load another file. Nothing was changed"
    sites = content["sites"]
    missing = [name for name in description["sites"] if name not in sites]
    unknown = [name for name in sites if name not in description["sites"]]
    if missing or unknown:
        raise CheckpointError(
            f"checkpoint {path}: expected the random sites {_names(description['sites'])}, got {_names(sites)} "
            f"(missing {_names(missing)}, unknown {_names(unknown)}); {advice}"
            f"{see('how-to/save_and_load')}"
        )
    for name, site in description["sites"].items():
        for field in ("shape", "prior"):
            expected, got = site[field], sites[name].get(field)
            if expected != got:
                here, there = _around_difference(str(expected), str(got))
                raise CheckpointError(
                    f"checkpoint {path}: site {name!r}: expected the {field} {here}, got {there}; {advice}"
                )
    if not any(name.startswith("guide.") for name in state) and any(name.startswith("guide.") for name in tensors):
        raise CheckpointError(
            f"checkpoint {path}: expected no guide parameters, got some; call the guide once on a batch if it makes "
            "its parameters only then (Pyro's autoguides do), and load again. Nothing was changed"
            f"{see('how-to/save_and_load')}"
        )
    for part in ("guide", "likelihood", "network", "model", "num_data"):
        if description[part] != content[part]:
            expected, got = _around_difference(*_differences(description[part], content[part]))
            raise CheckpointError(f"checkpoint {path}: expected the {part} {expected}, got {got}; {advice}")
    try:
        check_temperatures(guide, content["temperatures"])
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: temperatures: {error}; {advice}") from error
    # The other tensors of a run matter only where it is resumed.
    of_run = ("best.", "optimizer.", "rng.") if "training" in content else ()
    _check_tensors(path, state, {n: value for n, value in tensors.items() if not n.startswith(of_run)}, advice)
    not_described = {
        "likelihood": model.likelihood.not_described(),
        "priors": [text for prior in model.priors.values() for text in describe_settings(prior)[1]],
        "penalty": _model_text(model)[1],
        "guide": [text for module in guide.modules() for text in describe_settings(module)[1]],
    }
    for part, unknown_parts in not_described.items():
        if unknown_parts:
            are_those = "are those" if part == "priors" else "is that"
            warnings.warn(
                f"checkpoint {path}: it cannot be told whether its {part} {are_those} of this model: "
                f"{'; '.join(dict.fromkeys(unknown_parts))}. The rest fits; make sure that both are the same",
                UserWarning,
                stacklevel=3,
            )


def _as_lists(value: Any) -> Any:
    """Plain data as JSON gives them back, but for keys that are no strings: tuples are lists."""
    if isinstance(value, (list, tuple)):
        return [_as_lists(item) for item in value]
    return {key: _as_lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def _check_types(path: Path, content: dict[str, Any]) -> None:
    for part, (kind, inner) in _TYPES.items():
        value = content.get(part)
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if type(value) is not kind or (inner is not None and any(type(item) is not inner for item in items)):
            raise CheckpointError(
                f"checkpoint {path}: {part}: expected a {kind.__name__}{f' of {inner.__name__}' if inner else ''}, got "
                f"{str(value)[:200]}; the file was not written by pyrostoch as it is. Nothing was changed"
            )


def _check_tensors(path: Path, state: dict[str, Tensor], given: dict[str, Tensor], advice: str) -> None:
    missing = [name for name in state if name not in given]
    unknown = sorted(name for name in given if name not in state)
    if missing or unknown:
        hint = " (if the network makes it in its first pass, call it once on a batch)" if unknown else ""
        raise CheckpointError(
            f"checkpoint {path}: its tensors are not those of this model and guide: missing {_names(missing)}, unknown "
            f"{_names(unknown)}{hint}; {advice}"
            f"{see('how-to/save_and_load')}"
        )
    for name, value in state.items():
        if form(value) != form(given[name]):
            raise CheckpointError(
                f"checkpoint {path}: {name!r}: expected the {form(value)}, got {form(given[name])}; {advice}"
            )
        # A module keeps its dtype, but numbers of another kind are no values for it.
        floats = value.is_floating_point() and given[name].is_floating_point()
        if not floats and value.dtype != given[name].dtype:
            raise CheckpointError(
                f"checkpoint {path}: {name!r}: expected {value.dtype}, got {given[name].dtype}; {advice}"
            )
        if floats and value.layout == torch.strided:
            converted = given[name].to(value.dtype)
            if bool((torch.isfinite(given[name]) & ~torch.isfinite(converted)).any()):
                raise CheckpointError(
                    f"checkpoint {path}: {name!r}: a value of {given[name].abs().max().item():g} is too large for "
                    f"{value.dtype}; load into a model of another precision. Nothing was changed"
                )


def _prior_text(model: BayesianModel, site: Site) -> str:
    """The text of a prior; without its parameters if they are learned, since they are then part of the state."""
    if site.role == "scale":
        return site.prior
    prior = model.prior(site.name)
    if any(True for _ in prior.parameters()):
        return _joined(site.prior.partition("(")[0], describe_settings(prior)[0])
    # In single precision, since a model may be loaded into one of another precision.
    single = copy.deepcopy(prior).float()
    values: dict[str, object] = {name: value for name, value in single.named_buffers() if value.numel() > 1}
    if isinstance(single, FromDistribution) and not single.is_described_by_numbers:
        values["base"] = single.base
    texts = [describe_value(name, value)[0] for name, value in values.items()]
    return _joined(site.prior, *texts, describe_settings(prior)[0])


def _model_text(model: BayesianModel) -> tuple[list[str], list[str]]:
    """What else of a model decides about its loss, and what of it cannot be described."""
    penalty, unknown = ("none", []) if model.penalty is None else describe_function(model.penalty)
    return [f"penalty {penalty}", f"in_dims {model.in_dims}"], unknown


def _joined(*texts: str) -> str:
    return ", ".join(text for text in texts if text)


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


def _differences(expected: Any, got: Any) -> tuple[str, str]:
    """Two descriptions as text: of lists only the entries that the other one lacks, where there are any."""
    if not isinstance(expected, list):
        return str(expected), str(got)
    here, there = ([entry for entry in a if entry not in b] for a, b in ((expected, got), (got, expected)))
    if (not here and not there) or (len(here) == len(expected) and len(there) == len(got)):
        return ", ".join(expected), ", ".join(got)
    return (_shown(here) if here else "as it is here"), (f"one {_shown(there)}" if there else "one without that")


def _around_difference(expected: str, got: str) -> tuple[str, str]:
    """Two texts; of long ones only the beginning and what is near the first place where they differ."""
    if max(len(expected), len(got)) <= _LONGEST:
        return expected, got
    at = len(os.path.commonprefix([expected, got]))
    start = at - _BEFORE if at - _BEFORE > _BEFORE else 0
    texts = []
    for text in (expected, got):
        head = f"{text[:_BEFORE]}[...]" if start else ""
        end = start + _LONGEST - len(head)
        texts.append(f"{head}{text[start:end]}{'[...]' if end < len(text) else ''}")
    return texts[0], texts[1]


def _shown(entries: list[str]) -> str:
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"with {', '.join(entries[:_SHOWN])}{more}"

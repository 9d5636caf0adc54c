"""Default values for the settings of a run that the user does not give."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyrostoch import data
from pyrostoch._checks import check_choice, name_list
from pyrostoch._manual import see
from pyrostoch._user_file import absolute_name, is_file_name
from pyrostoch.models import NAMES as MODELS
from pyrostoch.models import VGG
from pyrostoch.runs.config import Config, is_image_folder, table_options
from pyrostoch.runs.registry import COMPARED_GUIDES, guide_kind

__all__ = ["choose_device", "fill_defaults", "is_table"]

#: A regression set is trained for about this many steps, and for at least this many epochs.
_REGRESSION_STEPS, _REGRESSION_EPOCHS = 3000, 20


@dataclass(frozen=True)
class _Recipe:
    """Default training settings for a data set and a network."""

    epochs: int
    hidden: tuple[int, ...] = ()
    lr: float = 1e-3
    lr_alpha: float = 0.1


# The settings for the digits were chosen on held-out training examples; the others have not been tuned.
_RECIPES: dict[tuple[str, str], _Recipe] = {
    ("digits", "mlp"): _Recipe(epochs=100, hidden=(100, 100), lr=1e-2),
    ("mnist", "mlp"): _Recipe(epochs=10, hidden=(400, 400)),
    ("mnist", "lenet5"): _Recipe(epochs=10),
    ("cifar10", "mlp"): _Recipe(epochs=10, hidden=(400, 400)),
    ("cifar10", "lenet5"): _Recipe(epochs=20),
    ("images", "mlp"): _Recipe(epochs=20, hidden=(100, 100)),
    ("images", "lenet5"): _Recipe(epochs=20),
    ("uci", "mlp"): _Recipe(epochs=0, hidden=(50, 50), lr=1e-2),
}
#: Data sets that use the settings of another one.
_SAME_RECIPE_AS = {"fashion-mnist": "mnist", "cifar100-coarse": "cifar10", "cifar100-fine": "cifar10"}

#: The default random weights are those of a hidden layer. With a variance-only distribution in the output layer, the
#: logits would be symmetric about their biases, so the network could not learn classes.
_RANDOM = {"lenet5": "dense1.weight", **dict.fromkeys(("vgg", "vgg-narrow"), ",".join(VGG.VARIATIONAL))}


def fill_defaults(kind: str, given: Mapping[str, Any]) -> Config:
    """The settings of a new run: the given ones, and defaults for this data set and network for the others.

    Args:
        kind: `"compare"` or `"train"`.
        given: Settings by their names in `Config`; `None` counts as not given.

    Returns:
        All settings.

    Raises:
        ValueError: A setting is out of range.
        FileNotFoundError: The data set is not found.

    Example:
        >>> config = fill_defaults("train", {"guides": ("variance",), "epochs": 3})
        >>> config.data, config.model, config.random, config.epochs
        ('digits', 'mlp', 'fc2.weight', 3)
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    name = str(chosen.get("data", "digits")).strip()
    if is_table(name):
        _check_options(name, chosen, ("image_size",))
        name, root, family = _table_path(name, chosen), None, "uci"
    elif is_image_folder(name):
        _check_options(name, chosen, ("target", "task", "drop", "categorical"))
        name, root, family = str(Path(name).expanduser().absolute()), None, "images"
    else:
        _check_options(name, chosen, ("target", "task", "drop", "categorical", "test", "image_size"))
        name = name if name.lower().startswith("uci:") else name.lower()
        root = _data_dir(name, chosen.get("data_dir"))
        data.locate(name, root)
        family = name.partition(":")[0].lower()
    model = _model_name(str(chosen.get("model", "mlp")), chosen)
    recipe = _RECIPES.get((_SAME_RECIPE_AS.get(family, family), model)) or _Recipe(epochs=20)
    hidden = tuple(chosen.get("hidden", recipe.hidden))
    batch_size = chosen.get("batch_size", 100)
    defaults: dict[str, Any] = {
        "guides": COMPARED_GUIDES if kind == "compare" else COMPARED_GUIDES[:1],
        "split": 0,
        "random": _default_random(model, hidden, *(str(chosen.get(k, "")) for k in ("stochastic", "conditional"))),
        "prior": "log-uniform",
        "estimator": "local",
        "lr": recipe.lr,
        "lr_alpha": recipe.lr_alpha,
        "init_log_alpha": -3.0,
        "seed": 0,
        "dtype": "float32",
    }
    if "epochs" in chosen:
        defaults["epochs"] = chosen["epochs"]  # the data need not be read for their number
    elif family == "uci":
        if batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number from 1 up, got {batch_size}")
        count = _training_rows(name, root, chosen)
        defaults["epochs"] = max(_REGRESSION_EPOCHS, round(_REGRESSION_STEPS / -(-count // batch_size)))
    else:
        defaults["epochs"] = recipe.epochs
    fixed = {"kind": kind, "data": name, "model": model, "hidden": hidden, "batch_size": batch_size, "data_dir": root}
    if "guides" in chosen:
        chosen["guides"] = tuple(map(absolute_name, chosen["guides"]))
        for guide in filter(is_file_name, chosen["guides"]):
            guide_kind(guide)  # before there is a folder of the run
    chosen["device"] = choose_device(chosen.get("device", "auto"))
    return Config(**{**defaults, **chosen, **fixed})


def _check_options(name: str, chosen: Mapping[str, Any], others: Sequence[str]) -> None:
    """Raise an error for options of another kind of data."""
    if wrong := [option for option in others if chosen.get(option)]:
        kind = "a folder of images" if wrong[0] == "image_size" else "a CSV file, --data mine.csv"
        raise ValueError(f"{wrong[0]}: it is for {kind}, not for {name!r}")


def _model_name(name: str, chosen: Mapping[str, Any]) -> str:
    """The name of a network; of one in a file of the user's own with the absolute path."""
    if not is_file_name(name):
        return check_choice("model", name, MODELS)
    file = name.rpartition(":")[0]
    if not Path(file).expanduser().is_file():
        raise FileNotFoundError(f"model: {file}: no such file{see('how-to/own_network')}")
    if not chosen.get("random"):
        raise ValueError(
            f"model {name!r}: say which of its weights are random, by patterns of the names of its parameters, such as "
            "--random 'fc2.weight' or '*.weight'"
        )
    return absolute_name(name)


def is_table(name: str) -> bool:
    """Whether the name of a data set is the path of a CSV or Parquet file.

    Args:
        name: The name.
    """
    return name.lower().endswith((".csv", ".tsv", ".parquet", ".pq"))


def _table_path(name: str, chosen: Mapping[str, Any]) -> str:
    """The absolute path of a CSV file, so that a run can be evaluated from any folder."""
    if not chosen.get("target"):
        raise ValueError(f"data {name!r}: say which column is the target, --target NAME")
    return str(Path(name).expanduser().absolute())


def _training_rows(name: str, root: str | None, chosen: Mapping[str, Any]) -> int:
    """Number of training rows of a UCI set or a CSV file."""
    if not is_table(name):
        return len(data.load(name, root, split=chosen.get("split", 0)).x_train)
    return len(data.load_table(name, **table_options(chosen, chosen.get("split", 0))).split.x_train)


def _default_random(model: str, hidden: tuple[int, ...], stochastic: str, conditional: str) -> str:
    """Names of the default random weights; in a layer that is made stochastic or conditional they are others."""
    names = _RANDOM.get(model) or ("fc2.weight" if len(hidden) > 1 else "fc1.weight")
    kernels, classes = ({part.strip() for part in text.split(",")} for text in (stochastic, conditional))
    found = []
    for layer, _, last in (name.rpartition(".") for name in names.split(",")):
        found.append(f"{layer}{'.classes.*' * (layer in classes)}{'.kernel' * (layer in kernels)}.{last}")
    return ",".join(found)


def choose_device(name: str) -> str:
    """Check the name of a device, and replace `"auto"` by the GPU if there is one, else by the CPU.

    Args:
        name: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:<n>"`.

    Returns:
        The device's name.

    Raises:
        ValueError: The name is unknown, or this machine has no such device.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    known = ("auto", "cpu", "cuda")
    kind, colon, index = name.partition(":")
    if colon and not (kind == "cuda" and index.isdecimal()):
        raise ValueError(f"device: expected one of {name_list(known)} or 'cuda:<n>', got {name!r}")
    check_choice("device", kind, known)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return "cuda" if count else "cpu"
    if kind == "cuda" and int(index or 0) >= count:
        found = f"{count} CUDA device(s)" if count else "no CUDA device"
        raise ValueError(f"device {name!r}: {found} found by torch {torch.__version__}; use --device cpu")
    return name


def _data_dir(name: str, given: str | None) -> str | None:
    """The data folder as an absolute path, so that a run can be evaluated from any folder; `None` for bundled data."""
    root = given or os.environ.get("PYROSTOCH_DATA")
    return None if name.lower() == "digits" or not root else str(Path(root).expanduser().absolute())

"""The settings of a run, as they are saved in its record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrostoch._checks import check_choice, check_positive, name_list, suggest
from pyrostoch._user_file import is_file_name
from pyrostoch.data import NAMES as DATA_SETS
from pyrostoch.infer.elbo import ESTIMATORS
from pyrostoch.models import NAMES as MODELS
from pyrostoch.models.from_file import parse_arguments
from pyrostoch.runs.registry import check_guide_name, parse_prior

__all__ = ["DTYPES", "Config", "check_type", "is_image_folder", "table_options"]

DTYPES = ("float32", "float64")
# Share of the rows of a CSV file that is its test part by default.
_TEST_FRACTION = 0.2

#: By type of a field: its description for error messages, and a check of a value.
_FIELD_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a string", lambda value: isinstance(value, str)),
    "str | None": ("a string or null", lambda value: value is None or isinstance(value, str)),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    "tuple[str, ...]": ("strings", lambda value: all(isinstance(item, str) for item in _items(value))),
    "tuple[int, ...]": ("whole numbers", lambda value: all(type(item) is int for item in _items(value))),
}


@dataclass(frozen=True)
class Config:
    """The settings of a run.

    Args:
        kind: The command that made the run, `"compare"` or `"train"`.
        guides: Names of the guides to train, in this order; a file and a class in it, `"my_guides.py:MyGuide"`, too.
        data: Name of the data set, or path of a CSV file.
        split: Number of the train/test split, for UCI sets; the seed of the split of a CSV file.
        model: `"mlp"`, `"lenet5"`, `"vgg"`, `"vgg-narrow"`, or a file and a function in it, `"nets.py:make_net"`.
        hidden: Widths of the hidden layers of an MLP; empty for other networks.
        random: Name patterns of the random weights, separated by commas; `"none"` for none, beside stochastic layers.
        prior: Prior of the random weights, as text for `parse_prior`.
        estimator: Name of an estimator of `pyrostoch.ELBO`: `"local"`, `"shared"`, `"flipout"`, `"marginal"`, ...
        epochs: Passes through the training data.
        batch_size: Examples per step.
        lr: Initial learning rate, which falls linearly to 0.
        lr_alpha: Initial learning rate of the log alphas.
        init_log_alpha: Initial value of the log alphas.
        seed: Seed of the initial network, the order of the data, the noise in training and the draws for the scores.
        device: `"cpu"`, `"cuda"`, ...
        dtype: `"float32"` or `"float64"`.
        stochastic: Names of the layers that are made stochastic, separated by commas; empty for none.
        rate_weight: Weight of the rate of their activations in the loss.
        conditional: Names of the layers of which every class has its own, separated by commas; empty for none.
        target: Name of the column of the target, where the data are a CSV file; empty for other data.
        task: `"classification"` or `"regression"`, for a target that is not what it looks like; empty for others.
        drop: Names of columns to leave out, separated by commas.
        categorical: Names of columns of numbers that stand for categories, separated by commas.
        test: What the test part of a CSV file is: a fraction (0.2 by default), the name of a column, or the path of
            another file; of a folder of images, a fraction.
        image_size: Height and width to which images of a folder are resized; 0 for none.
        model_args: Further arguments of that function, such as `"hidden=50"`.
        data_dir: Folder of the data. It does not change the results, so it may differ when a run is resumed.

    Raises:
        ValueError: A setting is out of range; the message names it.

    Example:
        >>> config = Config("train", ("additive",), "digits", 0, "mlp", (50, 50), "fc2.weight", "log-uniform", "local",
        ...                 2, 100, 0.01, 0.1, -3.0, 0, "cpu", "float32")
        >>> Config.from_dict(config.to_dict()) == config
        True
    """

    kind: str
    guides: tuple[str, ...]
    data: str
    split: int
    model: str
    hidden: tuple[int, ...]
    random: str
    prior: str
    estimator: str
    epochs: int
    batch_size: int
    lr: float
    lr_alpha: float
    init_log_alpha: float
    seed: int
    device: str
    dtype: str
    data_dir: str | None = None
    stochastic: str = ""
    rate_weight: float = 1.0
    conditional: str = ""
    target: str = ""
    task: str = ""
    drop: str = ""
    categorical: str = ""
    test: str = ""
    model_args: tuple[str, ...] = ()
    image_size: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_type(field.name, getattr(self, field.name))
        check_choice("kind", self.kind, ("compare", "train"))
        for name in self.guides:
            check_guide_name(name)
        if not self.guides or len(set(self.guides)) < len(self.guides):
            raise ValueError(f"guides: expected at least one, each once, got {name_list(self.guides) or 'none'}")
        if not is_file_name(self.model):
            check_choice("model", self.model, MODELS)
            if self.model_args:
                raise ValueError(
                    f"model_arg: it is for a network of your own, --model FILE.py:NAME, not {self.model!r}"
                )
        parse_arguments(self.model_args)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("dtype", self.dtype, DTYPES)
        parse_prior(self.prior)
        for name in ("epochs", "batch_size", "lr", "lr_alpha"):
            check_positive(name, getattr(self, name))
        if not math.isfinite(self.rate_weight) or self.rate_weight < 0:
            raise ValueError(f"rate_weight: expected a number from 0 up, got {self.rate_weight}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected a whole number from 0 up, got {self.seed}")
        if not math.isfinite(self.init_log_alpha):
            raise ValueError(f"init_log_alpha: expected a finite number, got {self.init_log_alpha}")
        if self.model != "mlp" and self.hidden:
            raise ValueError(f"hidden={list(self.hidden)}: only model 'mlp' has hidden widths, got {self.model!r}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: expected positive widths, got {list(self.hidden)}")
        if not self.patterns and not (self.random == "none" and (self.stochastic or self.conditional)):
            raise ValueError(
                "random: expected a name pattern of the random weights, such as fc2.weight, got none; 'none' needs a "
                "layer that is made stochastic, or conditional"
            )

    @property
    def patterns(self) -> list[str]:
        """The patterns in `random`, as a list; empty for `"none"`."""
        return [] if self.random == "none" else _names(self.random)

    @property
    def stochastic_layers(self) -> list[str]:
        """The names in `stochastic`, as a list."""
        return _names(self.stochastic)

    @property
    def conditional_layers(self) -> list[str]:
        """The names in `conditional`, as a list."""
        return _names(self.conditional)

    @property
    def image_options(self) -> dict[str, Any]:
        """The settings of a folder of images, as `data.load_images` takes them."""
        try:
            test = float(self.test or _TEST_FRACTION)
        except ValueError:
            raise ValueError(f"test: expected a fraction for a folder of images, got {self.test!r}") from None
        return {"image_size": self.image_size or None, "test": test, "seed": self.split}

    @property
    def table_options(self) -> dict[str, Any]:
        """The settings of a CSV file, as `data.load_table` takes them."""
        return table_options(vars(self), self.split)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data for JSON; tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Config:
        """The settings from the dictionary that `to_dict` returned.

        Args:
            content: Settings by name; those with a default may lack, as in records of older versions.

        Returns:
            The settings.

        Raises:
            ValueError: A setting is unknown, missing, or of the wrong type; the message names it.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"settings: expected a dictionary, got {type(content).__name__}")
        fields = dataclasses.fields(cls)
        names = [field.name for field in fields]
        unknown = [name for name in content if name not in names]
        if unknown:
            raise ValueError(f"settings: unknown {name_list(unknown)}{suggest(str(unknown[0]), names)}")
        # Settings with a default are newer than others, and lack in older records.
        missing = [f.name for f in fields if f.name not in content and f.default is dataclasses.MISSING]
        if missing:
            raise ValueError(f"settings: missing {name_list(missing)}")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**settings)

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from those of another run; `data_dir` is not compared.

        Args:
            other: The other settings.

        Returns:
            Pairs of the value here and the other value, by name.
        """
        names = (field.name for field in dataclasses.fields(self) if field.name != "data_dir")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def is_image_folder(name: str) -> bool:
    """Whether the name of a data set is a folder: of images, since all others have names.

    Args:
        name: The name.
    """
    return name.lower() not in DATA_SETS and not name.lower().startswith("uci:") and Path(name).expanduser().is_dir()


def check_type(name: str, value: object) -> None:
    """Raise a `ValueError` for a value of another type than a setting has.

    Args:
        name: Name of the setting.
        value: The value.
    """
    description, is_valid = _FIELD_TYPES[str(Config.__dataclass_fields__[name].type)]
    if not is_valid(value):
        raise ValueError(f"{name}: expected {description}, got {value!r}")


def table_options(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What `data.load_table` takes, from settings as the command line has them.

    Args:
        settings: The texts by name; those that lack have their default.
        seed: Seed of the split.

    Example:
        >>> table_options({"target": "price", "drop": "id, name"}, 0)["drop"]
        ['id', 'name']
    """
    text = str(settings.get("test") or _TEST_FRACTION)
    try:
        test: float | str = float(text)
    except ValueError:
        test = text
    return {
        "target": settings["target"],
        "test": test,
        "task": settings.get("task") or None,
        "drop": _names(settings.get("drop", "")),
        "categorical": _names(settings.get("categorical", "")),
        "seed": seed,
    }


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _items(value: Any) -> Any:
    return value if isinstance(value, tuple) else (object(),)

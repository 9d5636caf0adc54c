"""The settings of a run as a TOML file, from which it can be repeated."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see
from pyrostoch.runs.config import Config, check_type
from pyrostoch.safefile import temporary_name

__all__ = ["SETTINGS_FILE", "read_settings", "write_settings"]

SETTINGS_FILE = "config.toml"

# Beside the names of `Config`: what the options of the command line are called.
_OTHER_NAMES = {"guide": "guides", "model_arg": "model_args"}
# Texts with names separated by commas, which may be lists in a file.
_LISTS = ("random", "stochastic", "conditional", "drop", "categorical")


def write_settings(folder: Path, config: Config) -> None:
    """Write the settings of a run into its folder, atomically.

    Args:
        folder: The folder.
        config: The settings.
    """
    lines = [f"# Settings of this run, which `pyrostoch {config.kind} --config` with this file repeats.", ""]
    # JSON's strings, numbers and lists of these are TOML's, too.
    lines += [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in config.to_dict().items()
        if value is not None
    ]
    path = folder / SETTINGS_FILE
    temporary = temporary_name(path)
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_settings(path: str | Path, kind: str) -> dict[str, Any]:
    """The settings in a file, by their names in `Config`; those that lack are left to their defaults.

    Args:
        path: The file.
        kind: The command that takes them, `"compare"` or `"train"`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no TOML file, has unknown settings, or is of the other command.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "run.toml"
        ...     _ = path.write_text('guide = "variance"' + chr(10) + "epochs = 3")
        ...     read_settings(path, "train")
        {'guides': ('variance',), 'epochs': 3}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"config {path}: no such file{see('how-to/own_network')}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path}: it is no TOML file: {error}") from error
    known = [*Config.__dataclass_fields__, *_OTHER_NAMES]
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ValueError(f"config {path}: unknown setting {key!r}; there are {_names(known)}{suggest(name, known)}")
        name = _OTHER_NAMES.get(name, name)
        if name in found:
            raise ValueError(f"config {path}: {name!r} is given twice")
        if name in _OTHER_NAMES.values() and isinstance(value, str):
            value = [value]
        if isinstance(value, list) and name in _LISTS and all(isinstance(item, str) for item in value):
            value = ",".join(value)
        found[name] = tuple(value) if isinstance(value, list) else value
        try:
            check_type(name, found[name])
        except ValueError as error:
            raise ValueError(f"config {path}: {error}") from error
    if (saved := found.pop("kind", kind)) != kind:
        raise ValueError(f"config {path}: it holds settings of `pyrostoch {saved}`, not of `pyrostoch {kind}`")
    return found


def _names(known: list[str]) -> str:
    return name_list(sorted(set(known) - {*_OTHER_NAMES.values(), "kind"}), len(known))

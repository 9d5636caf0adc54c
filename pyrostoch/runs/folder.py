"""The folder of a run: found or made, tried before training, and written in one piece."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from pyrostoch._checks import suggest

__all__ = [
    "RECORD",
    "SCHEMA",
    "RunError",
    "claim",
    "latest",
    "named",
    "read_record",
    "siblings",
    "try_writing",
    "write_record",
]

RECORD = "results.json"
SCHEMA = 1

# As much as a small checkpoint: what is too little for that is full.
_PROBE = b"\0" * 262_144


class RunError(ValueError):
    """A folder holds no run, or not the one that is wanted."""


def claim(base: Path) -> Path:
    """Make a new folder: the one named, or where it is taken the first free of `<name>-2`, `<name>-3`, ...

    Args:
        base: The folder wanted.

    Returns:
        The folder made.

    Raises:
        OSError: It cannot be made.
    """
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if folder.is_dir() and not any(folder.iterdir()):
            return folder
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _unusable(folder, error) from error


def latest(base: Path) -> Path:
    """The last of the folders that `claim` has made under this name; `base` itself where there is none.

    Args:
        base: The folder first wanted.

    Returns:
        The folder.
    """
    return siblings(base)[-1]


def siblings(base: Path) -> list[Path]:
    """The folders that `claim` has made under this name, the oldest first; `base` even where it is not there.

    Args:
        base: The folder first wanted.

    Returns:
        The folders.
    """
    folders = [base]
    while (after := base.with_name(f"{base.name}-{len(folders) + 1}")).is_dir():
        folders.append(after)
    return folders


def named(run: str) -> Path:
    """The folder of a finished run, from its path, that of its `results.json`, or its name below `runs/`.

    Args:
        run: What the user calls it.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    path = Path(run).expanduser()
    if path.name == RECORD:
        path = path.parent
    for folder in (path, Path("runs") / path):
        if folder.is_dir():
            return folder
    known = sorted(folder.parent.name for folder in Path("runs").glob(f"*/{RECORD}"))
    listing = f"runs/ holds {', '.join(known)}" if known else "runs/ holds none"
    raise FileNotFoundError(f"run {run!r}: there is no such folder; {listing}{suggest(path.name, known)}")


def try_writing(folder: Path) -> None:
    """Find out before a long run whether its folder takes files.

    Args:
        folder: The folder, which is made where it is missing.

    Raises:
        OSError: It is read-only, or its disk is full.
    """
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(probe, _PROBE)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
    except OSError as error:
        raise _unusable(folder, error) from error


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write a run's record whole or not at all; numbers that are not finite become texts, as JSON has none.

    Args:
        folder: The run's folder.
        record: The record.

    Raises:
        OSError: It cannot be written; the old record is left.
    """
    text = json.dumps(_finite(record), indent=1, allow_nan=False, ensure_ascii=False)
    temporary = folder / f".{RECORD}.tmp"
    try:
        _write(temporary, text.encode())
        os.replace(temporary, folder / RECORD)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unusable(folder, error, RECORD) from error


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run.

    Args:
        folder: The run's folder.

    Returns:
        The record: its schema and the outline of its guides are as they should be.

    Raises:
        RunError: There is none, or it is damaged or of something else.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"run {folder}: no {RECORD} in this folder, so it holds no run; give the folder of one")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"run {folder}: {RECORD} is damaged ({error}); restore it from a copy, or run again") from error
    if not isinstance(record, dict) or "schema" not in record or not isinstance(record.get("config"), dict):
        raise RunError(f"run {folder}: {RECORD} is not the record of a run of pyrostoch; give the folder of one")
    if record["schema"] != SCHEMA:
        raise RunError(
            f"run {folder}: {RECORD} has schema {record['schema']!r}, this version reads {SCHEMA}; use the version of "
            "pyrostoch that wrote it"
        )
    entries = record.get("guides")
    whole = isinstance(entries, list) and all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries)
    if not whole or not isinstance(record.get("data"), dict) or "seconds" not in record:
        raise RunError(f"run {folder}: {RECORD} is damaged (parts of it are missing); run again into another folder")
    return record


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _unusable(folder: Path, error: OSError, file: str = "") -> OSError:
    what = f"{file} cannot be written" if file else "cannot be written to"
    reason = error.strerror or str(error)
    return OSError(error.errno, f"run folder {folder}: {what}: {reason}; free some space, or choose another with --out")

"""The folder of a run: creating it, finding it, checking that it can be written, and its record `results.json`."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from pyrostoch._checks import suggest

__all__ = [
    "RECORD_FILE",
    "SCHEMA",
    "RunError",
    "check_writable",
    "find_run",
    "latest_folder",
    "new_folder",
    "numbered_folders",
    "read_record",
    "write_record",
]

RECORD_FILE = "results.json"
SCHEMA = 1

# The size of a small checkpoint: a disk without room for it counts as full.
_PROBE = b"\0" * 262_144


class RunError(ValueError):
    """A folder holds no run, or another run than the expected one."""


def new_folder(base: Path) -> Path:
    """Create a folder for a new run: `base`, or if it is not empty, the first free of `<base>-2`, `<base>-3`, ...

    Args:
        base: The folder to create.

    Returns:
        The folder created.

    Raises:
        OSError: It cannot be created.
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
            raise _writing_error(folder, error) from error


def latest_folder(base: Path) -> Path:
    """The last of the folders that `new_folder` has created for a name; `base` itself if there is none.

    Args:
        base: The folder without a number.

    Returns:
        The folder.
    """
    return numbered_folders(base)[-1]


def numbered_folders(base: Path) -> list[Path]:
    """The folders that `new_folder` has created for a name, the oldest first.

    Args:
        base: The folder without a number.

    Returns:
        The folders; `base` is the first one even if it does not exist.
    """
    folders = [base]
    while (after := base.with_name(f"{base.name}-{len(folders) + 1}")).is_dir():
        folders.append(after)
    return folders


def find_run(run: str) -> Path:
    """The folder of a saved run.

    Args:
        run: Path of the folder, path of its `results.json`, or name of the folder in `runs/`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    path = Path(run).expanduser()
    if path.name == RECORD_FILE:
        path = path.parent
    for folder in (path, Path("runs") / path):
        if folder.is_dir():
            return folder
    known = sorted(folder.parent.name for folder in Path("runs").glob(f"*/{RECORD_FILE}"))
    listing = f"runs/ holds {', '.join(known)}" if known else "runs/ holds no run"
    raise FileNotFoundError(f"run {run!r}: there is no such folder; {listing}{suggest(path.name, known)}")


def check_writable(folder: Path) -> None:
    """Check before a long run that its folder can be written, by writing a temporary file to it.

    Args:
        folder: The folder; it is created if missing.

    Raises:
        OSError: The folder is read-only, or its disk is full.
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
        raise _writing_error(folder, error) from error


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a run atomically; NaN and infinite numbers become strings, since JSON cannot hold them.

    Args:
        folder: The run's folder.
        record: The record.

    Raises:
        OSError: The record cannot be written; the previous one is kept.
    """
    text = json.dumps(_to_json(record), indent=1, allow_nan=False, ensure_ascii=False)
    temporary = folder / f".{RECORD_FILE}.tmp"
    try:
        _write(temporary, text.encode())
        os.replace(temporary, folder / RECORD_FILE)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _writing_error(folder, error, RECORD_FILE) from error


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a run.

    Args:
        folder: The run's folder.

    Returns:
        The record; its schema, and that its main parts are there, have been checked.

    Raises:
        RunError: There is no record, or it is damaged, or the file is not the record of a run.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise RunError(f"run {folder}: no {RECORD_FILE} in this folder, so it holds no run; give the folder of one")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            f"run {folder}: {RECORD_FILE} is damaged ({error}); restore it from a copy, or run again"
        ) from error
    if not isinstance(record, dict) or "schema" not in record or not isinstance(record.get("config"), dict):
        raise RunError(f"run {folder}: {RECORD_FILE} is not the record of a run of pyrostoch; give the folder of one")
    if record["schema"] != SCHEMA:
        raise RunError(
            f"run {folder}: {RECORD_FILE} has schema {record['schema']!r}, this version reads {SCHEMA}; use the "
            "version of pyrostoch that wrote it"
        )
    guides = record.get("guides")
    valid = isinstance(guides, list) and all(isinstance(g, dict) and isinstance(g.get("name"), str) for g in guides)
    if not valid or not isinstance(record.get("data"), dict) or "seconds" not in record:
        raise RunError(
            f"run {folder}: {RECORD_FILE} is damaged (parts of it are missing); run again into another folder"
        )
    return record


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _to_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _writing_error(folder: Path, error: OSError, file: str = "") -> OSError:
    what = f"{file} cannot be written" if file else "cannot be written to"
    reason = error.strerror or str(error)
    return OSError(error.errno, f"run folder {folder}: {what}: {reason}; free some space, or choose another with --out")

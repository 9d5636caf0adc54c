"""The folder of a run: naming, locking and finding it, checking that it can be written, and its `results.json`."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrostoch._checks import suggest
from pyrostoch.safefile import made_folders, only_writer, remove_abandoned, temporary_name

__all__ = [
    "RECORD_FILE",
    "SCHEMA",
    "RunError",
    "check_writable",
    "find_run",
    "free_folder",
    "latest_folder",
    "numbered_folders",
    "only_run_in",
    "read_record",
    "write_record",
]

RECORD_FILE = "results.json"
SCHEMA = 1

# The size of a small checkpoint: a disk without room for it counts as full.
_PROBE = b"\0" * 262_144


class RunError(ValueError):
    """A folder holds no run, or another run than the expected one."""


def free_folder(base: Path) -> Path:
    """The folder of a new run: `base`, or if it is not empty, the first free of `<base>-2`, `<base>-3`, ...

    Args:
        base: The folder.

    Returns:
        A folder that is empty or does not exist yet.
    """
    number, folder = 1, base
    while os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Be the only run in a folder: a lock is held, and what killed runs left half-written is removed.

    The folder is made if it is missing, and removed afterwards if nothing was written.

    Args:
        folder: The run's folder.

    Raises:
        NotADirectoryError: There is a file of this name.
        BlockingIOError: Another run writes into the folder; process and host are named.
        OSError: The folder cannot be written to.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f"run folder {folder}: there is a file of this name; choose another with --out")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(made_folders(folder))
        except OSError as error:
            raise _writing_error(folder, error) from error
        stack.enter_context(
            only_writer(
                folder / ".pyrostoch.lock",
                f"run folder {folder}",
                "wait until it has ended, or choose another folder with --out",
                lambda error: _writing_error(folder, error),
            )
        )
        remove_abandoned(folder)
        yield


def latest_folder(base: Path) -> Path:
    """The last of the folders of the runs of a name; `base` itself if there is none.

    Args:
        base: The folder without a number.

    Returns:
        The folder.
    """
    return numbered_folders(base)[-1]


def numbered_folders(base: Path) -> list[Path]:
    """The folders of the runs of a name, the oldest first.

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
        folder: The folder.

    Raises:
        OSError: The folder is read-only, or its disk is full.
    """
    probe = temporary_name(folder / "probe")
    try:
        try:
            _write(probe, _PROBE)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
    except OSError as error:
        raise _writing_error(folder, error) from error


def write_record(folder: Path, record: dict[str, Any], file: str = RECORD_FILE) -> None:
    """Write the record of a run atomically; NaN and infinite numbers become strings, since JSON cannot hold them.

    Args:
        folder: The run's folder.
        record: The record.
        file: Name of the file.

    Raises:
        OSError: The record cannot be written; the previous one is kept.
    """
    text = json.dumps(_to_json(record), indent=1, allow_nan=False, ensure_ascii=False)
    temporary = temporary_name(folder / file)
    try:
        _write(temporary, text.encode())
        os.replace(temporary, folder / file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _writing_error(folder, error, file) from error


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

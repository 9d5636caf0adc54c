"""Temporary names that no two writers share, folders made for a file, and the files that a killed writer leaves."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_running", "made_folders", "remove_abandoned", "temporary_name"]

# Tells this process from an earlier one of the same number, as processes in containers often have.
_TOKEN = secrets.token_hex(4)
_COUNT = itertools.count()
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})-\d+\.tmp")


def temporary_name(path: Path) -> Path:
    """A name in the folder of a file that no other process, thread or call uses.

    Args:
        path: The file that the temporary one will replace.

    Example:
        >>> first, second = temporary_name(Path("run/net")), temporary_name(Path("run/net"))
        >>> first != second, first.parent == Path("run"), first.name.startswith(".net.")
        (True, True, True)
    """
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{_TOKEN}-{next(_COUNT)}.tmp")


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of writers of this machine that do not run any more.

    Args:
        folder: The folder.
        name: Only those of the file of this name; by default of all files.
    """
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or name not in (None, found["name"]) or found["host"] != _host():
            continue
        pid = int(found["pid"])
        if found["token"] != _TOKEN if pid == os.getpid() else not is_running(pid):
            with contextlib.suppress(OSError):
                path.unlink()


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; where that cannot be told without harm, it is taken to run.

    Args:
        pid: Its number.

    Example:
        >>> is_running(os.getpid())
        True
    """
    if os.name != "posix":
        return True  # on Windows, a signal of number 0 would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """Make a folder and those above it that are missing; on leaving, remove those made here that are still empty.

    Args:
        folder: The folder.

    Raises:
        OSError: It cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with made_folders(Path(root, "a", "b")):
        ...         inside = os.listdir(root)
        ...     inside, os.listdir(root)
        (['a'], [])
    """
    missing = []
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            break
        missing.append(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in missing:
            try:
                place.rmdir()
            except OSError:  # not empty, or not made after all
                break


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]

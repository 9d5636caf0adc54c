"""Reading and writing files; a file is written completely or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrostoch.safefile import made_folders, temporary_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["read_json", "save_figure", "write_json", "write_text"]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: It is not JSON.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); remove the file and rerun the command that wrote it"
        ) from None


def write_json(path: Path, content: object) -> None:
    """Write plain data as JSON; NaN and infinite numbers, which JSON does not have, become null.

    Args:
        path: The file; its folder is created if missing.
        content: Numbers, strings, `None`, and lists, tuples and dictionaries of them.

    Raises:
        TypeError: The content holds anything else.
        OSError: The file cannot be written; an existing one is left unchanged.
    """
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Args:
        path: The file; its folder is created if missing.
        text: The text.

    Raises:
        OSError: The file cannot be written; an existing one is left unchanged.
    """
    with _temporary(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Args:
        figure: The figure.
        path: The file; its folder is created if missing.

    Raises:
        OSError: The file cannot be written; an existing one is left unchanged.
    """
    with _temporary(path) as temporary:
        # Without Matplotlib's version, so that equal figures are equal files.
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})


def _finite(content: Any) -> Any:
    """The content with `None` in place of numbers that are not finite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary file, which is renamed to `path` once it is written and synced to the disk."""
    temporary = temporary_name(path)
    with made_folders(path.parent):
        try:
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

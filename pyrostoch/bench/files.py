"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["read_json", "save_figure", "write_json", "write_text"]


def read_json(path: Path) -> Any:
    """Read a file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: It is no JSON.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no readable JSON ({error}); remove the file, and run what wrote it again") from None


def write_json(path: Path, content: Any) -> None:
    """Write plain data; a number that is NaN or infinite, which JSON does not have, becomes null.

    Args:
        path: The file; its folder is made where it is missing.
        content: Plain data.

    Raises:
        TypeError: Something is not plain.
        OSError: It cannot be written; what was there stays.
    """
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text.

    Args:
        path: The file; its folder is made where it is missing.
        text: The text.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    with _temporary(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; its folder is made where it is missing.

    Args:
        figure: The figure.
        path: The file.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    with _temporary(path) as temporary:
        # Without the time and the version of what made it, so that the same figure is the same file.
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes the file when all went well and has reached the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

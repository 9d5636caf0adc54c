"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["read_json", "save_figure", "write_json"]


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
    """Write a file to a temporary name, and give it its own when it is whole.

    Args:
        path: The file; its folder is made where it is missing.
        content: Plain data; NaN and infinities are refused.

    Raises:
        ValueError: A number is not finite.
        OSError: It cannot be written; what was there stays.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
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


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes the file when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

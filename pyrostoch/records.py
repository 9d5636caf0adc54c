"""Base class of result objects, with a conversion to plain data, and the text tables that results print."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Record", "number", "table"]


class Record:
    """Base class of the frozen dataclasses that hold results."""

    def to_dict(self) -> dict[str, Any]:
        """The result as dictionaries, lists, numbers and strings, ready for JSON."""
        if not dataclasses.is_dataclass(self):
            raise TypeError(f"{type(self).__name__}: expected a dataclass")
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def number(value: float | None, digits: int = 4) -> str:
    """Format a number for a table.

    Magnitudes of at least 100 get one decimal, smaller ones `digits` decimals, and those below 10^-digits `digits - 1`
    significant digits. `None` becomes `-`.

    Example:
        >>> number(-1234.567), number(0.98765), number(float("nan")), number(None)
        ('-1234.6', '0.9877', 'nan', '-')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 100:
        return f"{value:.1f}"
    return f"{value:.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.{digits - 1}g}"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A text table, its first column aligned to the left, the others to the right.

    Args:
        headers: Column titles.
        rows: Cells; floats are formatted by `number`.

    Returns:
        Lines joined by newlines.

    Example:
        >>> print(table(("site", "kl"), [("fc.weight", 1.5)]))
        site           kl
        fc.weight  1.5000
    """
    cells = [[number(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [list(headers), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

"""Whether tensor operations are being recorded, so that no value may be read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["being_traced", "traced"]

_STATE = threading.local()


def being_traced() -> bool:
    """Whether this thread is recording a graph: a check that reads a tensor's value is then left out.

    Example:
        >>> being_traced()
        False
    """
    return bool(getattr(_STATE, "depth", 0))


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Mark operations as being recorded.

    Example:
        >>> with traced():
        ...     being_traced()
        True
    """
    _STATE.depth = getattr(_STATE, "depth", 0) + 1
    try:
        yield
    finally:
        _STATE.depth -= 1

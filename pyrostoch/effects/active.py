"""Which network calls are on their way, innermost last."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["active_call", "entered", "inside_network"]

_STATE = threading.local()


def _calls() -> list[Any]:
    if not hasattr(_STATE, "calls"):
        _STATE.calls = []
    calls: list[Any] = _STATE.calls
    return calls


@contextlib.contextmanager
def entered(call: Any) -> Iterator[None]:
    """Mark a `NetworkCall` as under way; `None` stands for the analysis of weight usage."""
    calls = _calls()
    calls.append(call)
    try:
        yield
    finally:
        calls.pop()


def inside_network() -> bool:
    """Whether a network is being called with its weights already drawn, so that its layers must not draw again.

    Example:
        >>> inside_network()
        False
    """
    return bool(_calls())


def active_call() -> Any:
    """The innermost network call under way; `None` outside any, and during the analysis of weight usage."""
    calls = _calls()
    return calls[-1] if calls else None

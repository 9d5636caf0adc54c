"""The network calls in progress in this thread, innermost last."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["ActiveCall", "active_call", "entered", "inside_network"]

_STATE = threading.local()


class ActiveCall(Protocol):
    """A network call in progress, as `pyrostoch.effects.checkpoint` needs it."""

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for `torch.utils.checkpoint`: one for the forward pass, one for its recomputation."""


def _calls() -> list[ActiveCall | None]:
    if not hasattr(_STATE, "calls"):
        _STATE.calls = []
    calls: list[ActiveCall | None] = _STATE.calls
    return calls


@contextlib.contextmanager
def entered(call: ActiveCall | None) -> Iterator[None]:
    """Mark a network call as in progress.

    Args:
        call: The call; `None` for the pass that analyzes weight usage.
    """
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


def active_call() -> ActiveCall | None:
    """The innermost network call in progress; `None` outside any call and during the analysis of weight usage."""
    calls = _calls()
    return calls[-1] if calls else None

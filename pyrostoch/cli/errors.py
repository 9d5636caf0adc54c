"""What a user sees when something goes wrong: one message, and no traceback unless it is asked for."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import typer

__all__ = ["DEBUG", "complain", "guarded"]

#: Faults of input, files or settings, whose message says what to do.
_EXPECTED = (ValueError, OSError, FloatingPointError, ImportError)
#: Whether `--debug` was given.
DEBUG: ContextVar[bool] = ContextVar("debug", default=False)

_USAGE = 2
_INTERRUPTED = 130


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command report expected errors in one message and leave with code 2, or 130 after Ctrl-C."""

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except _EXPECTED as error:
            if _debugging() or getattr(error, "errno", None) == errno.EPIPE:
                raise
            complain(_message(error))
            raise typer.Exit(_USAGE) from error
        except KeyboardInterrupt as interrupt:
            complain(str(interrupt) or "interrupted", "interrupted" if str(interrupt) else "")
            raise typer.Exit(_INTERRUPTED) from interrupt

    return call


def complain(message: str, head: str = "error") -> None:
    """Print a message on stderr, its head in red.

    Args:
        message: The message.
        head: What stands before it.
    """
    from rich.console import Console
    from rich.text import Text

    text = Text(f"{head}: " if head else "", style="bold red")
    text.append(message, style="default not bold")
    Console(stderr=True, soft_wrap=True).print(text)


def _message(error: BaseException) -> str:
    """The error's own words, without the number that the system puts before them, and its notes."""
    words = str(error)
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return "\n".join([words or type(error).__name__, *getattr(error, "__notes__", [])])


def _debugging() -> bool:
    return DEBUG.get() or os.environ.get("PYROSTOCH_DEBUG", "") not in ("", "0")

"""Error reporting of the command line: one message, and a traceback only on request."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import typer

__all__ = ["DEBUG", "guarded", "print_error"]

#: Errors of input, files or settings, whose message says what to do.
_EXPECTED = (ValueError, OSError, FloatingPointError, ImportError)
#: Whether `--debug` was given.
DEBUG: ContextVar[bool] = ContextVar("debug", default=False)

_EXIT_ERROR = 2
_EXIT_INTERRUPTED = 130


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command report expected errors in one message and exit with code 2, or 130 after Ctrl-C.

    Args:
        command: The function of the command.

    Returns:
        The function with this error handling.
    """

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except _EXPECTED as error:
            if _debug_requested() or getattr(error, "errno", None) == errno.EPIPE:
                raise
            print_error(_message(error))
            raise typer.Exit(_EXIT_ERROR) from error
        except KeyboardInterrupt as interrupt:
            print_error(str(interrupt) or "interrupted", "interrupted" if str(interrupt) else "")
            raise typer.Exit(_EXIT_INTERRUPTED) from interrupt

    return call


def print_error(message: str, head: str = "error") -> None:
    """Print a message to stderr after a heading in red.

    Args:
        message: The message.
        head: The heading; none if it is empty.
    """
    from rich.console import Console
    from rich.text import Text

    text = Text(f"{head}: " if head else "", style="bold red")
    text.append(message, style="default not bold")
    Console(stderr=True, soft_wrap=True).print(text)


def _message(error: BaseException) -> str:
    """The text of an error and its notes; the error number of an `OSError` is left out."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return "\n".join([text or type(error).__name__, *getattr(error, "__notes__", [])])


def _debug_requested() -> bool:
    return DEBUG.get() or os.environ.get("PYROSTOCH_DEBUG", "") not in ("", "0")

"""An advisory lock on what is written: one writer at a time, who is named to the second."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["only_writer"]

# How long to try: a lock file that is just being removed, or whose holder has not yet signed it, is seen as such then.
_SECONDS, _PAUSE = 0.2, 0.02


@contextlib.contextmanager
def only_writer(lock_file: Path, what: str, advice: str, explain: Callable[[OSError], OSError]) -> Iterator[None]:
    """Hold a lock, which the system takes back from a process that ends in any way, also by SIGKILL.

    Args:
        lock_file: The file of the lock; it is there only while the lock is held, or after its holder was killed.
        what: What is written, for the message.
        advice: What the second writer can do, for the message.
        explain: Makes the error for a lock file that cannot be written.

    Raises:
        BlockingIOError: Another writer holds the lock; it is named.
        OSError: The lock file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with only_writer(Path(folder, ".lock"), "run", "wait", lambda error: error):
        ...         inside = os.listdir(folder)
        ...     inside, os.listdir(folder)
        (['.lock'], [])
    """
    lock, pid = FileLock(lock_file, timeout=_SECONDS), os.getpid()
    try:
        lock.acquire(poll_interval=_PAUSE)
    except Timeout:
        raise BlockingIOError(f"{what}: {_holder(lock_file)} is writing it; {advice}. Nothing was changed") from None
    except OSError as error:
        raise explain(error) from error
    try:
        try:
            lock_file.write_text(json.dumps({"pid": pid, "host": socket.gethostname()}), encoding="utf-8")
        except OSError as error:
            raise explain(error) from error
        yield
    finally:
        # A process forked inside must not give back its parent's lock.
        if os.getpid() == pid:
            # Removed while the lock is held: whoever has opened the file meanwhile sees that it has no name any more,
            # and opens the next one. Windows removes no open file; there the empty lock file stays.
            if os.name == "posix":
                with contextlib.suppress(OSError):
                    lock_file.unlink()
            lock.release()


def _holder(lock_file: Path) -> str:
    try:
        record = json.loads(lock_file.read_text(encoding="utf-8"))
        pid, host = int(record["pid"]), str(record["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it is only just starting or ending
    return "this process" if (pid, host) == (os.getpid(), socket.gethostname()) else f"process {pid} on host {host}"

"""Functions from a file of the user's own, by its path and the name of a function in it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see

__all__ = ["absolute_name", "digests", "function_from_file", "is_file_name"]


def is_file_name(name: str) -> bool:
    """Whether a name is a file and a function in it, such as `"nets.py:make_net"`.

    Args:
        name: The name.
    """
    return ".py:" in name


def absolute_name(name: str) -> str:
    """The name with the absolute path of the file, so that it holds in any folder; other names as they are.

    Args:
        name: The name.
    """
    if not is_file_name(name):
        return name
    file, _, function = name.rpartition(":")
    return f"{Path(file).expanduser().absolute()}:{function}"


def digests(names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file among names of files and functions in them, by its path; what is gone is left out.

    Args:
        names: The names; others are left out.
    """
    paths = {name.rpartition(":")[0] for name in names if is_file_name(name)}
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in sorted(paths) if Path(path).is_file()}


def function_from_file(name: str, what: str) -> Callable[..., Any]:
    """A function, or class, from a file, which is executed.

    Args:
        name: Path of the file and name of the function, `"nets.py:make_net"`.
        what: What it makes, for messages.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be executed, or lacks the function.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "nets.py"
        ...     _ = path.write_text("def double(x): return 2 * x")
        ...     function_from_file(f"{path}:double", "function")(4)
        8
    """
    file, _, function = name.rpartition(":")
    path, page = Path(file), see("how-to/own_network")
    if not path.is_file():
        raise FileNotFoundError(f"{what}: {path}: no such file{page}")
    spec = importlib.util.spec_from_file_location(f"_pyrostoch_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{what}: {path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # checkpoints compare the source of classes, which is found by this
    folder = str(path.absolute().parent)
    sys.path.insert(0, folder)  # modules beside it, as for a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{what}: {path} cannot be executed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    found = getattr(module, function, None)
    if callable(found):
        return found
    own = [
        key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == spec.name
    ]
    raise ValueError(
        f"{what}: {path} has no function or class {function!r}, but {name_list(own) or 'none'}"
        f"{suggest(function, own)}{page}"
    )

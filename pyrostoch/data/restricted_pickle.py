"""Reading a pickle from elsewhere without running anything: plain containers and byte arrays only.

A pickle may call any importable function. This reader resolves no name at all: the handful of NumPy names by which
arrays are written are answered by inert stand-ins that only note what was asked for, and every other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.errors import CorruptDataError

__all__ = ["read_pickle"]

_BYTE_TYPES = {"u1", "|u1", "B", "uint8"}


class _Note:
    """What a pickle says of an array or of its type: the arguments of the call, and the state set afterwards."""

    __slots__ = ("args", "state")

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Note):
    """A noted `_reconstruct` (shape and bytes in its state) or `_frombuffer` (in its arguments)."""

    def resolve(self) -> NDArray[np.uint8]:
        if self.state is not None:
            _, shape, kind, fortran, raw = self.state
            fortran = bool(fortran)
        else:
            raw, kind, shape, order = self.args
            if _text(order) not in "CF":
                raise ValueError(f"an array in memory order {_text(order)!r}")
            fortran = _text(order) == "F"
        if not isinstance(kind, _Type) or _text(kind.args[0]) not in _BYTE_TYPES:
            raise ValueError("an array that is not of unsigned bytes")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not isinstance(raw, bytes | bytearray) or math.prod(shape) != len(raw):
            raise ValueError(f"an array of shape {shape} without the {math.prod(shape)} bytes it needs")
        return np.frombuffer(bytes(raw), np.uint8).reshape(shape, order="F" if fortran else "C")


class _Type(_Note):
    """A noted `numpy.dtype(...)`."""


class _StandIn:
    """Answers for one NumPy name: callable where the name was, and closed to having its state set."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[tuple[Any, ...]], Any]) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


def _no_call(args: tuple[Any, ...]) -> Any:
    raise pickle.UnpicklingError("it calls numpy.ndarray directly")


_RECONSTRUCT, _DTYPE, _NDARRAY = _StandIn(_Array), _StandIn(_Type), _StandIn(_no_call)
# NumPy 2 renamed numpy.core to numpy._core; files of both ages are about.
_NAMES = {
    ("numpy", "dtype"): _DTYPE,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _RECONSTRUCT,
    ("numpy._core.numeric", "_frombuffer"): _RECONSTRUCT,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused") from None


def _text(value: Any) -> str:
    """Return a string that Python 2 may have written as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """Return the value with notes turned into arrays; whatever is not plain data is refused."""
    if isinstance(value, _Array):
        return value.resolve()
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError(f"a value of type {type(value).__name__}")


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Read a pickled dictionary of plain values and byte arrays.

    Numbers, strings, bytes, lists, tuples (as lists), dictionaries and NumPy arrays of unsigned bytes are read, whether
    written by Python 2 or 3 and by NumPy 1 or 2. Nothing that the file names is imported or called.

    Args:
        path: The file.

    Returns:
        The dictionary; keys that Python 2 wrote as bytes become strings.

    Raises:
        CorruptDataError: If the file is damaged, asks for any other name (given in the message), or holds something
            else.

    Example:
        >>> import pathlib, pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "batch")
        ...     _ = path.write_bytes(pickle.dumps({"labels": [3, 5]}))
        ...     read_pickle(path)
        {'labels': [3, 5]}
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        value = _plain(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    # A damaged pickle can fail with nearly any exception; all of them mean the same here.
    except Exception as error:
        raise CorruptDataError(
            f"{path}: expected a pickle of plain values and byte arrays, found {len(content)} bytes that do not "
            "read as one: "
            f"{str(error) or type(error).__name__}."
        ) from error
    if not isinstance(value, dict):
        raise CorruptDataError(f"{path}: expected a pickled dictionary, found a {type(value).__name__}.")
    return value

"""Read an untrusted pickle without running its code: plain containers and byte arrays only.

A pickle may call any importable function. This reader imports nothing: the few NumPy names that pickled arrays need are
replaced by inert placeholders that only record the arguments of the call, and every other name is refused.
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


class _RecordedCall:
    """A recorded call that would make an array or its dtype: its arguments, and the state set afterwards."""

    __slots__ = ("args", "state")

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayCall(_RecordedCall):
    """A recorded `_reconstruct` (shape and bytes in its state) or `_frombuffer` (in its arguments)."""

    def resolve(self) -> NDArray[np.uint8]:
        if self.state is not None:
            _, shape, kind, fortran, raw = self.state
            fortran = bool(fortran)
        else:
            raw, kind, shape, order = self.args
            if _to_str(order) not in "CF":
                raise ValueError(f"an array in memory order {_to_str(order)!r}")
            fortran = _to_str(order) == "F"
        if not isinstance(kind, _DtypeCall) or _to_str(kind.args[0]) not in _BYTE_TYPES:
            raise ValueError("an array that is not of unsigned bytes")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not isinstance(raw, bytes | bytearray) or math.prod(shape) != len(raw):
            raise ValueError(f"an array of shape {shape} without the {math.prod(shape)} bytes it needs")
        return np.frombuffer(bytes(raw), np.uint8).reshape(shape, order="F" if fortran else "C")


class _DtypeCall(_RecordedCall):
    """A recorded `numpy.dtype(...)`."""


class _Placeholder:
    """Takes the place of one NumPy name: it can be called, and refuses to have its state set."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[tuple[Any, ...]], Any]) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


def _refuse_call(args: tuple[Any, ...]) -> Any:
    raise pickle.UnpicklingError("it calls numpy.ndarray directly")


_RECONSTRUCT, _DTYPE, _NDARRAY = _Placeholder(_ArrayCall), _Placeholder(_DtypeCall), _Placeholder(_refuse_call)
# NumPy 2 renamed numpy.core to numpy._core; files of both versions are in use.
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
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is refused") from None


def _to_str(value: Any) -> str:
    """Return a string that Python 2 may have written as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _to_plain_data(value: Any) -> Any:
    """Return the value with recorded calls turned into arrays; anything that is not plain data is refused."""
    if isinstance(value, _ArrayCall):
        return value.resolve()
    if isinstance(value, dict):
        return {_to_str(key): _to_plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_data(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError(f"a value of type {type(value).__name__}")


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Read a pickled dictionary of plain values and byte arrays.

    Numbers, strings, bytes, lists, tuples (as lists), dictionaries and NumPy arrays of unsigned bytes are read, whether
    written by Python 2 or 3 and by NumPy 1 or 2. Nothing named in the file is imported or called.

    Args:
        path: The file.

    Returns:
        The dictionary; keys that Python 2 wrote as bytes become strings.

    Raises:
        CorruptDataError: If the file is damaged, refers to any other name (given in the message), or holds data of
            another type.

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
        value = _to_plain_data(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    # A damaged pickle can raise nearly any exception; all of them mean the same here.
    except Exception as error:
        raise CorruptDataError(
            f"{path}: expected a pickle of plain values and byte arrays, found {len(content)} bytes that cannot be "
            f"read as one: {str(error) or type(error).__name__}."
        ) from error
    if not isinstance(value, dict):
        raise CorruptDataError(f"{path}: expected a pickled dictionary, found a {type(value).__name__}.")
    return value

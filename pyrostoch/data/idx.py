"""The IDX format: a four-byte header (0, 0, type, number of dimensions), big-endian sizes, then the values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.errors import CorruptDataError
from pyrostoch.data.files import read_bytes

__all__ = ["read_idx"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> NDArray[Any]:
    """Read one IDX file, gzip or not.

    Args:
        path: The file. Compression is detected from the content.

    Returns:
        The array, in the machine's byte order, with the shape the header gives. All six value types are read: unsigned
        and signed bytes, 16- and 32-bit integers, 32- and 64-bit floats.

    Raises:
        CorruptDataError: If the file is truncated, has extra bytes, or is not an IDX file.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "labels")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(path).tolist()
        [7, 2, 1]

    References:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998), which defines the format.
    """
    path = Path(path)
    content = read_bytes(path)
    if len(content) < 4:
        raise CorruptDataError(f"{path}: expected an IDX header of at least 4 bytes, found {len(content)} bytes.")
    code, dimensions = content[2], content[3]
    if content[:2] != b"\x00\x00" or code not in _TYPES or dimensions == 0:
        raise CorruptDataError(
            f"{path}: expected an IDX file (bytes 00 00, a type among {', '.join(f'{c:02x}' for c in _TYPES)}, and at "
            f"least one dimension), found the first bytes {content[:4].hex(' ')}."
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise CorruptDataError(
            f"{path}: expected an IDX header of {header} bytes for {dimensions} dimensions, found {len(content)} bytes."
        )
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    dtype = np.dtype(_TYPES[code])
    expected = header + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise CorruptDataError(
            f"{path}: expected {expected} bytes (unpacked) for values of shape {shape}, found {len(content)} bytes."
        )
    values = np.frombuffer(content, dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))

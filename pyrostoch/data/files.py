"""Find the files of a data set, and read them whether or not they are compressed with gzip."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.errors import CorruptDataError

__all__ = ["data_root", "find_file", "first_complete", "plain_or_gzip", "read_bytes", "read_npz"]

_GZIP_MAGIC = b"\x1f\x8b"


def data_root(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the data folder: the argument, else the variable `PYROSTOCH_DATA`, else None.

    Args:
        data_dir: Folder given by the caller; `~` is expanded.

    Returns:
        The folder, which may not exist.
    """
    chosen = data_dir if data_dir is not None else os.environ.get("PYROSTOCH_DATA") or None
    return None if chosen is None else Path(chosen).expanduser()


def find_file(folder: Path, name: str) -> Path | None:
    """Return `folder/name.gz` or `folder/name`, whichever exists (in this order), or None."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def plain_or_gzip(name: str) -> str:
    """Return both names of a file that may be compressed, for error messages."""
    return f"{name}.gz or {name}"


def first_complete(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Return the first folder that holds every one of the files, compressed or not, or None."""
    return next((folder for folder in folders if all(find_file(folder, name) for name in names)), None)


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacking gzip if the content (not the name) is gzip.

    Args:
        path: The file.

    Returns:
        The unpacked bytes.

    Raises:
        CorruptDataError: If the gzip stream is truncated or damaged, or a `.gz` file is not gzip.
    """
    raw = path.read_bytes()
    if not raw.startswith(_GZIP_MAGIC):
        if path.suffix == ".gz":
            raise CorruptDataError(
                f"{path}: expected a gzip file (first bytes 1f 8b), found {len(raw)} bytes starting "
                f"{raw[:4].hex(' ') or 'nowhere'}."
            )
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise CorruptDataError(
            f"{path}: expected a whole gzip file, found {len(raw)} bytes that do not unpack ({error}). "
            "It is probably an interrupted download: fetch it again."
        ) from error


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Read arrays from a NumPy archive without unpickling.

    Args:
        path: The `.npz` file.
        keys: Names of the arrays to read.

    Returns:
        The arrays by key.

    Raises:
        CorruptDataError: If the archive is damaged, lacks a key, or holds pickled objects.
    """
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise CorruptDataError(
                    f"{path}: expected a NumPy archive (.npz), found a single array of shape {archive.shape}."
                )
            with archive:
                missing = [key for key in keys if key not in archive.files]
                if missing:
                    raise CorruptDataError(
                        f"{path}: expected the arrays {list(keys)}, found {archive.files}; missing {missing}."
                    )
                return {key: archive[key] for key in keys}
    except CorruptDataError:
        raise
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptDataError(
            f"{path}: expected a NumPy archive without pickles, found {path.stat().st_size} bytes that cannot "
            f"be read ({error})."
        ) from error

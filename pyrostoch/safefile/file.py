"""Checkpoint files: safetensors with JSON metadata and a checksum, written atomically and read without unpickling."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from pyrostoch.safefile.lock import only_writer
from pyrostoch.safefile.names import made_folders, remove_abandoned, temporary_name
from pyrostoch.safefile.tensors import check_storable, join_sparse, split_sparse

__all__ = ["FORMAT", "CheckpointError", "not_while_written", "only_writer_of", "read_file", "write_file"]

FORMAT = "pyrostoch-checkpoint"
_VERSION = 1

# Deeper data than any description has would overflow the stack when it is compared or printed.
_DEPTH = 100

# What parsers and torch raise for a file whose parts are not what they should be.
_FAULTS = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError)


class CheckpointError(ValueError):
    """A file is not a checkpoint of pyrostoch, is damaged, or belongs to another model, guide or run.

    Example:
        >>> issubclass(CheckpointError, ValueError)
        True
    """


def write_file(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors and plain data to a file atomically, with a checksum of all of them.

    The bytes are written to a temporary file in the same folder and synchronized to the disk; then the file is renamed.
    If anything fails, the old file is left unchanged, and folders made for it are removed. A symbolic link is kept: the
    file that it leads to is replaced.

    Args:
        path: The file; its folder is made if it is missing.
        tensors: Tensors by name, dense or sparse, on any device.
        content: Plain data, ready for JSON.

    Raises:
        TypeError: A tensor has a layout or dtype that cannot be stored; nothing was written.
        ValueError: The plain data are nested too deeply.
        OSError: The folder cannot be written to, or the disk is full; the old file is left unchanged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(Path(folder, "new", "net"), {"a": torch.ones(2)}, {"note": "hello"})
        ...     read_file(Path(folder, "new", "net"))
        ({'a': tensor([1., 1.])}, {'note': 'hello'})
    """
    check_storable(tensors)
    _check_depth(content, _DEPTH)
    dense, sparse = split_sparse(tensors)
    # Copies, because safetensors stores neither views nor tensors that share memory.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in dense.items()}
    metadata = {"format": FORMAT, "version": str(_VERSION), "content": json.dumps(content)}
    if sparse:
        metadata["sparse"] = json.dumps(sparse)
    metadata["checksum"] = _checksum(copies, metadata)
    data = serialize(copies, metadata)
    place = _resolved(path)
    temporary = temporary_name(place)
    try:
        with made_folders(place.parent):
            try:
                _write(temporary, data)
                os.replace(temporary, place)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            _sync_folder(place.parent)
    except OSError as error:
        raise _cannot_write(error, path) from error


def not_while_written(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a checkpoint while it is written once, so that no run writes it at the same time.

    Args:
        path: The file.

    Raises:
        BlockingIOError: A run writes this checkpoint; process and host are named.
    """
    place = _resolved(path)
    if not place.parent.is_dir():  # nobody can be writing there
        return contextlib.nullcontext()
    return _lock(path, place)


def _lock(path: Path, place: Path) -> contextlib.AbstractContextManager[None]:
    return only_writer(
        place.with_name(f".{place.name}.lock"),
        f"checkpoint {path}",
        "wait until that run has ended, or give this one another path",
        lambda error: _cannot_write(error, path),
    )


@contextlib.contextmanager
def only_writer_of(path: Path) -> Iterator[None]:
    """Be the only writer of a checkpoint during a long run: a lock is held, and what killed writers left is removed.

    Its folder is made if it is missing, and removed afterwards if nothing was written.

    Args:
        path: The file.

    Raises:
        BlockingIOError: Another run writes this checkpoint; process and host are named.
        OSError: It cannot be written.
        CheckpointError: A file of this name exists that is not a checkpoint and would be overwritten.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with only_writer_of(Path(folder, "net")), only_writer_of(Path(folder, "net")):
        ...         pass
        Traceback (most recent call last):
        ...
        BlockingIOError: checkpoint ...net: this process is writing it; ...
    """
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path}: expected the name of a file, got a folder; add a file name to it")
    place = _resolved(path)
    folders = made_folders(place.parent)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folders)
        except OSError as error:
            raise _cannot_write(error, path) from error
        stack.enter_context(_lock(path, place))
        remove_abandoned(place.parent, place.name)
        if place.exists():
            read_file(path)
        yield


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint's tensors, on the CPU, and its plain data, and verify its checksum.

    Args:
        path: The file.

    Returns:
        Tensors by name, and the plain data.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or is not a checkpoint.
    """
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path}: expected a file, got a folder")
    if not _resolved(path).exists():
        raise FileNotFoundError(f"checkpoint {path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: expected a file, got a device, a pipe or the like")
    # All of it at once: of a mapped file, other parts could be read later than were verified.
    data = path.read_bytes()
    try:
        dense = deserialize(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        program = metadata.get("format", "another program")
    except (*_FAULTS, RecursionError) as error:
        raise CheckpointError(_not_readable(path, data, error)) from error
    if program != FORMAT:
        raise CheckpointError(
            f"checkpoint {path}: expected a file written by pyrostoch, got a safetensors file of {program!r}; it was "
            "left alone. Choose another path"
        )
    if metadata.get("version") != str(_VERSION):
        raise CheckpointError(
            f"checkpoint {path}: expected format version {_VERSION}, got {metadata.get('version')}; it was written by "
            "a newer pyrostoch, or is damaged: update this one, or restore the file from a copy"
        )
    found = _checksum(dense, {name: text for name, text in metadata.items() if name != "checksum"})
    if metadata.get("checksum") != found:
        raise CheckpointError(
            f"checkpoint {path}: the file is damaged: expected the checksum {metadata.get('checksum')}, got {found} "
            "from its content; restore it from a copy, or remove it and start the run anew. Nothing was changed"
        )
    try:
        content = json.loads(metadata["content"])
        _check_depth(content, _DEPTH)
        tensors = join_sparse(dense, json.loads(metadata["sparse"])) if "sparse" in metadata else dense
    except (*_FAULTS, RecursionError) as error:
        raise CheckpointError(_wrong(path, f"{type(error).__name__}: {error}")) from error
    if not isinstance(content, dict):
        raise CheckpointError(_wrong(path, f"expected a dictionary of plain data, got a {type(content).__name__}"))
    return tensors, content


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all tensors, and of all metadata."""
    hashed = hashlib.sha256()
    for name in sorted(metadata):
        _update(hashed, name, metadata[name])
    for name in sorted(tensors):
        value = tensors[name]
        _update(hashed, name, str(value.dtype), str(tuple(value.shape)))
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _check_depth(content: Any, left: int) -> None:
    if not left:
        raise ValueError(f"plain data: expected lists and dictionaries at most {_DEPTH} deep in each other, got more")
    if isinstance(content, (dict, list, tuple)):
        for value in content.values() if isinstance(content, dict) else content:
            _check_depth(value, left - 1)


def _update(hashed: Any, *texts: str) -> None:
    for text in texts:
        # With its length, so that no two lists of texts run together to the same bytes.
        data = text.encode()
        hashed.update(len(data).to_bytes(8, "little") + data)


def _resolved(path: Path) -> Path:
    """The file that a path leads to through symbolic links, so that two names of one file are one file."""
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise CheckpointError(f"checkpoint {path}: expected a file, got symbolic links that lead in a circle")
    return place


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_readable(path: Path, data: bytes, error: BaseException) -> str:
    # A safetensors file starts with the length of its header in eight bytes; the first may equal a pickle's first byte.
    if data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[2:8] != bytes(6)):
        return (
            f"checkpoint {path}: expected a safetensors file, got a pickle, perhaps of torch.save; unpickling runs "
            "code, so it was not opened. Load its state_dict yourself, then write it with pyrostoch.save"
        )
    return (
        f"checkpoint {path}: expected a whole safetensors file, got {len(data)} bytes that cannot be read as one "
        f"({error}); the file is truncated or something else. Restore it from a copy, or choose another path"
    )


def _wrong(path: Path, problem: str) -> str:
    return (
        f"checkpoint {path}: the file is whole, but was not written by pyrostoch as it is: {problem}. Restore it from "
        "a copy. Nothing was changed"
    )


def _cannot_write(error: OSError, path: Path) -> OSError:
    reason = error.strerror or str(error)
    return OSError(
        error.errno,
        f"checkpoint {path.name} cannot be written into the folder {path.parent}: {reason}. The old file, if there was "
        "one, is unchanged; free some space or choose another path",
    )


def _sync_folder(folder: Path) -> None:
    # So that the new name survives a power failure; some systems cannot open folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

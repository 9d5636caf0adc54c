"""Checkpoint files: safetensors with JSON metadata, written atomically and read without unpickling."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

__all__ = ["FORMAT", "CheckpointError", "check_writable", "read_file", "write_file"]

FORMAT = "pyrostoch-checkpoint"
_VERSION = 1


class CheckpointError(ValueError):
    """A file is not a checkpoint of pyrostoch, is damaged, or belongs to another model, guide or run.

    Example:
        >>> issubclass(CheckpointError, ValueError)
        True
    """


def write_file(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors and plain data to a file atomically.

    The bytes are written to a temporary file in the same folder and synchronized to the disk; then the file is renamed.
    If anything fails, the old file is left unchanged.

    Args:
        path: The file.
        tensors: Tensors by name, on any device.
        content: Plain data, ready for JSON.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; the old file is left unchanged.
    """
    # Copies, because safetensors stores neither views nor tensors that share memory.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    data = serialize(copies, {"format": FORMAT, "version": str(_VERSION), "content": json.dumps(content)})
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _cannot_write(error, path) from error
        raise


def check_writable(path: Path) -> None:
    """Check before a long run that its checkpoint can be written, and create its folder.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be written.
        CheckpointError: A file of this name exists that is not a checkpoint and would be overwritten.
    """
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path}: expected the name of a file, got a folder; add a file name to it")
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise _cannot_write(error, path) from error
    if path.exists():
        read_file(path, tensors=False)


def read_file(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint's tensors, on the CPU, and its plain data.

    Args:
        path: The file.
        tensors: Whether to read the tensors too.

    Returns:
        Tensors by name, and the plain data.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or is not a checkpoint.
    """
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path}: expected a file, got a folder")
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(
                    f"checkpoint {path}: expected a file written by pyrostoch, got a safetensors file of "
                    f"{header.get('format', 'another program')!r}; it was left alone. Choose another path"
                )
            if int(header["version"]) > _VERSION:
                raise CheckpointError(
                    f"checkpoint {path}: expected format version {_VERSION} or older, got {header['version']}; it was "
                    "written by a newer pyrostoch: update this one"
                )
            content: dict[str, Any] = json.loads(header["content"])
            return {name: file.get_tensor(name) for name in file.keys()} if tensors else {}, content
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    # A safetensors file starts with the length of its header in eight bytes; the first may equal a pickle's first byte.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[2:8] != bytes(6)):
        return (
            f"checkpoint {path}: expected a safetensors file, got a pickle, perhaps of torch.save; unpickling runs "
            "code, so it was not opened. Load its state_dict yourself, then write it with pyrostoch.save"
        )
    return (
        f"checkpoint {path}: expected a whole safetensors file, got {path.stat().st_size} bytes that cannot be read as "
        f"one ({error}); the file is truncated or something else. Restore it from a copy, or choose another path"
    )


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


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

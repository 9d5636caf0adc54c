"""Files that are written whole or not at all: checkpoints with a checksum, temporary names, and the lock of a writer.

| file | idea |
| --- | --- |
| `file` | a checkpoint: safetensors with JSON metadata and a checksum, never unpickled |
| `tensors` | which tensors a checkpoint can hold, and sparse ones as their parts |
| `names` | temporary names, folders made for a file, and what a killed writer leaves |
| `lock` | one writer at a time, who is named to the second |
"""

from __future__ import annotations

from pyrostoch.safefile.file import (
    FORMAT,
    CheckpointError,
    not_while_written,
    only_writer_of,
    read_file,
    write_file,
)
from pyrostoch.safefile.lock import only_writer
from pyrostoch.safefile.names import made_folders, remove_abandoned, temporary_name
from pyrostoch.safefile.tensors import check_layouts, check_storable

__all__ = [
    "FORMAT",
    "CheckpointError",
    "check_layouts",
    "check_storable",
    "made_folders",
    "not_while_written",
    "only_writer",
    "only_writer_of",
    "read_file",
    "remove_abandoned",
    "temporary_name",
    "write_file",
]

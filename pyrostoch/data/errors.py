"""Errors of data sets: not found, damaged, or not downloadable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["CorruptDataError", "DataNotFoundError", "DownloadError", "not_found"]


class DataNotFoundError(FileNotFoundError):
    """The files of a data set are in none of the folders that were searched."""


class CorruptDataError(ValueError):
    """A data file is truncated, damaged or in another format; the message names it and says what was expected."""


class DownloadError(OSError):
    """No mirror delivered a file with the right size and checksums; the message gives each mirror's reason."""


def not_found(
    title: str, files: Sequence[str], folders: Sequence[Path], *, name: str, downloadable: bool = False
) -> DataNotFoundError:
    """Build the error for a missing data set: the files looked for, the folders searched, and how to get them.

    Args:
        title: Display name of the data set.
        files: File names that were looked for, one entry per file ("a or b" where two names are accepted).
        folders: Folders that were searched; empty if no data folder was given.
        name: The name for `load`, quoted in the advice.
        downloadable: Whether `pyrostoch.data.download` can fetch the data set.

    Returns:
        The error, for the caller to raise.
    """
    lines = [f"{title} was not found."]
    lines += ["Files looked for (all in one folder):", *(f"  {file}" for file in files)]
    if folders:
        lines += [
            "Folders searched:",
            *(f"  {folder}{'' if folder.is_dir() else '  (no such folder)'}" for folder in folders),
        ]
    else:
        lines.append("No folder was searched: no data folder was given and PYROSTOCH_DATA is not set.")
    lines.append(
        "Give the data folder with --data-dir DIR (data_dir= in Python) or the environment variable PYROSTOCH_DATA."
    )
    if downloadable:
        lines.append(f"To download them: pyrostoch download {name} --data-dir DIR (pyrostoch.data.download in Python)")
    return DataNotFoundError("\n".join(lines))

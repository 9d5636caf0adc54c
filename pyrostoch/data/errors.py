"""What can go wrong with data: it is not there, it is damaged, or it could not be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["CorruptDataError", "DataNotFoundError", "DownloadError", "not_found"]


class DataNotFoundError(FileNotFoundError):
    """The files of a data set are in none of the folders that were searched."""


class CorruptDataError(ValueError):
    """A data file is truncated, damaged or of another kind; the message names it, the expected and the found."""


class DownloadError(OSError):
    """No mirror delivered a file with the right size and checksums; the message gives each mirror's reason."""


def not_found(
    title: str, files: Sequence[str], folders: Sequence[Path], *, name: str, downloadable: bool = False
) -> DataNotFoundError:
    """Build the error for a missing data set: the files looked for, the folders searched, and how to get them.

    Args:
        title: Human name of the data set.
        files: File names that were looked for, one entry a file ("a or b" where two forms are accepted).
        folders: Folders that were searched; empty where no data folder was given.
        name: The name for `load`, quoted in the advice.
        downloadable: Whether `pyrostoch.data.download` knows the set.

    Returns:
        The error, to be raised by the caller.
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
    lines.append("Say where the data are with --data-dir DIR (data_dir= in Python) or the variable PYROSTOCH_DATA.")
    if downloadable:
        lines.append(f"To fetch them: pyrostoch download {name} --data-dir DIR (pyrostoch.data.download in Python)")
    return DataNotFoundError("\n".join(lines))

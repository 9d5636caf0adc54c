"""The UCI regression sets with their standard train/test splits.

References:
    Hernandez-Lobato and Adams, "Probabilistic Backpropagation" (2015).
    Gal and Ghahramani, "Dropout as a Bayesian Approximation" (2016).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.errors import CorruptDataError, not_found
from pyrostoch.data.files import find_file, first_complete, plain_or_gzip, read_bytes

__all__ = ["UCI_SETS", "UCIRows", "locate_uci", "own_uci_folders", "read_uci", "uci_folder_name"]

_FILES = ("data.txt", "index_features.txt", "index_target.txt", "index_train_0.txt", "index_test_0.txt")

UCI_SETS = ("bostonHousing", "concrete", "energy", "kin8nm", "power-plant", "wine-quality-red", "yacht")


@dataclass(frozen=True, eq=False)
class UCIRows:
    """One split in the original units, float64.

    Args:
        x_train: Features, shape (n_train, features).
        y_train: Target, shape (n_train,).
        x_test: Features, shape (n_test, features).
        y_test: Target, shape (n_test,).
    """

    x_train: NDArray[np.float64]
    y_train: NDArray[np.float64]
    x_test: NDArray[np.float64]
    y_test: NDArray[np.float64]


def uci_folder_name(name: str) -> str | None:
    """Return the folder name for what follows `uci:` in the name of a data set, or None if it is not a valid name.

    The seven standard names are matched regardless of case; any other plain name is taken as a folder of the user's.
    """
    standard = next((known for known in UCI_SETS if known.lower() == name.lower()), None)
    return standard or (name if re.fullmatch(r"\w[\w.-]*", name) else None)


def own_uci_folders(root: Path | None) -> list[str]:
    """Names of folders in the data folder that are laid out like the standard sets and are none of them.

    Args:
        root: The data folder.
    """
    if root is None:
        return []
    found = set()
    for base in (root / "UCI", root):
        for folder in base.iterdir() if base.is_dir() else ():
            name = uci_folder_name(folder.name)
            if name is not None and name not in UCI_SETS and first_complete([folder], _FILES) is not None:
                found.add(name)
    return sorted(found)


def locate_uci(name: str, root: Path | None) -> Path:
    """Return the folder of one UCI set.

    Args:
        name: Folder name of the data set, such as `"yacht"`.
        root: The data folder. Its subfolders `UCI/<name>` and `<name>` are searched.

    Returns:
        The first folder that holds the data, the column indices and the first split.

    Raises:
        DataNotFoundError: If there is no such folder.
    """
    folders = [] if root is None else [root / "UCI" / name, root / name]
    found = first_complete(folders, _FILES)
    if found is None:
        title = f"UCI {name}" if name in UCI_SETS else f"UCI {name} (none of the standard sets {', '.join(UCI_SETS)})"
        raise not_found(title, [plain_or_gzip(file) for file in _FILES], folders, name=f"uci:{name}")
    return found


def read_uci(folder: Path, split: int) -> UCIRows:
    """Read one split.

    Args:
        folder: A folder from `locate_uci`.
        split: Number of the split, from 0.

    Returns:
        The training and test rows, in the order of the index files.

    Raises:
        CorruptDataError: If a file is damaged, or an index is out of range, repeated, or in both train and test.
        ValueError: If there is no such split.
    """
    table = _numbers(folder, "data.txt", ndmin=2)
    rows, columns = table.shape
    features = _index(folder, "index_features.txt", columns, "columns")
    target = _index(folder, "index_target.txt", columns, "columns")
    if target.size != 1 or np.isin(target, features).any():
        raise CorruptDataError(
            f"{folder / 'index_target.txt'}: expected one column that is no feature, found {target.tolist()} beside "
            f"the features {features.tolist()}."
        )
    if split < 0 or find_file(folder, f"index_train_{split}.txt") is None:
        count = sum(1 for path in folder.iterdir() if re.fullmatch(r"index_train_\d+\.txt(\.gz)?", path.name))
        raise ValueError(f"{folder} has no split {split}: expected 0 to {count - 1}.")
    train = _index(folder, f"index_train_{split}.txt", rows, "rows")
    test = _index(folder, f"index_test_{split}.txt", rows, "rows")
    both = np.intersect1d(train, test)
    if both.size:
        raise CorruptDataError(
            f"{folder}: expected split {split} to keep train and test apart, found {both.size} rows in both, the "
            f"first {both[0]}."
        )
    column = int(target[0])
    return UCIRows(table[train][:, features], table[train, column], table[test][:, features], table[test, column])


def _numbers(folder: Path, name: str, ndmin: Literal[1, 2]) -> NDArray[np.float64]:
    path = find_file(folder, name)
    if path is None:
        raise CorruptDataError(f"{folder / name}: expected this file of the split, found none.")
    content = read_bytes(path)
    try:
        lines = content.decode("ascii").split("\n")
        if not any(line.strip() for line in lines):
            raise ValueError("no numbers")
        values: NDArray[np.float64] = np.loadtxt(lines, ndmin=ndmin, dtype=np.float64)
    except ValueError as error:
        raise CorruptDataError(
            f"{path}: expected numbers separated by spaces, the same count in each row; found {len(content)} bytes "
            f"({error})."
        ) from error
    if not np.isfinite(values).all():
        raise CorruptDataError(
            f"{path}: expected finite numbers, found {int((~np.isfinite(values)).sum())} that are not."
        )
    return values


def _index(folder: Path, name: str, size: int, what: str) -> NDArray[np.int64]:
    values = _numbers(folder, name, ndmin=1).ravel()
    index = values.astype(np.int64)
    if (index != values).any() or index.min() < 0 or index.max() >= size:
        raise CorruptDataError(
            f"{folder / name}: expected whole numbers from 0 to {size - 1} (the {what} of data.txt), found "
            f"{values.min():g} to {values.max():g}."
        )
    if np.unique(index).size != index.size:
        raise CorruptDataError(
            f"{folder / name}: expected different {what}, found {index.size - np.unique(index).size} repeated."
        )
    return index

"""CIFAR-100 in its published Python format, with the 20 coarse or the 100 fine labels, as chosen by name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.cifar import read_batch
from pyrostoch.data.errors import not_found

__all__ = ["CIFAR100", "locate_cifar100", "read_cifar100"]

#: Kind of labels and number of classes, by data set name.
CIFAR100 = {"cifar100-coarse": ("coarse", 20), "cifar100-fine": ("fine", 100)}
_KINDS = {f"{kind}_labels": classes for kind, classes in CIFAR100.values()}
_FILES = ("train", "test", "meta")


def locate_cifar100(name: str, root: Path | None) -> Path:
    """Return the folder of CIFAR-100, the same for both kinds of labels.

    Args:
        name: `"cifar100-coarse"` or `"cifar100-fine"`.
        root: The data folder. Its subfolders `cifar-100-python` and `CIFAR100/cifar-100-python` and the folder itself
            are searched.

    Returns:
        The first folder that holds the three files of the published archive.

    Raises:
        DataNotFoundError: If there is no such folder.
    """
    inner = "cifar-100-python"
    folders = [] if root is None else [root / inner, root / "CIFAR100" / inner, root]
    for folder in folders:
        if all((folder / file).is_file() for file in _FILES):
            return folder
    raise not_found("CIFAR-100", [f"{', '.join(_FILES)}  (python version)"], folders, name=name)


def read_cifar100(
    name: str, folder: Path, part: Literal["train", "test"], limit: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images and labels of one part.

    Args:
        name: `"cifar100-coarse"` (20 classes) or `"cifar100-fine"` (100 classes).
        folder: A folder from `locate_cifar100`.
        part: `"train"` or `"test"`.
        limit: Keep at most this many images, the first ones.

    Returns:
        Images (n, 3, 32, 32) and labels (n,), both uint8.

    Raises:
        CorruptDataError: If the file is damaged or not in the expected format; both kinds of labels are checked.

    References:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    kind, _ = CIFAR100[name]
    images, labels = read_batch(folder / part, "CIFAR-100", _KINDS)
    # A copy, because the images are a read-only view of the file's bytes.
    return images[:limit].copy(), labels[f"{kind}_labels"][:limit]

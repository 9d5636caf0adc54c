"""MNIST and Fashion-MNIST: four IDX files each, in torchvision's folders or directly in the data folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.errors import CorruptDataError, not_found
from pyrostoch.data.files import find_file, first_complete, plain_or_gzip
from pyrostoch.data.idx import read_idx

__all__ = ["FILES", "FOLDERS", "TITLES", "locate_mnist", "read_mnist"]

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# Both data sets use the same file names, so files directly in the data folder could belong to either. The SHA-256 of
# the official test labels tells them apart.
_TEST_LABELS = {
    "mnist": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    "fashion-mnist": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}


def locate_mnist(name: str, root: Path | None) -> Path:
    """Return the folder with the four files of a data set.

    Args:
        name: `"mnist"` or `"fashion-mnist"`.
        root: The data folder. Its subfolders `MNIST/raw`, `MNIST` (`FashionMNIST/raw`, `FashionMNIST`) and `raw` and
            the folder itself are searched.

    Returns:
        The first folder that holds all four files, gzip or not.

    Raises:
        DataNotFoundError: If there is no such folder.
    """
    names = [file for pair in FILES.values() for file in pair]
    inner = FOLDERS[name]
    folders = [] if root is None else [root / inner / "raw", root / inner, root / "raw", root]
    found = first_complete(folders, names)
    if found is None:
        raise not_found(TITLES[name], [plain_or_gzip(file) for file in names], folders, name=name, downloadable=True)
    return found


def read_mnist(name: str, folder: Path, part: Literal["train", "test"]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the images and labels of one part.

    Args:
        name: `"mnist"` or `"fashion-mnist"`.
        folder: A folder from `locate_mnist`.
        part: `"train"` or `"test"`.

    Returns:
        Images (n, 28, 28) uint8 and labels (n,) uint8.

    Raises:
        CorruptDataError: If a file is damaged, images and labels do not match, or the files are those of the other
            data set.
    """
    image_path, label_path = (find_file(folder, file) or folder / file for file in FILES[part])
    labels = read_idx(label_path)
    if labels.dtype != np.uint8 or labels.ndim != 1 or labels.size == 0 or labels.max() > 9:
        raise CorruptDataError(
            f"{label_path}: expected labels 0 to 9 of shape (n,), uint8; found shape {labels.shape}, {labels.dtype}"
            + (f", largest value {labels.max()}." if labels.size else ".")
        )
    if part == "test":
        digest = hashlib.sha256(labels.tobytes()).hexdigest()
        for other, known in _TEST_LABELS.items():
            if other != name and digest == known:
                raise CorruptDataError(
                    f"{label_path}: expected {TITLES[name]}, found the labels of {TITLES[other]}. The two sets share "
                    f"their file names: keep them in {FOLDERS[name]}/raw and {FOLDERS[other]}/raw of the data folder."
                )
    images = read_idx(image_path)
    if images.dtype != np.uint8 or images.shape != (len(labels), 28, 28):
        raise CorruptDataError(
            f"{image_path}: expected images of shape {(len(labels), 28, 28)}, uint8, to match {label_path.name}; "
            f"found shape {images.shape}, {images.dtype}."
        )
    return images, labels

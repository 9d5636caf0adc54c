"""CIFAR-10 in its published Python format (pickled batches), and as an archive of JPEG images."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.errors import CorruptDataError, not_found
from pyrostoch.data.files import read_npz
from pyrostoch.data.restricted_pickle import read_pickle

__all__ = ["cifar_title", "locate_cifar", "read_batch", "read_cifar"]

_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_ARCHIVES = {"train": "train.npz", "test": "test.npz"}


def locate_cifar(root: Path | None) -> Path:
    """Return the folder of CIFAR-10: that of the original batches if they exist, else that of the JPEG archive.

    Args:
        root: The data folder. Its subfolders `cifar-10-batches-py` and `CIFAR10/cifar-10-batches-py` and the folder
            itself are searched for the batches, then `CIFAR10-jpeg` and the folder itself for the archive.

    Returns:
        The first folder that holds every file of one of the two formats.

    Raises:
        DataNotFoundError: If there is no such folder.
    """
    batches = [name for names in _BATCHES.values() for name in names]
    candidates = []
    if root is not None:
        inner = "cifar-10-batches-py"
        candidates = [(folder, batches) for folder in (root / inner, root / "CIFAR10" / inner, root)]
        candidates += [(folder, list(_ARCHIVES.values())) for folder in (root / "CIFAR10-jpeg", root)]
    for folder, names in candidates:
        if all((folder / name).is_file() for name in names):
            return folder
    expected = [f"{', '.join(batches)}  (python batches)", f"{', '.join(_ARCHIVES.values())}  (JPEG archive)"]
    raise not_found("CIFAR-10", expected, list(dict.fromkeys(folder for folder, _ in candidates)), name="cifar10")


def _is_jpeg(folder: Path) -> bool:
    return not (folder / _BATCHES["test"][0]).is_file()


def cifar_title(folder: Path) -> str:
    """Return the title: "CIFAR-10" for the original pixels, "CIFAR-10 (JPEG q75)" for the lossy archive."""
    return "CIFAR-10 (JPEG q75)" if _is_jpeg(folder) else "CIFAR-10"


def read_cifar(
    folder: Path, part: Literal["train", "test"], limit: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images and labels of one part.

    Args:
        folder: A folder from `locate_cifar`.
        part: `"train"` or `"test"`.
        limit: Read at most this many images, the first ones.

    Returns:
        Images (n, 3, 32, 32) and labels (n,), both uint8.

    Raises:
        CorruptDataError: If a file is damaged or not in the expected format.
        ImportError: If the JPEG archive is read and Pillow is not installed.
    """
    if _is_jpeg(folder):
        return _read_archive(folder / _ARCHIVES[part], limit)
    images, labels, count = [], [], 0
    for name in _BATCHES[part]:
        if limit is None or count < limit:
            image, label = read_batch(folder / name, "CIFAR-10", {"labels": 10})
            images.append(image)
            labels.append(label["labels"])
            count += len(image)
    return np.concatenate(images)[:limit], np.concatenate(labels)[:limit]


def read_batch(
    path: Path, title: str, kinds: Mapping[str, int]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.uint8]]]:
    """Read one pickled batch in the format that CIFAR-10 and CIFAR-100 share.

    Args:
        path: The file.
        title: Display name of the data set, for error messages.
        kinds: Number of classes by label key; the labels of every key are read and checked.

    Returns:
        Images (n, 3, 32, 32), and the labels (n,) by key, all uint8.

    Raises:
        CorruptDataError: If the file is damaged, lacks a key, or its labels or images have the wrong shape or range.
    """
    batch = read_pickle(path)
    keys = ("data", *kinds)
    if not batch.keys() >= set(keys):
        expected = f"{', '.join(map(repr, keys[:-1]))} and {keys[-1]!r}"
        raise CorruptDataError(f"{path}: expected the keys {expected} of {title}, found {sorted(batch)}.")
    labels = {kind: _labels(path, batch[kind], classes, kind) for kind, classes in kinds.items()}
    data = batch["data"]
    for kind, values in labels.items():
        if not isinstance(data, np.ndarray) or data.shape != (len(values), 3072):
            raise CorruptDataError(
                f"{path}: expected 'data' of shape {(len(values), 3072)}, uint8, to match the {kind}; found "
                f"{np.shape(data)}."
            )
    return data.reshape(-1, 3, 32, 32), labels


def _labels(path: Path, values: Any, classes: int, kind: str) -> NDArray[np.uint8]:
    labels = np.asarray(values)
    valid = labels.ndim == 1 and labels.dtype.kind in "iu" and labels.size > 0
    if not valid or labels.min() < 0 or labels.max() >= classes:
        raise CorruptDataError(
            f"{path}: expected {kind} 0 to {classes - 1} of shape (n,); found shape {labels.shape}, {labels.dtype}"
            + (f", from {labels.min()} to {labels.max()}." if labels.size and labels.dtype.kind in "iu" else ".")
        )
    return labels.astype(np.uint8)


def _read_archive(path: Path, limit: int | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{path} holds JPEG images, and Pillow, which decodes them, is missing: pip install pillow"
        ) from error
    archive = read_npz(path, ("jpeg", "offset", "label"))
    jpeg, offset = archive["jpeg"], archive["offset"].astype(np.int64)
    labels = _labels(path, archive["label"], 10, "labels")
    count = len(labels)
    if offset.shape != (count + 1,) or offset[0] != 0 or offset[-1] != jpeg.size or (np.diff(offset) <= 0).any():
        raise CorruptDataError(
            f"{path}: expected {count + 1} increasing offsets from 0 to the {jpeg.size} bytes of 'jpeg', found "
            f"{offset.size}" + (f" from {offset[0]} to {offset[-1]}." if offset.size else ".")
        )
    count = count if limit is None else min(limit, count)
    content = jpeg.tobytes()
    images = np.empty((count, 3, 32, 32), np.uint8)

    def decode(start: int, stop: int) -> None:
        for i in range(start, stop):
            try:
                with Image.open(io.BytesIO(content[offset[i] : offset[i + 1]]), formats=["JPEG"]) as image:
                    if image.size != (32, 32) or image.mode != "RGB":
                        raise ValueError(f"{image.mode} of size {image.size}")
                    images[i] = np.asarray(image).transpose(2, 0, 1)
            # Pillow raises OSError, SyntaxError or ValueError, depending on which part of the JPEG data is damaged.
            except (OSError, SyntaxError, ValueError) as error:
                raise CorruptDataError(
                    f"{path}: expected image {i} to be a 32 x 32 RGB JPEG, found {error}."
                ) from error

    step = 1000
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for future in [pool.submit(decode, start, min(start + step, count)) for start in range(0, count, step)]:
            future.result()
    return images, labels[:count]

"""`load` and `locate`: the tensors of a data set, and the folder of its files, by name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pyrostoch.data.cifar import cifar_title, locate_cifar, read_cifar
from pyrostoch.data.cifar100 import CIFAR100, locate_cifar100, read_cifar100
from pyrostoch.data.digits import read_digits
from pyrostoch.data.files import data_root
from pyrostoch.data.mnist import TITLES, locate_mnist, read_mnist
from pyrostoch.data.split import DataSplit
from pyrostoch.data.standard import standard_scale
from pyrostoch.data.uci import UCI_SETS, locate_uci, read_uci, uci_folder_name

__all__ = ["NAMES", "load", "locate"]

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", *CIFAR100, *(f"uci:{name}" for name in UCI_SETS))


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: int = 0,
    dtype: torch.dtype = torch.float32,
    limit: int | None = None,
) -> DataSplit:
    """Load a data set into memory.

    Images come as (n, 1, 8, 8) for `digits`, (n, 1, 28, 28) for the two MNISTs and (n, 3, 32, 32) for CIFAR-10 and
    CIFAR-100, in [0, 1], with int64 labels. UCI sets are standardized with the mean and standard deviation of their
    training part; see `DataSplit` for how to undo it.

    Args:
        name: `"digits"` (bundled), `"mnist"`, `"fashion-mnist"`, `"cifar10"`, `"cifar100-coarse"` (20 classes) or
            `"cifar100-fine"` (100 classes), or `"uci:<name>"` with one of the seven standard sets or the name of a
            folder laid out like them.
        data_dir: Folder of the data, in torchvision's layout; default: the environment variable `PYROSTOCH_DATA`.
        split: Number of the standard train/test split, for UCI sets; the other data sets have one split, number 0.
        dtype: Floating-point type of inputs and regression targets.
        limit: Keep at most this many examples of each part, the first ones. UCI sets are then standardized with the
            statistics of the kept training examples.

    Returns:
        The training and test parts, on the CPU.

    Raises:
        ValueError: If the name is unknown, there is no such split, or the limit is below 1.
        TypeError: If `dtype` is not a floating-point type.
        DataNotFoundError: If the files are not found; the message lists the files, the folders searched, and how to
            get them.
        CorruptDataError: If a file is damaged or not in the expected format.

    Example:
        >>> digits = load("digits")
        >>> tuple(digits.x_train.shape), digits.num_classes
        ((1437, 1, 8, 8), 10)
    """
    name = _canonical_name(name)
    if not dtype.is_floating_point:
        raise TypeError(f"load({name!r}) expects a floating dtype for its inputs, got {dtype}.")
    if limit is not None and limit < 1:
        raise ValueError(f"load({name!r}) expects a limit of at least 1 example, got {limit}.")
    root = data_root(data_dir)
    if name.startswith("uci:"):
        return _regression(name, locate(name, data_dir), split, dtype, limit)
    if split != 0:
        raise ValueError(f"{name} has one standard split, number 0; got split={split}. Only the uci: sets have more.")
    if name == "digits":
        images, labels, test = read_digits()
        parts = [(images[mask][:, None][:limit], labels[mask][:limit]) for mask in (~test, test)]
        return _classification(name, "Handwritten digits (UCI)", "bundled", parts, 16.0, dtype)
    if name == "cifar10":
        folder = locate_cifar(root)
        parts = [read_cifar(folder, "train", limit), read_cifar(folder, "test", limit)]
        return _classification(name, cifar_title(folder), str(folder), parts, 255.0, dtype)
    if name in CIFAR100:
        folder, (kind, classes) = locate_cifar100(name, root), CIFAR100[name]
        parts = [read_cifar100(name, folder, "train", limit), read_cifar100(name, folder, "test", limit)]
        title = f"CIFAR-100 ({classes} {kind} labels)"
        return _classification(name, title, str(folder), parts, 255.0, dtype, num_classes=classes)
    folder = locate_mnist(name, root)
    complete = [read_mnist(name, folder, "train"), read_mnist(name, folder, "test")]
    parts = [(images[:limit, None], labels[:limit]) for images, labels in complete]
    return _classification(name, TITLES[name], str(folder), parts, 255.0, dtype)


def locate(name: str, data_dir: str | os.PathLike[str] | None = None) -> str:
    """Return the folder of a data set, without reading its files.

    Args:
        name: As for `load`; `NAMES` lists the standard ones.
        data_dir: As for `load`.

    Returns:
        The folder that holds the files, or `"bundled"`.

    Raises:
        ValueError: If the name is unknown.
        DataNotFoundError: If the files are not found.

    Example:
        >>> locate("digits")
        'bundled'
    """
    name, root = _canonical_name(name), data_root(data_dir)
    if name == "digits":
        return "bundled"
    if name == "cifar10":
        return str(locate_cifar(root))
    if name in CIFAR100:
        return str(locate_cifar100(name, root))
    if name.startswith("uci:"):
        return str(locate_uci(name.removeprefix("uci:"), root))
    return str(locate_mnist(name, root))


def _canonical_name(name: str) -> str:
    """Return the name as spelled in `NAMES`, or `uci:<folder>` for a folder of the user's."""
    lower = name.strip().lower()
    if lower in NAMES:
        return lower
    if lower.startswith("uci:") and (folder := uci_folder_name(name.strip()[4:])) is not None:
        return f"uci:{folder}"
    if lower.replace("-", "").startswith("cifar100"):
        kinds = " or ".join(f"{known!r} ({classes} classes)" for known, (_, classes) in CIFAR100.items())
        raise ValueError(
            f"There is no data set {name!r}: CIFAR-100 has two kinds of labels, chosen by the name: {kinds}."
        )
    close = difflib.get_close_matches(lower, NAMES, n=1)
    raise ValueError(
        f"There is no data set {name!r}.{f' Did you mean {close[0]!r}?' if close else ''} Known: {', '.join(NAMES)}, "
        "and uci:<folder> for a data set of your own in the same layout."
    )


def _classification(
    name: str,
    title: str,
    source: str,
    parts: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    scale: float,
    dtype: torch.dtype,
    num_classes: int = 10,
) -> DataSplit:
    (x_train, y_train), (x_test, y_test) = (
        (torch.from_numpy(np.ascontiguousarray(x)).to(dtype).div_(scale), torch.from_numpy(y.astype(np.int64)))
        for x, y in parts
    )
    shape = tuple(x_train.shape[1:])
    return DataSplit(name, title, "classification", x_train, y_train, x_test, y_test, num_classes, shape, source)


def _regression(name: str, source: str, split: int, dtype: torch.dtype, limit: int | None) -> DataSplit:
    rows = read_uci(Path(source), split)
    x_train, y_train = rows.x_train[:limit], rows.y_train[:limit, None]
    x_mean, x_std = standard_scale(x_train)
    y_mean, y_std = standard_scale(y_train)

    def tensor(values: NDArray[np.float64], mean: NDArray[np.float64], std: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy((values - mean) / std).to(dtype)

    return DataSplit(
        name=name,
        title=f"UCI {name.removeprefix('uci:')}, split {split}",
        task="regression",
        x_train=tensor(x_train, x_mean, x_std),
        y_train=tensor(y_train, y_mean, y_std),
        x_test=tensor(rows.x_test[:limit], x_mean, x_std),
        y_test=tensor(rows.y_test[:limit, None], y_mean, y_std),
        num_classes=None,
        input_shape=(x_train.shape[1],),
        source=source,
        target_scale=(float(y_mean[0]), float(y_std[0])),
    )

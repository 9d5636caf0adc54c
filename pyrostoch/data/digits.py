"""The handwritten digits bundled with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from pyrostoch.data.files import read_npz

__all__ = ["read_digits"]


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Read the 1,797 bundled digits.

    Returns:
        Images (1797, 8, 8) with values 0 to 16, labels (1797,), and a mask (1797,) that is true for the 360 test
        images. The split was drawn once, stratified by class, and is stored in the file.

    Example:
        >>> images, labels, test = read_digits()
        >>> images.shape, int(images.max()), int(test.sum())
        ((1797, 8, 8), 16, 360)

    References:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits" (1998), UCI Machine Learning Repository, CC BY
        4.0.
    """
    with as_file(files("pyrostoch.data").joinpath("digits.npz")) as path:
        archive = read_npz(path, ("images", "labels", "test"))
    return archive["images"].astype(np.uint8), archive["labels"].astype(np.uint8), archive["test"].astype(np.bool_)

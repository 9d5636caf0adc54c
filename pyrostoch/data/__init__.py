"""Data sets as tensors in memory: bundled digits, MNIST and Fashion-MNIST, CIFAR-10 and CIFAR-100, UCI regression sets.

Example:
    >>> from pyrostoch import data
    >>> data.load("digits", limit=100).x_train.shape
    torch.Size([100, 1, 8, 8])
"""

from __future__ import annotations

from pyrostoch.data.download import download
from pyrostoch.data.errors import CorruptDataError, DataNotFoundError, DownloadError
from pyrostoch.data.load import NAMES, load, locate
from pyrostoch.data.split import DataSplit

__all__ = ["NAMES", "CorruptDataError", "DataNotFoundError", "DataSplit", "DownloadError", "download", "load", "locate"]

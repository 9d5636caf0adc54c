"""Data sets as tensors in memory: bundled digits, MNIST and Fashion-MNIST, CIFAR-10 and CIFAR-100, UCI regression sets.

Example:
    >>> from pyrostoch import data
    >>> data.load("digits", limit=100).x_train.shape
    torch.Size([100, 1, 8, 8])
"""

from __future__ import annotations

from pyrostoch.data.csv_file import read_table
from pyrostoch.data.download import download
from pyrostoch.data.errors import CorruptDataError, DataNotFoundError, DownloadError
from pyrostoch.data.image_folder import image_files, load_images
from pyrostoch.data.image_schema import ImageSchema
from pyrostoch.data.load import NAMES, load, locate
from pyrostoch.data.objects import pad_objects, pixel_labels
from pyrostoch.data.scenes import DigitClips, DigitScenes
from pyrostoch.data.schema import Column, Schema
from pyrostoch.data.split import DataSplit
from pyrostoch.data.table import Table, load_table

__all__ = [
    "NAMES",
    "Column",
    "CorruptDataError",
    "DataNotFoundError",
    "DataSplit",
    "DigitClips",
    "DigitScenes",
    "DownloadError",
    "ImageSchema",
    "Schema",
    "Table",
    "download",
    "image_files",
    "load",
    "load_images",
    "load_table",
    "locate",
    "pad_objects",
    "pixel_labels",
    "read_table",
]

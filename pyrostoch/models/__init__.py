"""Networks: plain torch modules, which `BayesianModel` makes Bayesian.

| name | network |
| --- | --- |
| `MLP` | fully connected, on flattened inputs |
| `LeNet5` | convolutional, 20-50-500-10, with batch normalization |
| `VGG` | thirteen convolutions for CIFAR images, with batch normalization and dropout; `width` scales it |
| `TriDeNT`, `TriDeNTConv` | three-state neurons between linear layers, or between convolutions |
| `Detector` | a compact detector of objects without anchors, and of the pixels they have |
| `CropAndFlip` | a layer to put in front of a network: random crops and flips of training images |

`DetectionLoss` trains a `Detector`; `detect`, with `nms`, `object_masks` and `track` read what it tells.

`build` makes one of `NAMES` for given input and output sizes, `build_from_file` a network by a function in a file of
yours.
"""

from __future__ import annotations

if __name__ != "pyrostoch.models":
    raise ImportError(
        f"import pyrostoch.models, not {__name__}: the folder at the repository's root is a link for readers, and a "
        "second copy of its classes would not be recognized"
    )

from pyrostoch.models.augment import CropAndFlip
from pyrostoch.models.detection_loss import DetectionLoss
from pyrostoch.models.detector import Detections, Detector, detect, nms, object_masks
from pyrostoch.models.from_file import build_from_file
from pyrostoch.models.lenet import LeNet5
from pyrostoch.models.mlp import MLP
from pyrostoch.models.registry import NAMES, build
from pyrostoch.models.track import track
from pyrostoch.models.trident import TriDeNT, TriDeNTConv
from pyrostoch.models.vgg import VGG

__all__ = [
    "MLP",
    "NAMES",
    "VGG",
    "CropAndFlip",
    "DetectionLoss",
    "Detections",
    "Detector",
    "LeNet5",
    "TriDeNT",
    "TriDeNTConv",
    "build",
    "build_from_file",
    "detect",
    "nms",
    "object_masks",
    "track",
]

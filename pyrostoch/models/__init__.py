"""Networks: plain torch modules, to be made Bayesian by `BayesianModel`.

| name | network |
| --- | --- |
| `MLP` | fully connected, on flattened inputs |
| `LeNet5` | the convolutional network 20-50-500-10, with batch normalization |
| `VGG` | the thirteen convolutions of CIFAR experiments, with batch normalization and dropout; narrow by its `width` |
| `TriDeNT`, `TriDeNTConv` | neurons of three states between linear layers, and between convolutions |
| `CropAndFlip` | random crops and flips of training images, to stand in front of a network |
| `build` | one of these by its name, for given input and output sizes |
"""

from __future__ import annotations

if __name__ != "pyrostoch.models":
    raise ImportError(
        f"import pyrostoch.models, not {__name__}: the folder at the repository's root is a link for readers, and a "
        "second copy of its classes would not be recognized"
    )

from pyrostoch.models.augment import CropAndFlip
from pyrostoch.models.lenet import LeNet5
from pyrostoch.models.mlp import MLP
from pyrostoch.models.registry import NAMES, build
from pyrostoch.models.trident import TriDeNT, TriDeNTConv
from pyrostoch.models.vgg import VGG

__all__ = ["MLP", "NAMES", "VGG", "CropAndFlip", "LeNet5", "TriDeNT", "TriDeNTConv", "build"]

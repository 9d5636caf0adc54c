"""Conditional layers: a layer of its own for every class, chosen by labels or combined by a selection.

| name | what it is |
| --- | --- |
| `Conditional` | the layer: deterministic or stochastic, for known classes or under a selection |
| `HardSelection` | known classes: a label for each example, boxes, or masks |
| `PixelClasses` | known classes of pixels, read from targets with boxes or masks |
| `SoftSelection`, `GatedSelection` | numbers between 0 and 1 for every class: learned tensors, or a gate on the input |
| `SelectedAt` | a network whose conditional layer is selected at another of its modules |
| `make_conditional` | gives every class a copy of layers of an existing network |
| `accept_labels` | lets a network take known classes as one more input |
"""

from __future__ import annotations

from pyrostoch.layers.conditional.conditional import Conditional
from pyrostoch.layers.conditional.elsewhere import SelectedAt
from pyrostoch.layers.conditional.hard import HardSelection, accept_labels
from pyrostoch.layers.conditional.make import make_conditional
from pyrostoch.layers.conditional.pixels import PixelClasses
from pyrostoch.layers.conditional.soft import GatedSelection, SoftSelection

__all__ = [
    "Conditional",
    "GatedSelection",
    "HardSelection",
    "PixelClasses",
    "SelectedAt",
    "SoftSelection",
    "accept_labels",
    "make_conditional",
]

"""Numbers of few values: gradients and weights on a grid, and networks of integers.

| file | what it does |
| --- | --- |
| `gradients` | ternary, binary and k-bit gradients, drawn so that their mean is the gradient |
| `grid` | weights that an optimizer moves by whole states |
| `export` | a trained network as integers, checked against it |
| `integer` | their layers |
| `costs` | what these take in bits and operations |
"""

from pyrostoch.quantize.costs import LayerCost, NetworkCost
from pyrostoch.quantize.export import export_integer
from pyrostoch.quantize.gradients import BinaryGradient, DiscreteGradient, KBitGradient, TernaryGradient, rounded
from pyrostoch.quantize.grid import GridUpdates
from pyrostoch.quantize.integer import IntegerLayer, IntegerNetwork

__all__ = [
    "BinaryGradient",
    "DiscreteGradient",
    "GridUpdates",
    "IntegerLayer",
    "IntegerNetwork",
    "KBitGradient",
    "LayerCost",
    "NetworkCost",
    "TernaryGradient",
    "export_integer",
    "rounded",
]

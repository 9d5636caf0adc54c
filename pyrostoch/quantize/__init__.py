"""Quantization: gradients and weights on a grid, and networks of integers.

| file | contents |
| --- | --- |
| `gradients` | ternary, binary and k-bit gradients by stochastic rounding, whose mean is the gradient |
| `grid` | training of weights that stay on a grid |
| `export` | conversion of a trained network to integers, checked against the network |
| `integer` | layers and networks of integers |
| `costs` | their bits and operations |
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

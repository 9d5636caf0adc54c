"""The cost of a network of integers: bits of its weights, and operations for one example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from pyrostoch.records import Record, table

__all__ = ["LayerCost", "NetworkCost"]


@dataclass(frozen=True)
class LayerCost(Record):
    """The cost of a layer: bits of its weights, and operations for one example.

    Args:
        name: Name of the layer.
        weights: Number of weights.
        weight_bits: Bits to store the weights, each as the index of its level.
        float_bits: Bits to store the same weights in single precision.
        additions: Number of products of a nonzero weight and an input that are summed.
        active: Number of those products in which the input is nonzero too, a mean over examples.
        multiplications: Number of products that are not just a change of sign.
        comparisons: Number of comparisons of a sum with a threshold.
    """

    name: str
    weights: int
    weight_bits: int
    float_bits: int
    additions: int
    active: float
    multiplications: int
    comparisons: int

    def __str__(self) -> str:
        """A table of one row."""
        return _cost_table([self])


_COUNTS = tuple(field.name for field in fields(LayerCost))[1:]


@dataclass(frozen=True)
class NetworkCost(Record):
    """The cost of a network: that of each layer, over which it iterates.

    Args:
        layers: The costs of the layers, in the order in which they run.
    """

    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> LayerCost:
        """The sums over all layers."""
        return LayerCost("total", **{name: sum(getattr(layer, name) for layer in self.layers) for name in _COUNTS})

    def __iter__(self) -> Iterator[LayerCost]:
        """The layers' costs."""
        return iter(self.layers)

    def __str__(self) -> str:
        """A table with one row for each layer, and their sums."""
        return _cost_table([*self.layers, self.total])


def _cost_table(costs: list[LayerCost]) -> str:
    headings = ("layer", *(name.replace("_", " ") for name in _COUNTS))
    return table(headings, [(cost.name, *(f"{getattr(cost, name):,.0f}" for name in _COUNTS)) for cost in costs])

"""What a network of integers takes for one example: bits of its weights, and operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from pyrostoch.records import Record, table

__all__ = ["LayerCost", "NetworkCost"]


@dataclass(frozen=True)
class LayerCost(Record):
    """What a layer takes for one example.

    Args:
        name: The layer.
        weights: Number of its weights.
        weight_bits: Bits in which they can be kept, each as the number of a level.
        float_bits: Bits of the same weights in single precision.
        additions: Sums of a product of weight and input where the weight is not 0.
        active: Those of them in which the input is not 0 either, a mean over the examples looked at.
        multiplications: Products that are more than a sign.
        comparisons: Comparisons of a sum with a threshold.
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
        return _rows([self])


_COUNTS = tuple(field.name for field in fields(LayerCost))[1:]


@dataclass(frozen=True)
class NetworkCost(Record):
    """What the layers of a network take for one example; it runs over them.

    Args:
        layers: The layers' costs, in their order.
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
        """A table of a row for each layer, and their sums."""
        return _rows([*self.layers, self.total])


def _rows(costs: list[LayerCost]) -> str:
    headings = ("layer", *(name.replace("_", " ") for name in _COUNTS))
    return table(headings, [(cost.name, *(f"{getattr(cost, name):,.0f}" for name in _COUNTS)) for cost in costs])

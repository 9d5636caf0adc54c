"""The benchmark of speed: steps of several libraries side by side, averages, memory, and the import.

`workers` are processes that make steps, `driver` makes them take turns, `summary` turns times into medians and ratios,
`measures` carries out the cases, and `plan` says what they are.
"""

from __future__ import annotations

from pyrostoch.bench.speed.plan import SPEED

__all__ = ["SPEED"]

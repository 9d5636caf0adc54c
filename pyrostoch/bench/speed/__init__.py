"""The benchmark of speed: training steps of several libraries, averaged predictions, memory, and import time.

| file | what |
| --- | --- |
| `implementations` | the implementations that are compared: ways to make a training step, each with one library |
| `workers` | processes that make and time the steps of one implementation |
| `driver` | starts the workers and lets them take turns |
| `summary` | turns times into medians and ratios |
| `measures` | the custom trials, one for each kind of measurement |
| `plan` | the bench: its cases, presets, table and notes |
"""

from __future__ import annotations

from pyrostoch.bench.speed.plan import SPEED

__all__ = ["SPEED"]

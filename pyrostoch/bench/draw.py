"""The figures of the benchmarks, from what their trials left behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrostoch.bench.case import Bench, Setting
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.run import finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_figures"]


def write_figures(bench: Bench, setting: Setting) -> list[Path]:
    """Draw what the finished trials of a preset have recorded, the first seed of each.

    Args:
        bench: The benchmark.
        setting: Preset and folder.

    Returns:
        The files written: `<out>/figures/<bench>-transition-<preset>.png` where cases have a curve, and
        `<out>/figures/<bench>-<preset>.png` where the benchmark has a figure of its own.
    """
    from pyrostoch.report.figures import phase_transition

    trials = [record for record in finished(bench, setting) if record["preset"] == setting.preset]
    drawn: dict[str, Figure | None] = {}
    curves = _first([record for record in trials if record["curve"]])
    if curves:
        labels = _labels([record["case"] for record in curves])
        lines = [{"label": label, **record["curve"]} for label, record in zip(labels, curves, strict=True)]
        drawn["-transition"] = phase_transition(lines, title="Test accuracy, first 2,000 images")
    if bench.figure is not None:
        drawn[""] = bench.figure({record["case"]: record["metrics"] for record in _first(trials)})
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            paths.append(setting.out / "figures" / f"{bench.name}{name}-{setting.preset}.png")
            save_figure(figure, paths[-1])
    return paths


def _first(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials of the lowest seed."""
    seed = min((record["seed"] for record in trials), default=None)
    return [record for record in trials if record["seed"] == seed]


def _labels(names: Sequence[str]) -> list[str]:
    """Names of cases without the parts that all of them begin with."""
    parts = [name.split("/") for name in names]
    shared = len(os.path.commonprefix(parts))
    return ["/".join(part[min(shared, len(part) - 1) :]) for part in parts]

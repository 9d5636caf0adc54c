"""The figures of the benchmarks, drawn from trial records."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrostoch.bench.case import Bench, Setting
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.run import finished_trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_figures"]


def write_figures(bench: Bench, setting: Setting) -> list[Path]:
    """Draw the figures of a benchmark from its finished trials of one preset, those of the lowest seed.

    Args:
        bench: The benchmark.
        setting: Preset and folder.

    Returns:
        The files written: `<out>/figures/<bench>-transition-<preset>.png` if cases have a training curve, and
        `<out>/figures/<bench>-<preset>.png` if the benchmark has a figure.
    """
    from pyrostoch.report.figures import phase_transition

    trials = [record for record in finished_trials(bench, setting) if record["preset"] == setting.preset]
    figures: dict[str, Figure | None] = {}
    curves = _lowest_seed([record for record in trials if record["curve"]])
    if curves:
        labels = _labels([record["case"] for record in curves])
        lines = [{"label": label, **record["curve"]} for label, record in zip(labels, curves, strict=True)]
        figures["-transition"] = phase_transition(lines, title="Test accuracy, first 2,000 images")
    if bench.figure is not None:
        figures[""] = bench.figure({record["case"]: record["metrics"] for record in _lowest_seed(trials)})
    paths = []
    for suffix, figure in figures.items():
        if figure is not None:
            paths.append(setting.out / "figures" / f"{bench.name}{suffix}-{setting.preset}.png")
            save_figure(figure, paths[-1])
    return paths


def _lowest_seed(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials of the lowest seed."""
    seed = min((record["seed"] for record in trials), default=None)
    return [record for record in trials if record["seed"] == seed]


def _labels(names: Sequence[str]) -> list[str]:
    """Names of cases without their common leading parts."""
    parts = [name.split("/") for name in names]
    common = len(os.path.commonprefix(parts))
    return ["/".join(part[min(common, len(part) - 1) :]) for part in parts]

"""The figures of the benchmarks, from what their trials left behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pyrostoch.bench.case import Bench
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.run import finished
from pyrostoch.bench.trial import Setting

__all__ = ["write_figures"]


def write_figures(bench: Bench, setting: Setting) -> list[Path]:
    """Draw what the finished trials of a preset have recorded of their course: the first seed of cases with a curve.

    Args:
        bench: The benchmark.
        setting: Preset and folder.

    Returns:
        The files written, `<out>/figures/<bench>-transition-<preset>.png`; none where nothing has a course.
    """
    from pyrostoch.report.figures import phase_transition

    trials = [record for record in finished(bench, setting) if record["preset"] == setting.preset and record["curve"]]
    if not trials:
        return []
    first = min(record["seed"] for record in trials)
    shown = [record for record in trials if record["seed"] == first]
    labels = _labels([record["case"] for record in shown])
    curves = [{"label": label, **record["curve"]} for label, record in zip(labels, shown, strict=True)]
    path = setting.out / "figures" / f"{bench.name}-transition-{setting.preset}.png"
    save_figure(phase_transition(curves, title="Test accuracy, first 2,000 images"), path)
    return [path]


def _labels(names: Sequence[str]) -> list[str]:
    """Names of cases without the parts that all of them begin with."""
    parts = [name.split("/") for name in names]
    shared = len(os.path.commonprefix(parts))
    return ["/".join(part[min(shared, len(part) - 1) :]) for part in parts]

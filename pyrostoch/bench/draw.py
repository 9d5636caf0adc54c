"""The figures of the benchmarks, from what their trials left behind."""

from __future__ import annotations

from pathlib import Path

from pyrostoch.bench.case import Bench
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.run import finished
from pyrostoch.bench.trial import Setting

__all__ = ["write_figures"]


def write_figures(bench: Bench, setting: Setting) -> list[Path]:
    """Draw what the finished trials of a preset have recorded of their course: seed 0 of each case with a curve.

    Args:
        bench: The benchmark.
        setting: Preset and folder.

    Returns:
        The files written, `<out>/figures/<bench>-transition-<preset>.png`; none where nothing has a course.
    """
    from pyrostoch.report.figures import phase_transition

    trials = [r for r in finished(bench, setting) if r["preset"] == setting.preset and r["curve"]]
    first = min((r["seed"] for r in trials), default=0)
    curves = [
        {"label": bench.case(record["case"]).title.partition(":")[0], **record["curve"]}
        for record in trials
        if record["seed"] == first
    ]
    if not curves:
        return []
    path = setting.out / "figures" / f"{bench.name}-transition-{setting.preset}.png"
    save_figure(phase_transition(curves), path)
    return [path]

"""The figure of the bench `privacy`: what an attacker reads, against how accurate the task still is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyrostoch.bench.published.privacy_networks import SPLITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves"]

_KINDS = {
    "gate": "by class, soft",
    "predicted": "by predicted class",
    "isotropic": "isotropic",
    "bottleneck": "bottleneck",
}


def draw_curves(scores: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Accuracy of the task and digits read, one panel for each place of the cut.

    Args:
        scores: Metrics by case, of one seed.

    Returns:
        The figure; `None` where no case was run.
    """
    from matplotlib.figure import Figure

    splits = [at for at in SPLITS if f"audit/{at}/gate" in scores]
    if not splits:
        return None
    figure = Figure(figsize=(4.0 * len(splits), 3.6), layout="constrained")
    for axes, at in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        curve = scores[f"audit/{at}/gate"]
        points = sorted(
            (100.0 * value, 100.0 * curve[name.replace("accuracy", "digit")])
            for name, value in curve.items()
            if name.startswith("curve/accuracy/test/")
        )
        axes.plot(*zip(*points, strict=True), marker=".", color="C0")
        for number, (kind, title) in enumerate(_KINDS.items()):
            if (found := scores.get(f"audit/{at}/{kind}")) is not None:
                place = 100.0 * found["accuracy/sent"], 100.0 * found["digit/1"]
                axes.plot(*place, "o", color=f"C{number}", label=title)
        axes.axhline(100.0 * curve["digit/label"], color="0.5", linestyle=":")
        axes.axvline(100.0 * curve["accuracy/clean"], color="0.5", linestyle="--")
        axes.set_title(f"cut behind {at}")
        axes.set_xlabel("task from one query, %")
        axes.set_ylim(0.0, 100.0)
    first = figure.axes[0]
    first.set_ylabel("digits read from one query, %")
    first.legend(fontsize=8)
    return figure

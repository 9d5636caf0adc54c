"""The figure of the bench `rivals`: how far each method is from NUTS, and what it says in a gap between data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyrostoch.bench.published.rivals_stages import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SETS", "draw_methods"]

#: The data sets and their titles.
SETS = {"yacht": "Yacht", "energy": "Energy", "bostonHousing": "Boston"}
_PANELS = {
    "distance": "Wasserstein distance to NUTS / its sd",
    "gap/nll": "NLL in the gap, nats (beyond 10: logarithmic)",
}


def draw_methods(scores: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """A line for each method, a mark for each data set.

    Args:
        scores: Metrics by case, of one seed.

    Returns:
        The figure; `None` where no method was run.
    """
    from matplotlib.figure import Figure

    methods = [name for name in METHODS if any(f"{data}/{name}" in scores for data in SETS)]
    if not methods:
        return None
    figure = Figure(figsize=(9.5, 0.32 * len(methods) + 1.4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(_PANELS), sharey=True), _PANELS.items(), strict=True):
        for data, marker in zip(SETS, "os^", strict=True):
            found = {
                row: scores[f"{data}/{name}"][metric]
                for row, name in enumerate(methods)
                if metric in scores.get(f"{data}/{name}", {})
            }
            axes.plot(list(found.values()), list(found), marker, label=SETS[data], alpha=0.8)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    figure.axes[1].set_xscale("symlog", linthresh=10.0)
    figure.axes[0].set_yticks(range(len(methods)), [METHODS[name].title for name in methods])
    figure.axes[0].invert_yaxis()
    figure.axes[0].legend(fontsize=8)
    return figure

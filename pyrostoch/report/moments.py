"""Figure of moment propagation against Monte Carlo: errors by depth and width, and Monte Carlo draws of equal error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyrostoch.report.plots import COLORS, GRAY, label_axes, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["NetworkScores", "moments_errors"]

#: Hidden layers and width of a random network, whether the full covariance was propagated, and scores by name.
NetworkScores = tuple[int, int, bool, Mapping[str, Any]]

_MARKERS = ("o", "s", "^")


def moments_errors(networks: Sequence[NetworkScores]) -> Figure:
    """Errors of the propagated output moments in random networks, and the Monte Carlo draws of equal error.

    Args:
        networks: Hidden layers, width, whether the full covariance was propagated, and the scores: `gap/variance` and
            `gap/mean`, the errors; `gap/draws`, the Monte Carlo draws of equal error, `None` if the error is below that
            of the Monte Carlo estimate it was measured with; `time/moments`, the time in units of that of one draw.

    Returns:
        A figure of three panels.

    Example:
        >>> scores = {"gap/variance": 0.1, "gap/mean": 0.2, "gap/draws": 25.0, "time/moments": 3.0}
        >>> [axes.get_title() for axes in moments_errors([(1, 50, False, scores), (2, 50, False, scores)]).axes]
        ['Error of the variances', 'Error of the means', 'Draws of equal error']
    """
    figure, axes = panels(3, 3, 4.0, 3.2)
    widths = sorted({width for _, width, _, _ in networks})
    depths = sorted({depth for depth, _, _, _ in networks})
    for color, marker, width in zip(COLORS, _MARKERS, widths, strict=False):
        for full in (False, True):
            rows = sorted((depth, scores) for depth, w, f, scores in networks if (w, f) == (width, full))
            if not rows:
                continue
            label = f"width {width}, {'full covariance' if full else 'variances'}"
            line: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "--" if full else "-"}
            layers = [depth for depth, _ in rows]
            axes[0].plot(layers, [100.0 * abs(scores["gap/variance"]) for _, scores in rows], label=label, **line)
            axes[1].plot(layers, [scores["gap/mean"] for _, scores in rows], **line)
            known = [scores for _, scores in rows if scores["gap/draws"] is not None]
            axes[2].plot(
                [scores["time/moments"] for scores in known],
                [scores["gap/draws"] for scores in known],
                color=color,
                marker=marker,
                linestyle="none",
                fillstyle="none" if full else "full",
            )
    label_axes(axes[0], "Error of the variances", "hidden layers", "relative error, %")
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=7)
    label_axes(axes[1], "Error of the means", "hidden layers", "in standard deviations")
    for panel in axes[:2]:
        panel.set_xticks(depths, [str(depth) for depth in depths])
    _finish_draws_panel(axes[2])
    return figure


def _finish_draws_panel(axes: Axes) -> None:
    """Label the third panel, and add the line of equal time; above it, moments cost less than draws of equal error."""
    label_axes(axes, "Draws of equal error", "time of a pass / time of a draw", "draws")
    axes.set_xscale("log")
    axes.set_yscale("log")
    most = 10.0 ** math.ceil(math.log10(max(10.0, axes.get_xlim()[1])))
    axes.set_xlim(1.0, most)
    axes.set_ylim(1.0, 3.0 * axes.get_ylim()[1])
    axes.plot((1.0, most), (1.0, most), color=GRAY, linewidth=1.0)
    axes.annotate("equal time", (most, most), fontsize=7, color=GRAY, ha="right", va="bottom")

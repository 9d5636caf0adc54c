"""Figures of benchmarks: the toy problem of the variance networks, and the phase transition towards one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from pyrostoch.report.plots import COLORS, GRAY, name_axes, panels
from pyrostoch.report.record import floats, mode_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["phase_transition", "toy"]

# One for each color, so that print in gray tells series and classes apart.
MARKERS = ("o", "s", "^", "D", "v", "P")
# Share of a class's color in a region: what is left at the confidence of a guess, and at full confidence.
PALE, FULL = 0.06, 0.7
# Points of each class drawn in a panel of regions, and markers along a line: more hide what is below.
POINTS_SHOWN = 60
MARKS_SHOWN = 8
# A line joins neighbors up to this many times the usual distance of its points, and is broken beyond.
GAP = 1.5
# Room for a label along an axis, in units of half the axis.
LABEL_WIDTH = 0.25
# Of accuracies by averaging, beside the solid ones by mean weights.
DASHED = (0, (4, 2))


def toy(result: Any) -> Figure:
    """Decision regions of a variance network by its mean and by averaging, and the outputs of its variance layer.

    Confidence shades the regions, from white at that of a guess. The third panel shows each class as a cloud that is
    symmetric about zero, so that only its width tells it from the others; its axes are linear near zero and logarithmic
    far from it, for the widths differ by orders of magnitude.

    Args:
        result: What `pyrostoch.bench.published.toy.train` returns, or an object with its fields `x`, `y`, `axis`,
            `by_mean`, `by_averaging`, `activations` and its `accuracy` by mode.

    Returns:
        A figure of three axes, and a fourth that explains the shades.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> regions = SimpleNamespace(label=np.zeros((2, 2), int), confidence=np.ones((2, 2)))
        >>> result = SimpleNamespace(x=np.eye(2), y=np.arange(2), axis=np.arange(2.0), by_mean=regions,
        ...     by_averaging=regions, activations=np.ones((3, 2, 2)), accuracy={"mean": 0.5, "mc:101": 1.0})
        >>> [axes.get_title() for axes in toy(result).axes[:2]]
        ['Mean weights: accuracy 50.0 %', '101 samples averaged: accuracy 100.0 %']

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov 2018 (arXiv 1803.03764).
    """
    import numpy as np

    figure, grid = panels(3, 3, 3.5, 3.7)
    classes = np.unique(result.y).tolist()
    averaged = max((name for name in result.accuracy if name.startswith("mc:")), key=lambda name: int(name[3:]))
    shown = [(result.by_mean, "Mean weights", "mean"), (result.by_averaging, _averaging(averaged), averaged)]
    for axes, (regions, title, mode) in zip(grid, shown, strict=False):
        _regions(axes, result, regions, classes)
        name_axes(
            axes,
            f"{title}: accuracy {100 * result.accuracy[mode]:.1f} %",
            "first input",
            "second input" if mode == "mean" else "",
        )
    _activations(grid[2], result, classes)
    name_axes(grid[2], "Activations of the variance layer", "first activation", "second activation")
    _shades(figure, grid[:2], 1.0 / len(classes))
    handles = [_handle(label, f"class {label}") for label in classes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes), frameon=False, fontsize=9)
    return figure


def _averaging(mode: str) -> str:
    return "1 sample" if mode == "mc:1" else f"{mode_title(mode)} averaged"


def _averages(curve: Mapping[str, Any]) -> list[str]:
    """The modes with samples whose accuracy a curve follows."""
    return [key.removeprefix("accuracy/") for key in curve if key.startswith("accuracy/mc:")]


def _look(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _handle(index: int, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", markersize=6, markeredgecolor="white", label=label, **_look(index))


def _tint(color: Any, confidence: Any, guess: float) -> Any:
    """Colors mixed with white: (..., 3) from colors (..., 3) and confidences (...)."""
    import numpy as np

    above = np.clip((np.asarray(confidence) - guess) / (1.0 - guess), 0.0, 1.0)
    share = (PALE + (FULL - PALE) * above)[..., None]
    return 1.0 - share * (1.0 - np.asarray(color))


def _regions(axes: Axes, result: Any, regions: Any, classes: list[int]) -> None:
    import numpy as np
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(COLORS[label % len(COLORS)]) for label in range(max(classes) + 1)])
    low, high = float(result.axis[0]), float(result.axis[-1])
    half = (high - low) / (2 * max(len(result.axis) - 1, 1))  # pixels are centered on their points
    axes.imshow(
        _tint(palette[regions.label], regions.confidence, 1.0 / len(classes)),
        origin="lower",
        extent=(low - half, high + half, low - half, high + half),
        interpolation="nearest",
    )
    axes.grid(False)
    for label in classes:
        some = result.x[result.y == label][:POINTS_SHOWN]
        axes.scatter(some[:, 0], some[:, 1], s=13, edgecolors="white", linewidths=0.5, **_look(label))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)


def _activations(axes: Axes, result: Any, classes: list[int]) -> None:
    import numpy as np

    clouds = {label: result.activations[:, result.y == label].reshape(-1, 2) for label in classes}
    widths = {label: float(np.median(np.abs(cloud))) for label, cloud in clouds.items()}
    for label in sorted(classes, key=lambda label: -widths[label]):  # the narrowest on top
        cloud = clouds[label]
        axes.scatter(cloud[:, 0], cloud[:, 1], s=2.5, alpha=0.6, linewidths=0, rasterized=True, **_look(label))
    linear = max(min(widths.values()), 1e-6 * max(widths.values()), 1e-12)
    reach = 1.5 * max(float(np.abs(result.activations).max()), linear)
    ticks = _decades(linear, reach)
    names = [f"${'-' if tick < 0 else ''}10^{{{round(math.log10(abs(tick)))}}}$" if tick else "0" for tick in ticks]
    for set_scale, set_ticks, limit in (
        (axes.set_xscale, axes.set_xticks, axes.set_xlim),
        (axes.set_yscale, axes.set_yticks, axes.set_ylim),
    ):
        set_scale("asinh", linear_width=linear)
        set_ticks(ticks, names)
        set_ticks([], minor=True)
        limit(-reach, reach)
    axes.set_aspect("equal", adjustable="box")


def _decades(linear: float, reach: float) -> list[float]:
    """Zero and powers of ten on each side of it, as far apart on an asinh axis as their labels need."""
    powers: list[float] = []
    place = math.inf
    for exponent in range(math.floor(math.log10(reach)), math.floor(math.log10(linear)) - 1, -1):
        here = math.asinh(10.0**exponent / linear) / math.asinh(reach / linear)
        if min(place - here, here) >= LABEL_WIDTH:
            powers.insert(0, 10.0**exponent)
            place = here
    return [-power for power in powers[::-1]] + [0.0] + powers


def _shades(figure: Figure, panels: Sequence[Axes], guess: float) -> None:
    """A bar that says how confidence shades a color."""
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import PercentFormatter

    levels = np.linspace(guess, 1.0, 256)
    grays = ListedColormap(_tint(np.zeros(3), levels, guess))
    bar = figure.colorbar(ScalarMappable(Normalize(guess, 1.0), grays), ax=panels, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("confidence", fontsize=9)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def phase_transition(
    curves: Sequence[Mapping[str, Any]], *, chance: float | None = 0.1, title: str = "Accuracy"
) -> Figure:
    """How training turns a network into a variance network: accuracy, log alpha and KL over the epochs.

    A curve is a dictionary of lists over the same epochs: `epoch`, `accuracy/mean`, `accuracy/mc:K` (dashed),
    `log_alpha` with `log_alpha/lower` and `log_alpha/upper` (a band), and `kl` in nats; beside them a text `label`.
    Each but `epoch` may be missing. `None` is a gap: a line is broken where its points lie further apart than they
    usually do.

    Args:
        curves: One for each line: a parametrization, or a seed.
        chance: Accuracy of a guess, drawn as a dotted line; `None` leaves it out.
        title: What the accuracy is one of.

    Returns:
        A figure of three axes.

    Raises:
        ValueError: There is no curve, or a list is not as long as its epochs.

    Example:
        >>> curve = {"label": "layer", "epoch": [1, 2, 3], "accuracy/mean": [0.9, 0.5, 0.1], "kl": [30.0, 3.0, 0.3]}
        >>> figure = phase_transition([curve])
        >>> figure.axes[0].lines[0].get_ydata().tolist(), figure.axes[2].get_yscale()
        ([0.9, 0.5, 0.1], 'log')
    """
    from matplotlib.ticker import MaxNLocator

    if not curves:
        raise ValueError("phase_transition: expected at least one curve, got none")
    figure, grid = panels(3, 3, 3.5, 3.1)
    accuracy, alpha, kl = grid
    kinds = list(dict.fromkeys(name for curve in curves for name in _averages(curve)))
    for index, curve in enumerate(curves):
        _curve(accuracy, curve, "accuracy/mean", index, "-")
        for name in _averages(curve):
            _curve(accuracy, curve, f"accuracy/{name}", index, DASHED)
        _curve(alpha, curve, "log_alpha", index, "-")
        _band(alpha, curve, index)
        _curve(kl, curve, "kl", index, "-", positive=True)
    if chance is not None:
        accuracy.axhline(chance, color=GRAY, linestyle=":", linewidth=1.3)
    _explain(figure, kinds, chance)
    name_axes(accuracy, title, "epoch", "accuracy")
    name_axes(alpha, "log α (band: quartiles)" if alpha.collections else "log α", "epoch", "log α")
    name_axes(kl, "KL", "epoch", "nats")
    _percent(accuracy)
    kl.set_yscale("log")
    for axes in grid:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    handles = [_line(index, str(curve["label"])) for index, curve in enumerate(curves)]
    columns = min(len(handles), 4)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _line(index: int, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=1.5, markersize=5, label=label, **_look(index))


def _series(curve: Mapping[str, Any], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one line, with a NaN where it is to be broken; empty where there are none."""
    if curve.get(key) is None:
        return [], []
    epochs, values = floats(curve["epoch"]), floats(curve[key])
    if len(epochs) != len(values):
        raise ValueError(
            f"curve {curve.get('label')!r}: expected a value of {key!r} for each of its {len(epochs)} epochs, got "
            f"{len(values)}"
        )
    return epochs, values


def _joined(epochs: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """The points that are there, with a NaN between those that are further apart than usual."""
    points = [(x, y) for x, y in zip(epochs, values, strict=True) if math.isfinite(y)]
    steps = [after - before for (before, _), (after, _) in zip(points, points[1:], strict=False)]
    far = GAP * median(steps) if steps else math.inf
    xs, ys = [x for x, _ in points[:1]], [y for _, y in points[:1]]
    for step, (x, y) in zip(steps, points[1:], strict=True):
        if step > far:
            xs.append(x - step / 2)
            ys.append(math.nan)
        xs.append(x)
        ys.append(y)
    return xs, ys


def _curve(axes: Axes, curve: Mapping[str, Any], key: str, index: int, dashes: Any, *, positive: bool = False) -> None:
    epochs, values = _series(curve, key)
    if positive:  # a logarithmic axis has no place for the others
        values = [y if y > 0.0 else math.nan for y in values]
    xs, ys = _joined(epochs, values)
    every = max(1, len(xs) // MARKS_SHOWN)
    hollow: dict[str, Any] = {} if dashes == "-" else {"markerfacecolor": "white"}
    axes.plot(xs, ys, linestyle=dashes, linewidth=1.5, markersize=4, markevery=every, **_look(index), **hollow)


def _band(axes: Axes, curve: Mapping[str, Any], index: int) -> None:
    """The range between the quartiles, where there is one that is wider than a line."""
    lower, upper = (_joined(*_series(curve, f"log_alpha/{end}")) for end in ("lower", "upper"))
    if lower[0] == upper[0] and lower[1] != upper[1]:
        axes.fill_between(lower[0], lower[1], upper[1], color=_look(index)["color"], alpha=0.2, linewidth=0)


def _explain(figure: Figure, kinds: Sequence[str], chance: float | None) -> None:
    """Above the panels: what the lines of the first one mean, whatever their color."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="black", linewidth=1.5, label="accuracy by mean weights")]
    if kinds:
        text = "by " + ", ".join(map(_averaging, kinds))
        handles.append(Line2D([], [], color="black", linewidth=1.5, linestyle=DASHED, label=text))
    if chance is not None:
        handles.append(Line2D([], [], color=GRAY, linewidth=1.3, linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=8)


def _percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0.0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))

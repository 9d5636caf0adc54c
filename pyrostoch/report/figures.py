"""Figures of the benchmarks: the toy problem of variance networks, and the transition to one during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyrostoch.report.plots import COLORS, GRAY, label_axes, panels
from pyrostoch.report.record import floats, mode_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["DecisionRegions", "ToyData", "phase_transition", "toy"]

# One marker per color, so that series and classes can be told apart in grayscale.
MARKERS = ("o", "s", "^", "D", "v", "P")
# Weight of a class's color, against white, in a decision region: at the confidence of a guess, and at confidence 1.
PALE, FULL = 0.06, 0.7
# Points of each class drawn in a panel of regions, and markers along a line; more would hide what is below them.
POINTS_SHOWN = 60
MARKS_SHOWN = 8
# A line is broken between points that are further apart than this many times the median distance.
GAP = 1.5
# Width of a tick label, as a fraction of half the axis.
LABEL_WIDTH = 0.25
# Line style of accuracies by averaging; those by mean weights are solid.
DASHED = (0, (4, 2))


class DecisionRegions(Protocol):
    """Predictions of a network on a square grid of inputs."""

    @property
    def label(self) -> NDArray[np.integer[Any]]:
        """Most probable class, shape (n, n); the first axis is the second input."""

    @property
    def confidence(self) -> NDArray[np.floating[Any]]:
        """Its probability, shape (n, n)."""


class ToyData(Protocol):
    """What `toy` draws; `pyrostoch.bench.published.toy.ToyResult` has these fields."""

    @property
    def x(self) -> NDArray[np.floating[Any]]:
        """Test points, shape (n, 2)."""

    @property
    def y(self) -> NDArray[np.integer[Any]]:
        """Classes of the test points, shape (n,)."""

    @property
    def axis(self) -> NDArray[np.floating[Any]]:
        """Coordinates of the grid of the decision regions, the same along both axes."""

    @property
    def by_mean(self) -> DecisionRegions:
        """Decision regions of the network with mean weights."""

    @property
    def by_averaging(self) -> DecisionRegions:
        """Decision regions of the probabilities averaged over draws of the weights."""

    @property
    def activations(self) -> NDArray[np.floating[Any]]:
        """Outputs of the variance layer for each draw and test point, shape (draws, n, 2)."""

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Test accuracy by predictive mode."""


#: Keyword arguments for the style of a line or of points.
Style = dict[str, Any]


def toy(result: ToyData) -> Figure:
    """Decision regions of a variance network with mean weights and by averaging, and outputs of its variance layer.

    The regions are shaded by confidence, from white at the confidence of a guess. In the third panel each class is a
    cloud that is symmetric about zero, so that classes differ only in the width of their cloud. Its axes are linear
    near zero and logarithmic far from it, because the widths differ by orders of magnitude.

    Args:
        result: What `pyrostoch.bench.published.toy.train` returns, or any object with the same fields.

    Returns:
        A figure of three axes, and a fourth for the scale of the confidence.

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
    figure, grid = panels(3, 3, 3.5, 3.7)
    classes = np.unique(result.y).tolist()
    averaged = max((name for name in result.accuracy if name.startswith("mc:")), key=lambda name: int(name[3:]))
    shown = [(result.by_mean, "Mean weights", "mean"), (result.by_averaging, _averaged_title(averaged), averaged)]
    for axes, (regions, title, mode) in zip(grid, shown, strict=False):
        _draw_regions(axes, result, regions, classes)
        label_axes(
            axes,
            f"{title}: accuracy {100 * result.accuracy[mode]:.1f} %",
            "first input",
            "second input" if mode == "mean" else "",
        )
    _draw_activations(grid[2], result, classes)
    label_axes(grid[2], "Activations of the variance layer", "first activation", "second activation")
    _add_confidence_bar(figure, grid[:2], 1.0 / len(classes))
    handles = [_point_handle(label, f"class {label}") for label in classes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes), frameon=False, fontsize=9)
    return figure


def _averaged_title(mode: str) -> str:
    return "1 sample" if mode == "mc:1" else f"{mode_title(mode)} averaged"


def _sampled_modes(curve: Mapping[str, Any]) -> list[str]:
    """The sampled predictive modes whose accuracies a curve holds."""
    return [key.removeprefix("accuracy/") for key in curve if key.startswith("accuracy/mc:")]


def _style(index: int) -> Style:
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _point_handle(index: int, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", markersize=6, markeredgecolor="white", label=label, **_style(index))


def _tint(color: NDArray[Any], confidence: NDArray[Any], guess: float) -> NDArray[Any]:
    """Colors (..., 3) mixed with white according to confidences (...); `guess` is the confidence of a guess."""
    above = np.clip((confidence - guess) / (1.0 - guess), 0.0, 1.0)
    weight = (PALE + (FULL - PALE) * above)[..., None]
    mixed: NDArray[Any] = 1.0 - weight * (1.0 - color)
    return mixed


def _draw_regions(axes: Axes, result: ToyData, regions: DecisionRegions, classes: list[int]) -> None:
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
        points = result.x[result.y == label][:POINTS_SHOWN]
        axes.scatter(points[:, 0], points[:, 1], s=13, edgecolors="white", linewidths=0.5, **_style(label))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)


def _draw_activations(axes: Axes, result: ToyData, classes: list[int]) -> None:
    clouds = {label: result.activations[:, result.y == label].reshape(-1, 2) for label in classes}
    widths = {label: float(np.median(np.abs(cloud))) for label, cloud in clouds.items()}
    for label in sorted(classes, key=lambda label: -widths[label]):  # the narrowest is drawn last, on top
        cloud = clouds[label]
        axes.scatter(cloud[:, 0], cloud[:, 1], s=2.5, alpha=0.6, linewidths=0, rasterized=True, **_style(label))
    linear = max(min(widths.values()), 1e-6 * max(widths.values()), 1e-12)
    reach = 1.5 * max(float(np.abs(result.activations).max()), linear)
    ticks = _decade_ticks(linear, reach)
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


def _decade_ticks(linear: float, limit: float) -> list[float]:
    """Ticks at zero and at powers of ten on both sides, far enough apart on an asinh axis for their labels."""
    powers: list[float] = []
    last = math.inf
    for exponent in range(math.floor(math.log10(limit)), math.floor(math.log10(linear)) - 1, -1):
        position = math.asinh(10.0**exponent / linear) / math.asinh(limit / linear)
        if min(last - position, position) >= LABEL_WIDTH:
            powers.insert(0, 10.0**exponent)
            last = position
    return [-power for power in powers[::-1]] + [0.0] + powers


def _add_confidence_bar(figure: Figure, panels: Sequence[Axes], guess: float) -> None:
    """Add a color bar for the shading by confidence."""
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
    """The transition of a network to a variance network in training: accuracy, log alpha and KL over the epochs.

    A curve is a dictionary of lists over the same epochs: `epoch`, `accuracy/mean`, `accuracy/mc:K` (dashed),
    `log_alpha` with `log_alpha/lower` and `log_alpha/upper` (a band), and `kl` in nats; and a string `label`. Each list
    but `epoch` may be missing. A value may be `None`; a line is broken where its points are further apart than usual.

    Args:
        curves: One dictionary per line, such as a parametrization or a seed.
        chance: Accuracy of a guess, drawn as a dotted line; `None` leaves it out.
        title: Title of the accuracy panel.

    Returns:
        A figure of three axes.

    Raises:
        ValueError: There is no curve, or a list has another length than `epoch`.

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
    kinds = list(dict.fromkeys(name for curve in curves for name in _sampled_modes(curve)))
    for index, curve in enumerate(curves):
        _draw_curve(accuracy, curve, "accuracy/mean", index, "-")
        for name in _sampled_modes(curve):
            _draw_curve(accuracy, curve, f"accuracy/{name}", index, DASHED)
        _draw_curve(alpha, curve, "log_alpha", index, "-")
        _draw_band(alpha, curve, index)
        _draw_curve(kl, curve, "kl", index, "-", positive=True)
    if chance is not None:
        accuracy.axhline(chance, color=GRAY, linestyle=":", linewidth=1.3)
    _add_line_legend(figure, kinds, chance)
    label_axes(accuracy, title, "epoch", "accuracy")
    label_axes(alpha, "log α (band: quartiles)" if alpha.collections else "log α", "epoch", "log α")
    label_axes(kl, "KL", "epoch", "nats")
    _percent_axis(accuracy)
    kl.set_yscale("log")
    for axes in grid:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
    handles = [_line_handle(index, str(curve["label"])) for index, curve in enumerate(curves)]
    columns = min(len(handles), 4)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _line_handle(index: int, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=1.5, markersize=5, label=label, **_style(index))


def _series(curve: Mapping[str, Any], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one line, with NaN for missing values; empty if the curve lacks the quantity."""
    if curve.get(key) is None:
        return [], []
    epochs, values = floats(curve["epoch"]), floats(curve[key])
    if len(epochs) != len(values):
        raise ValueError(
            f"curve {curve.get('label')!r}: expected a value of {key!r} for each of its {len(epochs)} epochs, got "
            f"{len(values)}"
        )
    return epochs, values


def _break_gaps(epochs: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """The finite points, with a NaN inserted between points that are further apart than usual."""
    points = [(x, y) for x, y in zip(epochs, values, strict=True) if math.isfinite(y)]
    steps = [after - before for (before, _), (after, _) in zip(points, points[1:], strict=False)]
    longest = GAP * median(steps) if steps else math.inf
    xs, ys = [x for x, _ in points[:1]], [y for _, y in points[:1]]
    for step, (x, y) in zip(steps, points[1:], strict=True):
        if step > longest:
            xs.append(x - step / 2)
            ys.append(math.nan)
        xs.append(x)
        ys.append(y)
    return xs, ys


def _draw_curve(
    axes: Axes, curve: Mapping[str, Any], key: str, index: int, dashes: Any, *, positive: bool = False
) -> None:
    epochs, values = _series(curve, key)
    if positive:  # a logarithmic axis cannot show zero and negative values
        values = [y if y > 0.0 else math.nan for y in values]
    xs, ys = _break_gaps(epochs, values)
    every = max(1, len(xs) // MARKS_SHOWN)
    hollow: Style = {} if dashes == "-" else {"markerfacecolor": "white"}
    axes.plot(xs, ys, linestyle=dashes, linewidth=1.5, markersize=4, markevery=every, **_style(index), **hollow)


def _draw_band(axes: Axes, curve: Mapping[str, Any], index: int) -> None:
    """Fill the range between the quartiles, if it is wider than a line."""
    lower, upper = (_break_gaps(*_series(curve, f"log_alpha/{end}")) for end in ("lower", "upper"))
    if lower[0] == upper[0] and lower[1] != upper[1]:
        axes.fill_between(lower[0], lower[1], upper[1], color=_style(index)["color"], alpha=0.2, linewidth=0)


def _add_line_legend(figure: Figure, kinds: Sequence[str], chance: float | None) -> None:
    """Add a legend above the panels for the line styles of the first one."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="black", linewidth=1.5, label="accuracy by mean weights")]
    if kinds:
        text = "by " + ", ".join(map(_averaged_title, kinds))
        handles.append(Line2D([], [], color="black", linewidth=1.5, linestyle=DASHED, label=text))
    if chance is not None:
        handles.append(Line2D([], [], color=GRAY, linewidth=1.3, linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=8)


def _percent_axis(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0.0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))

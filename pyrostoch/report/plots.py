"""Figures of the record of a run, drawn without changing the global state of matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrostoch.report.record import check, floats, is_regression, mode_title, modes, number, row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_by_samples", "posterior", "reliability", "training"]

# The palette of Okabe and Ito, suited to color-blind readers, without black, which is for axes, and pale yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 2, 1, 2, 1, 2)))
GRAY = "#808080"

# Values of the first epochs differ from the rest by orders of magnitude; the axes are chosen without them.
CROPPED_FRACTION = 0.2
# With a larger ratio of the largest to the smallest magnitude, the small values would be flat on a linear axis.
LINEAR_RATIO = 30.0
# A value this many interquartile ranges beyond the quartiles is a spike (Tukey, 1977).
FENCE = 3.0


def _title(guide: Mapping[str, Any]) -> str:
    return str(guide.get("title") or guide["name"])


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` styled axes in at most `columns` columns; `width` and `height` of one panel, in inches."""
    from matplotlib.figure import Figure

    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in grid[count:]:
        spare.remove()
    for axes in grid[:count]:
        _style_axes(axes)
    return figure, grid[:count]


def _style_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=GRAY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    # Names may come from the user's network: a dollar sign in them does not start a formula.
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(x, fontsize=9, parse_math=False)
    axes.set_ylabel(y, fontsize=9, parse_math=False)


def _set_y_axis(axes: Axes, series: Sequence[list[float]]) -> bool:
    """Choose the y axis without the first epochs, and return whether spikes are cut off.

    The axis is logarithmic if magnitudes differ widely and all values have one sign. With both signs, a logarithmic
    axis would use most of the panel for values near zero; it is then linear, with limits that leave out spikes.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [ys[min(math.ceil(CROPPED_FRACTION * len(ys)), len(ys) - 1) :] for ys in series]
    lines = [finite for ys in lines if (finite := [y for y in ys if math.isfinite(y)])]
    late = [y for ys in lines for y in ys]
    if not late:
        return False
    low, high = min(late), max(late)
    sizes = [abs(y) for y in late if y != 0.0]
    wide = bool(sizes) and max(sizes) > LINEAR_RATIO * min(sizes)
    if wide and low >= 0.0 or wide and high <= 0.0:
        from matplotlib.ticker import SymmetricalLogLocator

        linear = max(min(sizes), max(sizes) / 1000.0)
        axes.set_yscale("symlog", linthresh=linear)
        # About five labels; more would overlap.
        subs = [1, 2, 5] if max(sizes) < 100.0 * linear else [1]
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=subs))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_ylim(low - 0.15 * abs(low), high + 0.15 * abs(high))
        return False
    full_range = (low, high)
    if wide:
        ranges = [_range_without_spikes(ys) for ys in lines]
        low, high = min(bottom for bottom, _ in ranges), max(top for _, top in ranges)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    return full_range[0] < low - pad or full_range[1] > high + pad


def _range_without_spikes(values: list[float]) -> tuple[float, float]:
    """The smallest and largest value within Tukey's outer fences, three interquartile ranges beyond the quartiles."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = FENCE * (upper - lower)
    inner = [y for y in values if lower - reach <= y <= upper + reach]
    return min(inner), max(inner)


def training(results: Mapping[str, Any]) -> Figure:
    """The ELBO and its two terms over the epochs, one line per guide, in nats for the whole training set.

    The limits of the axes are chosen without the first fifth of the epochs. Epochs with a KL weight below one are
    shaded.

    Args:
        results: The record; guides without `history` are left out.

    Returns:
        A figure of three axes.

    Raises:
        ValueError: No guide has a history, or the schema or kind of the record is unknown.

    Example:
        >>> history = {"epoch": [1, 2], "elbo": [-9.0, -5.0], "data": [-6.0, -3.0], "kl": [3.0, 2.0]}
        >>> record = {"schema": 1, "kind": "train", "guides": [{"name": "additive", "history": history}]}
        >>> training(record).axes[2].lines[0].get_ydata().tolist()
        [3.0, 2.0]
    """
    check(results)
    guides = [(i, guide) for i, guide in enumerate(results["guides"]) if (guide.get("history") or {}).get("epoch")]
    if not guides:
        raise ValueError("no guide of the record has a training history to draw")
    figure, grid = panels(3, 3, 3.3, 2.9)
    handles: list[Any] = []
    for axes, (key, title) in zip(grid, [("elbo", "ELBO"), ("data", "Data term"), ("kl", "KL")], strict=True):
        series = []
        handles = []
        for i, guide in guides:
            epochs, values = floats(guide["history"]["epoch"]), floats(guide["history"].get(key) or [])
            values += [math.nan] * (len(epochs) - len(values))
            series.append(values)
            (line,) = axes.plot(
                epochs, values[: len(epochs)], color=COLORS[i % len(COLORS)], linestyle=DASHES[i % len(DASHES)]
            )
            handles.append(line)
        cut = _set_y_axis(axes, series)
        label_axes(axes, title, "epoch", "nats" if key == "elbo" else "")
        if cut:
            axes.set_title("spikes cut off", fontsize=7, color=GRAY, loc="right")
        warm_up = max((_warm_up_end(guide["history"]) for _, guide in guides), default=0.0)
        if warm_up > 0.0:
            start = min(floats(guide["history"]["epoch"])[0] for _, guide in guides)
            handles.append(axes.axvspan(start, warm_up, color=GRAY, alpha=0.15, linewidth=0))
    # Older versions of matplotlib leave labels that begin with an underscore out of the legend.
    labels = [_title(guide).lstrip("_") or "guide" for _, guide in guides] + ["KL warm-up"]
    legend = figure.legend(
        handles, labels[: len(handles)], loc="outside lower center", ncols=3, frameon=False, fontsize=9, handlelength=3
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _warm_up_end(history: Mapping[str, Any]) -> float:
    """The last epoch whose KL weight is below one; 0 if there is none."""
    weighted = zip(floats(history["epoch"]), floats(history.get("kl_weight") or []), strict=False)
    return max((epoch for epoch, weight in weighted if weight < 1.0), default=0.0)


def reliability(guide: Mapping[str, Any]) -> Figure:
    """Reliability diagrams of one guide, accuracy against confidence, one column per predictive mode.

    The number of examples in each bin is shown below each diagram.

    Args:
        guide: The part of the record that describes the guide, with `reliability`.

    Returns:
        A figure whose axes are the diagrams of all modes, then their counts.

    Raises:
        ValueError: The record has no reliability for the guide, as for a regression.

    Example:
        >>> bins = {"confidence": [None, 0.9], "accuracy": [None, 0.8], "count": [0, 10]}
        >>> figure = reliability({"name": "additive", "reliability": {"mean": bins}})
        >>> [float(bar.get_height()) for bar in figure.axes[1].patches]
        [0.0, 10.0]
    """
    from matplotlib.figure import Figure

    by_mode = guide.get("reliability") or {}
    if not by_mode:
        raise ValueError(f"guide {guide.get('name')!r} has no reliability to draw")
    figure = Figure(figsize=(3.3 * len(by_mode), 3.9), layout="constrained")
    tops, bottoms = figure.subplots(2, len(by_mode), squeeze=False, sharex="col", height_ratios=[3, 1])
    for axes in [*tops, *bottoms]:
        _style_axes(axes)
    for column, (mode, bins) in enumerate(by_mode.items()):
        top, bottom = tops[column], bottoms[column]
        color = COLORS[column % len(COLORS)]
        top.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1)
        # Empty bins are left out, so that they do not break the line.
        points = [
            (c, a)
            for c, a in zip(floats(bins["confidence"]), floats(bins["accuracy"]), strict=True)
            if math.isfinite(c) and math.isfinite(a)
        ]
        top.plot([c for c, _ in points], [a for _, a in points], color=color, marker="o", markersize=4)
        top.set_xlim(0, 1)
        top.set_ylim(0, 1.02)
        label_axes(top, mode_title(str(mode)), "", "accuracy" if column == 0 else "")
        counts = floats(bins["count"])
        width = 1 / max(len(counts), 1)
        bottom.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=0.9 * width, color=color)
        bottom.set_yscale("symlog", linthresh=1)
        label_axes(bottom, "", "confidence", "count" if column == 0 else "")
    return figure


def accuracy_by_samples(results: Mapping[str, Any]) -> Figure:
    """Test accuracy, or NLL for a regression, against the number of samples, with one standard error.

    There is one panel per guide, each with its own axes. The dashed line is the score with mean weights.

    Args:
        results: The record; guides without `by_samples` are left out.

    Returns:
        A figure with one axes per guide.

    Raises:
        ValueError: No guide has such scores, or the schema or kind of the record is unknown.

    Example:
        >>> scores = {"samples": [1, 2], "accuracy": [0.5, 0.75], "stderr": [0.1, 0.1]}
        >>> record = {"schema": 1, "kind": "train", "guides": [{"name": "additive", "by_samples": scores}]}
        >>> accuracy_by_samples(record).axes[0].lines[0].get_ydata().tolist()
        [0.5, 0.75]
    """
    check(results)
    guides = [(i, guide) for i, guide in enumerate(results["guides"]) if (guide.get("by_samples") or {}).get("samples")]
    if not guides:
        raise ValueError("no guide of the record has scores by number of samples to draw")
    key = "nll" if is_regression(results) else "accuracy"
    figure, grid = panels(len(guides), 3, 3.3, 2.5)
    for position, (axes, (i, guide)) in enumerate(zip(grid, guides, strict=True)):
        scores = guide["by_samples"]
        samples, values = floats(scores["samples"]), floats(scores.get(key) or [])
        values += [math.nan] * (len(samples) - len(values))
        errors = floats(scores.get("stderr") or []) or [0.0] * len(samples)
        axes.errorbar(samples, values, yerr=errors, color=COLORS[i % len(COLORS)], marker="o", markersize=4, capsize=2)
        mean = number(row_of(guide, "mean").get(key)) if "mean" in modes(results) else None
        if mean is not None and math.isfinite(mean):
            axes.axhline(mean, color="black", linestyle="--", linewidth=1, label="mean")
            axes.legend(frameon=False, fontsize=8, loc="best")
        label_axes(
            axes, _title(guide), "samples", ("NLL, nats" if key == "nll" else "accuracy") if position % 3 == 0 else ""
        )
        _set_ticks(axes, samples, percent=key == "accuracy")
    return figure


def _set_ticks(axes: Axes, samples: list[float], percent: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(samples))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))


def histograms(guide: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[float], list[float]]]:
    """The complete posterior histograms of a guide: the part of the record, edges and counts of each."""
    complete = []
    for histogram in guide.get("posterior") or []:
        edges, counts = floats(histogram.get("edges") or []), floats(histogram.get("counts") or [])
        if counts and len(edges) == len(counts) + 1 and all(map(math.isfinite, [*edges, *counts])):
            complete.append((histogram, edges, counts))
    return complete


def posterior(guide: Mapping[str, Any]) -> Figure:
    """Histograms of the log alphas or log standard deviations of one guide, one panel per weight site.

    Args:
        guide: The part of the record that describes the guide, with `posterior`.

    Returns:
        A figure with one axes per site.

    Raises:
        ValueError: The guide has no histogram to draw.

    Example:
        >>> histogram = {"site": "fc1.weight", "quantity": "log alpha", "edges": [0, 1, 2], "counts": [3, 4]}
        >>> posterior({"name": "layer", "posterior": [histogram]}).axes[0].patches[0].get_data().values.tolist()
        [3.0, 4.0]
    """
    complete = histograms(guide)
    if not complete:
        raise ValueError(f"guide {guide.get('name')!r} has no posterior histogram to draw")
    figure, grid = panels(len(complete), 3, 3.3, 2.2)
    for position, (axes, (histogram, edges, counts)) in enumerate(zip(grid, complete, strict=True)):
        axes.stairs(counts, edges, fill=True, color=COLORS[0])
        axes.set_ylim(bottom=0)
        quantity = str(histogram.get("quantity", "")).replace("alpha", "α").replace("sigma", "σ")
        label_axes(axes, str(histogram.get("site", "")), quantity, "count" if position % 3 == 0 else "")
    return figure

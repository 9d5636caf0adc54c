"""Pictures of a run's record, as matplotlib figures that touch no global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyrostoch.report.record import check, floats, is_regression, mode_title, modes, number, row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_by_samples", "posterior", "reliability", "training"]

# Okabe and Ito's palette, told apart by color-blind readers; black stays free for axes and yellow is too pale.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 2, 1, 2, 1, 2)))
GRAY = "#808080"

# The first epochs lie orders of magnitude away from the rest; the axes are chosen for what follows.
CROPPED_FRACTION = 0.2
# Beyond this ratio of the largest to the smallest magnitude a linear axis would flatten the small one.
LINEAR_RATIO = 30.0
# Quartile ranges beyond the quartiles at which a value counts as a spike (Tukey, 1977).
FENCE = 3.0


def _title(thing: Mapping[str, Any]) -> str:
    return str(thing.get("title") or thing["name"])


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` dressed axes in a grid of at most `columns` columns; sizes in inches, of one panel."""
    from matplotlib.figure import Figure

    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in grid[count:]:
        spare.remove()
    for axes in grid[:count]:
        _dress(axes)
    return figure, grid[:count]


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=GRAY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def name_axes(axes: Axes, title: str, x: str, y: str) -> None:
    # Names come from the user's network: a dollar sign in one is no formula.
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(x, fontsize=9, parse_math=False)
    axes.set_ylabel(y, fontsize=9, parse_math=False)


def _frame(axes: Axes, series: Sequence[list[float]]) -> bool:
    """Choose the y axis for all but the first epochs; returns whether it cuts spikes off.

    It is logarithmic where magnitudes differ widely, unless values take both signs: their logarithms would spend the
    panel on what is near zero. A linear axis then holds each line's bulk.
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
        # About five labels: more would run into each other.
        subs = [1, 2, 5] if max(sizes) < 100.0 * linear else [1]
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=subs))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_ylim(low - 0.15 * abs(low), high + 0.15 * abs(high))
        return False
    whole = (low, high)
    if wide:
        bulks = [_bulk(ys) for ys in lines]
        low, high = min(bottom for bottom, _ in bulks), max(top for _, top in bulks)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    return whole[0] < low - pad or whole[1] > high + pad


def _bulk(values: list[float]) -> tuple[float, float]:
    """The smallest and largest of the values within Tukey's fences, the outer ones: three quartile ranges away."""
    import numpy as np

    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = FENCE * (upper - lower)
    inner = [y for y in values if lower - reach <= y <= upper + reach]
    return min(inner), max(inner)


def training(results: Mapping[str, Any]) -> Figure:
    """The ELBO and its two terms over training: three panels, one line a guide, in nats over the whole training set.

    The first fifth of the epochs does not stretch the axes. Epochs with a KL weight below one are shaded.

    Args:
        results: The record; guides without `history` are left out.

    Returns:
        A figure of three axes.

    Raises:
        ValueError: No guide has a history, or the record is not readable.

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
        cut = _frame(axes, series)
        name_axes(axes, title, "epoch", "nats" if key == "elbo" else "")
        if cut:
            axes.set_title("spikes cut off", fontsize=7, color=GRAY, loc="right")
        warm = max((_warm_up(guide["history"]) for _, guide in guides), default=0.0)
        if warm > 0.0:
            start = min(floats(guide["history"]["epoch"])[0] for _, guide in guides)
            handles.append(axes.axvspan(start, warm, color=GRAY, alpha=0.15, linewidth=0))
    # Legends of older matplotlibs drop labels that begin with an underscore.
    labels = [_title(guide).lstrip("_") or "guide" for _, guide in guides] + ["KL warm-up"]
    legend = figure.legend(
        handles, labels[: len(handles)], loc="outside lower center", ncols=3, frameon=False, fontsize=9, handlelength=3
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _warm_up(history: Mapping[str, Any]) -> float:
    """The last epoch whose KL weight is below one; 0 if there is none."""
    weighted = zip(floats(history["epoch"]), floats(history.get("kl_weight") or []), strict=False)
    return max((epoch for epoch, weight in weighted if weight < 1.0), default=0.0)


def reliability(guide: Mapping[str, Any]) -> Figure:
    """Accuracy against confidence of one guide, a column for each predictive mode, with the counts beneath.

    Args:
        guide: One guide's part of the record, with `reliability`.

    Returns:
        A figure whose axes are the diagrams of all modes, then their counts.

    Raises:
        ValueError: The guide has no reliability (a regression has none).

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
        _dress(axes)
    for column, (mode, bins) in enumerate(by_mode.items()):
        top, bottom = tops[column], bottoms[column]
        color = COLORS[column % len(COLORS)]
        top.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1)
        # A line over the filled bins only: an empty bin is no break in the curve.
        points = [
            (c, a)
            for c, a in zip(floats(bins["confidence"]), floats(bins["accuracy"]), strict=True)
            if math.isfinite(c) and math.isfinite(a)
        ]
        top.plot([c for c, _ in points], [a for _, a in points], color=color, marker="o", markersize=4)
        top.set_xlim(0, 1)
        top.set_ylim(0, 1.02)
        name_axes(top, mode_title(str(mode)), "", "accuracy" if column == 0 else "")
        counts = floats(bins["count"])
        width = 1 / max(len(counts), 1)
        bottom.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=0.9 * width, color=color)
        bottom.set_yscale("symlog", linthresh=1)
        name_axes(bottom, "", "confidence", "count" if column == 0 else "")
    return figure


def accuracy_by_samples(results: Mapping[str, Any]) -> Figure:
    """Test accuracy (NLL for a regression) against the number of samples, one panel a guide, with one standard error.

    The dashed line is the score of the mean network. The panels have axes of their own.

    Args:
        results: The record; guides without `by_samples` are left out.

    Returns:
        A figure of one axes a guide.

    Raises:
        ValueError: No guide has such scores, or the record is not readable.

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
        name_axes(
            axes, _title(guide), "samples", ("NLL, nats" if key == "nll" else "accuracy") if position % 3 == 0 else ""
        )
        _ticks(axes, samples, percent=key == "accuracy")
    return figure


def _ticks(axes: Axes, samples: list[float], percent: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(samples))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))


def histograms(guide: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[float], list[float]]]:
    """The posterior histograms of a guide that can be drawn: (entry, edges, counts)."""
    found = []
    for entry in guide.get("posterior") or []:
        edges, counts = floats(entry.get("edges") or []), floats(entry.get("counts") or [])
        if counts and len(edges) == len(counts) + 1 and all(map(math.isfinite, [*edges, *counts])):
            found.append((entry, edges, counts))
    return found


def posterior(guide: Mapping[str, Any]) -> Figure:
    """Histograms of the posterior alphas or sigmas of one guide, a panel for each layer.

    Args:
        guide: One guide's part of the record, with `posterior`.

    Returns:
        A figure of one axes a layer.

    Raises:
        ValueError: The guide has no histogram to draw.

    Example:
        >>> histogram = {"site": "fc1.weight", "quantity": "log alpha", "edges": [0, 1, 2], "counts": [3, 4]}
        >>> posterior({"name": "layer", "posterior": [histogram]}).axes[0].patches[0].get_data().values.tolist()
        [3.0, 4.0]
    """
    entries = histograms(guide)
    if not entries:
        raise ValueError(f"guide {guide.get('name')!r} has no posterior histogram to draw")
    figure, grid = panels(len(entries), 3, 3.3, 2.2)
    for position, (axes, (entry, edges, counts)) in enumerate(zip(grid, entries, strict=True)):
        axes.stairs(counts, edges, fill=True, color=COLORS[0])
        axes.set_ylim(bottom=0)
        quantity = str(entry.get("quantity", "")).replace("alpha", "α").replace("sigma", "σ")
        name_axes(axes, str(entry.get("site", "")), quantity, "count" if position % 3 == 0 else "")
    return figure

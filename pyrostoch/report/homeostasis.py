"""The figure of homeostasis: transfer functions and accuracy when the noise changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyrostoch.report.plots import COLORS, GRAY, name_axes, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["transfer_functions"]

_TITLES = {"off": "Without homeostasis", "gain-and-bias": "With gain and bias"}
_WORDS = {"off": "off", "bias": "bias only", "gain-and-bias": "gain and bias", "oracle": "oracle"}
_MARKERS = ("o", "s", "^", "D")


def transfer_functions(shapes: Any, scores: Mapping[str, float]) -> Figure:
    """Mean transfer functions at several noise levels without and with homeostasis, and accuracy against the noise.

    Args:
        shapes: An object with `axis`, `reference` and `found` by noise level and way, as the benchmark makes it.
        scores: Accuracies, `accuracy/<way>/noise-<factor>`.

    Returns:
        A figure of three panels.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> axis = torch.linspace(-3, 3, 5)
        >>> found = {(1.0, way): axis for way in ("off", "bias", "gain-and-bias", "oracle")}
        >>> scores = {f"accuracy/{way}/noise-1": 0.9 for way in ("off", "bias", "gain-and-bias", "oracle")}
        >>> shapes = SimpleNamespace(axis=axis, reference=axis, found=found)
        >>> [axes.get_title() for axes in transfer_functions(shapes, scores).axes]
        ['Without homeostasis', 'With gain and bias', 'Accuracy with 20 samples']
    """
    figure, axes = panels(3, 3, 4.0, 3.2)
    factors = sorted({factor for factor, _ in shapes.found})
    for panel, (way, title) in zip(axes, _TITLES.items(), strict=False):
        panel.plot(shapes.axis, shapes.reference, color=GRAY, linewidth=4, alpha=0.5, label="as trained")
        for color, factor in zip(COLORS, factors, strict=False):
            panel.plot(shapes.axis, shapes.found[factor, way], color=color, label=f"noise × {factor:g}")
        name_axes(panel, title, "input of a neuron", "mean state")
    axes[0].legend(frameon=False)
    for color, marker, (way, word) in zip(COLORS, _MARKERS, _WORDS.items(), strict=False):
        values = [100.0 * scores[f"accuracy/{way}/noise-{factor:g}"] for factor in factors]
        axes[2].plot(factors, values, color=color, marker=marker, label=word)
    axes[2].set_xscale("log", base=2)
    axes[2].set_xticks(factors, [f"{factor:g}" for factor in factors])
    name_axes(axes[2], "Accuracy with 20 samples", "noise, in units of the trained one", "test accuracy, %")
    axes[2].legend(frameon=False)
    return figure

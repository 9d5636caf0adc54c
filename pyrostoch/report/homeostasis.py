"""Figure of homeostasis: transfer functions and accuracy after a change of the noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pyrostoch.report.plots import COLORS, GRAY, label_axes, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["transfer_functions"]

# The compensation of each of the first two panels, and of each line in the third.
_TITLES = {"off": "Without homeostasis", "gain-and-bias": "With gain and bias"}
_LABELS = {"off": "off", "bias": "bias only", "gain-and-bias": "gain and bias", "oracle": "oracle"}
_MARKERS = ("o", "s", "^", "D")


def transfer_functions(
    axis: Tensor, reference: Tensor, states: Mapping[tuple[float, str], Tensor], scores: Mapping[str, float]
) -> Figure:
    """Mean transfer functions at several noise levels without and with homeostasis, and accuracy against the noise.

    Args:
        axis: Inputs of a neuron, shape (n,).
        reference: Mean states at the noise level of training, shape (n,).
        states: Mean states, shape (n,), by noise level in units of that of training, and by compensation: `"off"`,
            `"bias"`, `"gain-and-bias"` or `"oracle"`.
        scores: Accuracies by name, `accuracy/<compensation>/noise-<level>`.

    Returns:
        A figure of three panels.

    Example:
        >>> import torch
        >>> axis = torch.linspace(-3, 3, 5)
        >>> compensations = ("off", "bias", "gain-and-bias", "oracle")
        >>> states = {(1.0, compensation): axis for compensation in compensations}
        >>> scores = {f"accuracy/{compensation}/noise-1": 0.9 for compensation in compensations}
        >>> [axes.get_title() for axes in transfer_functions(axis, axis, states, scores).axes]
        ['Without homeostasis', 'With gain and bias', 'Accuracy with 20 samples']
    """
    figure, axes = panels(3, 3, 4.0, 3.2)
    factors = sorted({factor for factor, _ in states})
    for panel, (compensation, title) in zip(axes, _TITLES.items(), strict=False):
        panel.plot(axis, reference, color=GRAY, linewidth=4, alpha=0.5, label="as trained")
        for color, factor in zip(COLORS, factors, strict=False):
            panel.plot(axis, states[factor, compensation], color=color, label=f"noise × {factor:g}")
        label_axes(panel, title, "input of a neuron", "mean state")
    axes[0].legend(frameon=False)
    for color, marker, (compensation, label) in zip(COLORS, _MARKERS, _LABELS.items(), strict=False):
        values = [100.0 * scores[f"accuracy/{compensation}/noise-{factor:g}"] for factor in factors]
        axes[2].plot(factors, values, color=color, marker=marker, label=label)
    axes[2].set_xscale("log", base=2)
    axes[2].set_xticks(factors, [f"{factor:g}" for factor in factors])
    label_axes(axes[2], "Accuracy with 20 samples", "noise, in units of that in training", "test accuracy, %")
    axes[2].legend(frameon=False)
    return figure

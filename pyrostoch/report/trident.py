"""The figure of neurons with three states: what goes forward and what comes back, at several noise levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from pyrostoch.layers import Ternary
from pyrostoch.report.plots import COLORS, GRAY, name_axes, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["passes"]

_NOISES = (0.1, 0.3, 0.6, 1.2)
_MARKERS = ("o", "s", "^")


def passes(accuracy: Mapping[str, Sequence[tuple[float, float]]], noises: Sequence[float] = _NOISES) -> Figure:
    """Draws and expected states, the gradient that comes back, and accuracy against the noise of training.

    Args:
        accuracy: Pairs of a noise and an accuracy, by what was done; may be empty.
        noises: Noise levels of the first panels.

    Returns:
        A figure of two panels, or three.

    Example:
        >>> [axes.get_title() for axes in passes({"20 samples": [(0.1, 0.9), (0.5, 0.95)]}).axes]
        ['Forward: states and their mean', 'Backward: gradient of the mean', 'Accuracy against noise']
    """
    figure, axes = panels(3 if accuracy else 2, 3, 4.0, 3.2)
    x = torch.linspace(-2.0, 2.0, 401)
    generator = torch.Generator().manual_seed(0)
    points = 4.0 * torch.rand(150, generator=generator) - 2.0
    for color, noise in zip(COLORS, noises, strict=False):
        neuron = Ternary(noise=noise)
        given = x.clone().requires_grad_()
        mean = neuron.expected(given)
        (slope,) = torch.autograd.grad(mean.sum(), given)
        axes[0].plot(x, mean.detach(), color=color, label=f"noise {noise:g}")
        axes[1].plot(x, slope, color=color)
    middle = noises[len(noises) // 2]
    drawn = points + middle * torch.randn(150, generator=generator)
    axes[0].plot(
        points, Ternary().noise_free(drawn), ".", color=GRAY, markersize=3, alpha=0.6, label=f"draws, noise {middle:g}"
    )
    name_axes(axes[0], "Forward: states and their mean", "input without noise", "state")
    axes[0].legend(frameon=False, fontsize=7)
    name_axes(axes[1], "Backward: gradient of the mean", "input without noise", "derivative")
    for color, marker, (name, pairs) in zip(COLORS, _MARKERS, accuracy.items(), strict=False):
        axes[2].plot(
            [noise for noise, _ in pairs], [100.0 * one for _, one in pairs], color=color, marker=marker, label=name
        )
    if accuracy:
        name_axes(axes[2], "Accuracy against noise", "deviation of the noise, in training and test", "accuracy, %")
        axes[2].set_xscale("log")
        axes[2].legend(frameon=False, fontsize=7)
    return figure

"""Figure of ternary neurons: states in the forward pass and gradients in the backward pass, by noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from pyrostoch.layers import Ternary
from pyrostoch.report.plots import COLORS, GRAY, label_axes, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ternary_neurons"]

_NOISES = (0.1, 0.3, 0.6, 1.2)
_MARKERS = ("o", "s", "^")


def ternary_neurons(accuracy: Mapping[str, Sequence[tuple[float, float]]], noises: Sequence[float] = _NOISES) -> Figure:
    """Drawn and expected states, the gradient of the expected state, and accuracy against the noise.

    Args:
        accuracy: Pairs of a noise level and an accuracy, by predictive mode; may be empty.
        noises: Noise levels of the first two panels.

    Returns:
        A figure of two panels, or three.

    Example:
        >>> [axes.get_title() for axes in ternary_neurons({"20 samples": [(0.1, 0.9), (0.5, 0.95)]}).axes]
        ['Forward: states and their mean', 'Backward: gradient of the mean', 'Accuracy against noise']
    """
    figure, axes = panels(3 if accuracy else 2, 3, 4.0, 3.2)
    x = torch.linspace(-2.0, 2.0, 401)
    generator = torch.Generator().manual_seed(0)
    points = 4.0 * torch.rand(150, generator=generator) - 2.0
    for color, noise in zip(COLORS, noises, strict=False):
        neuron = Ternary(noise=noise)
        inputs = x.clone().requires_grad_()
        mean = neuron.expected(inputs)
        (slope,) = torch.autograd.grad(mean.sum(), inputs)
        axes[0].plot(x, mean.detach(), color=color, label=f"noise {noise:g}")
        axes[1].plot(x, slope, color=color)
    middle = noises[len(noises) // 2]
    drawn = points + middle * torch.randn(150, generator=generator)
    axes[0].plot(
        points, Ternary().noise_free(drawn), ".", color=GRAY, markersize=3, alpha=0.6, label=f"draws, noise {middle:g}"
    )
    label_axes(axes[0], "Forward: states and their mean", "input without noise", "state")
    axes[0].legend(frameon=False, fontsize=7)
    label_axes(axes[1], "Backward: gradient of the mean", "input without noise", "derivative")
    for color, marker, (name, pairs) in zip(COLORS, _MARKERS, accuracy.items(), strict=False):
        axes[2].plot(
            [noise for noise, _ in pairs], [100.0 * value for _, value in pairs], color=color, marker=marker, label=name
        )
    if accuracy:
        label_axes(
            axes[2], "Accuracy against noise", "standard deviation of the noise, in training and test", "accuracy, %"
        )
        axes[2].set_xscale("log")
        axes[2].legend(frameon=False, fontsize=7)
    return figure

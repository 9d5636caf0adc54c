"""Picture of what a model says before it has seen data: functions or class probabilities under draws of its priors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.prediction import PriorPredictive
from pyrostoch.report.plots import COLORS, GRAY, label_axes, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["prior_draws"]

# Lines of single draws in a panel, panels of outputs, and bins of a histogram.
_LINES, _PANELS, _BINS = 40, 4, 30


def prior_draws(found: PriorPredictive, x: Tensor | None = None) -> Figure:
    """Functions under draws of the priors, or a histogram of class probabilities.

    For classes: how sure the draws are, by the largest class probability, and how often each class is the most probable
    one. Otherwise, with one input: the mean of each draw as a line over x, above a band that holds 95 % of the
    observations at each x; one panel for each of the first four outputs. Otherwise histograms of the observations.

    Args:
        found: What `pyrostoch.prior_predictive` returned.
        x: The inputs that it was called with, (n,) or (n, 1), where there is one input.

    Returns:
        A figure.

    Raises:
        ValueError: There are not as many inputs as examples.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(1, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> figure = prior_draws(ps.prior_predictive(model, x, num_samples=50, seed=0), x)
        >>> figure.axes[0].get_title()
        'Functions under 50 draws of the priors'

    References:
        Gabry, Simpson, Vehtari, Betancourt, Gelman, "Visualization in Bayesian workflow", 2019.
    """
    if found.has_classes:
        return _classes(found.probs.detach().cpu())
    seen = (
        found.observations.detach().double().cpu().flatten(2)
        if found.observations.dim() > 2
        else (found.observations.detach().double().cpu()[..., None])
    )
    shown = min(seen.shape[-1], _PANELS)
    figure, grid = panels(shown, 2, 5.0, 3.4)
    line = None if x is None else _one_input(x, seen.shape[1])
    if line is None:
        for index, axes in enumerate(grid):
            axes.hist(seen[..., index].flatten().numpy(), bins=_BINS, color=COLORS[0])
            label_axes(axes, f"Observations under {len(found)} draws of the priors", _name("y", index, shown), "number")
        return figure
    means = found.means.detach().double().cpu().reshape(seen.shape)
    for index, axes in enumerate(grid):
        _functions(axes, line, means[..., index], seen[..., index])
        label_axes(axes, f"Functions under {len(found)} draws of the priors", "x", _name("y", index, shown))
    grid[0].legend(frameon=False, fontsize=8)
    return figure


def _one_input(x: Tensor, count: int) -> Tensor | None:
    """Inputs as a line of numbers; `None` where an example has several."""
    if len(x) != count:
        raise ValueError(
            f"prior_draws x: expected the {count} inputs that prior_predictive was called with, got {len(x)}"
            f"{see('how-to/check_a_prior')}"
        )
    return x.detach().double().cpu().flatten() if x.numel() == count else None


def _functions(axes: Axes, line: Tensor, means: Tensor, seen: Tensor) -> None:
    order = line.argsort()
    low, high = seen[:, order].quantile(torch.tensor([0.025, 0.975], dtype=seen.dtype), dim=0)
    places = line[order].numpy()
    axes.fill_between(places, low.numpy(), high.numpy(), color=GRAY, alpha=0.2, label="95 % of the observations")
    for number, draw in enumerate(means[:_LINES, order]):
        label = "mean of a draw" if number == 0 else None
        axes.plot(places, draw.numpy(), color=COLORS[0], alpha=0.5, linewidth=0.8, label=label)


def _classes(probs: Tensor) -> Figure:
    figure, (left, right) = panels(2, 2, 4.2, 3.2)
    draws, classes = len(probs), probs.shape[-1]
    largest = probs.amax(-1).flatten()
    left.hist(largest.numpy(), bins=_BINS, range=(1.0 / classes, 1.0), color=COLORS[0])
    label_axes(left, f"{draws} draws of the priors", "largest class probability", "number")
    chosen = probs.argmax(-1).flatten()
    shares = torch.bincount(chosen, minlength=classes) / len(chosen)
    right.bar(range(classes), shares.numpy(), color=COLORS[0])
    right.axhline(1.0 / classes, color=GRAY, linewidth=1.0)
    label_axes(right, "Most probable class", "class", "share of draws and examples")
    return figure


def _name(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name}[{index}]"

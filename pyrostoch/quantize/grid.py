"""Weights that never leave their grid: what an optimizer proposes becomes a draw of whole states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyrostoch._checks import check_positive, is_rising
from pyrostoch._precision import at_least_single
from pyrostoch.distributions import matching_scale
from pyrostoch.quantize.gradients import rounded

__all__ = ["GridUpdates"]

_TOLERANCE = 1e-3


class GridUpdates:
    r"""Keeps parameters on evenly spaced levels, through every step of any torch optimizer.

    The optimizer moves a weight w to w + d, as it would; the weight then takes one of the two states beside that point,
    with the chance that keeps the mean, $E\,w' = w + d$ within the grid: the whole states of d are taken, and the rest
    is the chance of one more. The weights carry no hidden copy in full precision. With `TernaryGradient.attach` the
    steps are driven by discrete gradients.

    Args:
        levels: The levels, rising, evenly spaced.
        scale: What levels are multiplied with, for each tensor; by default that at which evenly likely levels have the
            mean square of the weights, or the present one where the weights already lie on such a grid and are on
            levels of every size: so a run that goes on finds its grid again. Otherwise give it.

    Raises:
        ValueError: The levels are not finite and evenly spaced, or the scale is not positive.

    References:
        Deng et al., "GXNOR-Net: training deep neural networks with ternary weights and activations without
        full-precision memory", 2018, whose chance of a jump is tanh(3 r) for a rest r of a step, and so about that of
        a rate three times as high.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.Linear(3, 2)
        >>> optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        >>> handle = GridUpdates(scale=0.5).attach(optimizer, [layer.weight])
        >>> for _ in range(10):
        ...     _ = layer(torch.randn(5, 3)).square().sum().backward()
        ...     optimizer.step()
        >>> set(layer.weight.flatten().tolist()) <= {-0.5, 0.0, 0.5}
        True
    """

    def __init__(self, levels: Sequence[float] = (-1.0, 0.0, 1.0), scale: float | None = None) -> None:
        self.levels = tuple(float(level) for level in levels)
        steps = [high - low for low, high in zip(self.levels, self.levels[1:], strict=False)]
        finite = all(map(math.isfinite, self.levels))
        if not steps or not finite or not is_rising(self.levels) or max(steps) - min(steps) > _TOLERANCE * steps[0]:
            raise ValueError(f"GridUpdates levels: expected rising, evenly spaced numbers, got {self.levels}")
        self.step = steps[0]
        self.scale = None if scale is None else check_positive("GridUpdates scale", scale)

    def attach(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | nn.Module) -> RemovableHandle:
        """Put parameters on their grid, each on a neighbor of where it is, and keep them there from now on.

        Args:
            optimizer: Their optimizer.
            parameters: Parameters, or a module whose parameters are meant.

        Returns:
            A handle whose `remove()` ends it. A deep copy of the optimizer has no such hook.

        Raises:
            TypeError: A tensor is given in place of a list of them.
            ValueError: A parameter is not among the optimizer's, or is 0 throughout and no scale is given.
        """
        if isinstance(parameters, Tensor):
            raise TypeError("GridUpdates: expected a list of parameters or a module, got a tensor; put it into a list")
        chosen = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
        its = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [tuple(parameter.shape) for parameter in chosen if id(parameter) not in its]
        if missing:
            raise ValueError(f"GridUpdates: parameter(s) of shape {missing} are not among the optimizer's")
        scales = [self._scale_of(parameter) for parameter in chosen]

        def put(*_: Any) -> None:
            for parameter, scale in zip(chosen, scales, strict=True):
                self._put(parameter, scale)

        put()
        return optimizer.register_step_post_hook(put)

    def _scale_of(self, parameter: Tensor) -> Tensor:
        """The scale of a parameter's grid."""
        weights = at_least_single(parameter.detach())
        if self.scale is not None:
            return weights.new_tensor(self.scale)
        if not weights.any():
            raise ValueError(
                f"GridUpdates: a parameter of shape {tuple(weights.shape)} is 0 throughout and has no size to take a "
                "scale from; give scale="
            )
        largest = weights.abs().max() / max(map(abs, self.levels))
        states = (weights / largest - self.levels[0]) / self.step
        on_grid = bool(((states - states.round()).abs() <= _tolerance(parameter) * len(self.levels)).all())
        sizes = {round(abs(level), 9) for level in self.levels} - {0.0}
        # An outermost level that nothing is on would be missed, and the grid taken for a smaller one.
        occupied = (states.round() * self.step + self.levels[0]).abs().round(decimals=6).unique()
        if on_grid and len(occupied) >= len(sizes):
            return largest
        return matching_scale(weights, weights.new_tensor(self.levels))

    @torch.no_grad()
    def _put(self, parameter: Tensor, scale: Tensor) -> None:
        """Each weight on a state beside it, the outermost ones where it lies beyond."""
        at = (at_least_single(parameter) / scale - self.levels[0]) / self.step
        near = at.round()
        # A weight that has not moved is on its state but for the last digits, and stays there.
        at = torch.where((at - near).abs() <= _tolerance(parameter) * (1.0 + near.abs()), near, at)
        state = rounded(at, 1.0).clamp(0, len(self.levels) - 1)
        parameter.copy_(scale * (self.levels[0] + self.step * state))

    def __repr__(self) -> str:
        return f"GridUpdates(levels={self.levels}, scale={self.scale})"


def _tolerance(parameter: Tensor) -> float:
    """How far a weight may be from its state by rounding, in states."""
    return 4.0 * torch.finfo(parameter.dtype).eps

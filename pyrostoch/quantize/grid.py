"""Training of weights on a grid: every step of an optimizer is rounded stochastically to levels of the grid."""

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

# Differences of spacings up to this fraction count as even.
_TOLERANCE = 1e-3


class GridUpdates:
    r"""Keeps parameters on evenly spaced levels through every step of any torch optimizer.

    The optimizer moves a weight w to w + d. The weight is then rounded stochastically to one of the two nearest levels,
    so that its mean is $E\,w' = w + d$, limited to the outermost levels. No copy of the weights in full precision is
    kept. With `TernaryGradient.attach` the steps come from quantized gradients.

    Args:
        levels: The levels, increasing and evenly spaced.
        scale: The factor that multiplies the levels, for all tensors. By default it is chosen for each tensor: if the
            weights already lie on such a grid and use levels of every size, the present scale, so that a continued run
            keeps its grid; otherwise the scale at which equally probable levels have the weights' mean square.

    Raises:
        ValueError: The levels are not finite, increasing and evenly spaced, or the scale is not positive.

    References:
        Deng et al., "GXNOR-Net: training deep neural networks with ternary weights and activations without
        full-precision memory", 2018. There the probability of moving one level further is tanh(3 r) for the remainder r
        of a step, here it is r; a learning rate three times as high gives about the same.

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
            raise ValueError(f"GridUpdates levels: expected increasing, evenly spaced numbers, got {self.levels}")
        self.step = steps[0]
        self.scale = None if scale is None else check_positive("GridUpdates scale", scale)

    def attach(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | nn.Module) -> RemovableHandle:
        """Round parameters stochastically to their grid, now and after every step of their optimizer.

        Args:
            optimizer: The optimizer of the parameters.
            parameters: Parameters, or a module with all its parameters.

        Returns:
            A handle whose `remove()` ends this. A deep copy of the optimizer does not round.

        Raises:
            TypeError: A single tensor is given instead of a list.
            ValueError: A parameter is not among the optimizer's, or all its values are 0 and no scale is given.
        """
        if isinstance(parameters, Tensor):
            raise TypeError("GridUpdates: expected a list of parameters or a module, got a tensor; put it into a list")
        chosen = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [tuple(parameter.shape) for parameter in chosen if id(parameter) not in known]
        if missing:
            raise ValueError(f"GridUpdates: parameter(s) of shape {missing} are not among the optimizer's")
        scales = [self._scale_of(parameter) for parameter in chosen]

        def round_all(*_: Any) -> None:
            for parameter, scale in zip(chosen, scales, strict=True):
                self._round(parameter, scale)

        round_all()
        return optimizer.register_step_post_hook(round_all)

    def _scale_of(self, parameter: Tensor) -> Tensor:
        """The scale of a parameter's grid."""
        weights = at_least_single(parameter.detach())
        if self.scale is not None:
            return weights.new_tensor(self.scale)
        if not weights.any():
            raise ValueError(
                f"GridUpdates: all values of a parameter of shape {tuple(weights.shape)} are 0, so that no scale can "
                "be chosen from them; give scale="
            )
        largest = weights.abs().max() / max(map(abs, self.levels))
        positions = (weights / largest - self.levels[0]) / self.step
        on_grid = bool(((positions - positions.round()).abs() <= _tolerance(parameter) * len(self.levels)).all())
        sizes = {round(abs(level), 9) for level in self.levels} - {0.0}
        # If no weight were on an outermost level, the present scale would be underestimated.
        occupied = (positions.round() * self.step + self.levels[0]).abs().round(decimals=6).unique()
        if on_grid and len(occupied) >= len(sizes):
            return largest
        return matching_scale(weights, weights.new_tensor(self.levels))

    @torch.no_grad()
    def _round(self, parameter: Tensor, scale: Tensor) -> None:
        """Round each weight stochastically to one of the two nearest levels, or to the outermost one beyond it."""
        position = (at_least_single(parameter) / scale - self.levels[0]) / self.step
        nearest = position.round()
        # A weight that the optimizer did not move equals its level up to rounding errors, and stays there.
        unmoved = (position - nearest).abs() <= _tolerance(parameter) * (1.0 + nearest.abs())
        position = torch.where(unmoved, nearest, position)
        index = rounded(position, 1.0).clamp(0, len(self.levels) - 1)
        parameter.copy_(scale * (self.levels[0] + self.step * index))

    def __repr__(self) -> str:
        return f"GridUpdates(levels={self.levels}, scale={self.scale})"


def _tolerance(parameter: Tensor) -> float:
    """How far rounding errors may put a weight from its level, in steps of the grid."""
    return 4.0 * torch.finfo(parameter.dtype).eps

"""Noise with a mean and a standard deviation for each entry, added to the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_positive
from pyrostoch.layers.activations import Gaussian, PriorOfActivations
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.moments import Moments

__all__ = ["StochasticAdditive"]


class StochasticAdditive(StochasticLayer):
    r"""Noise added to the input: $h = x + \mu + \sigma \varepsilon$, with $\mu$ and $\sigma$ in an example's shape.

    Args:
        shape: Shape of an example, without the batch.
        scale: Start of $\sigma$.
        prior: The prior of the activations h; see `StochasticLayer`. A `"learned"` one has a parameter for each entry.

    Raises:
        ValueError: The scale is not positive.

    Example:
        >>> StochasticAdditive((3,))(torch.zeros(4, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(self, shape: tuple[int, ...] | int, scale: float = 0.1, *, prior: PriorOfActivations = None) -> None:
        nn.Module.__init__(self)
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self._set_distribution(Gaussian("exp"), prior, None, 0.5, -1, self.shape)
        start = torch.full(self.shape, check_positive("StochasticAdditive scale", scale))
        self.loc, self.log_scale = nn.Parameter(torch.zeros(self.shape)), nn.Parameter(start.log())

    @property
    def channel_axis(self) -> int:
        """The axis of the activations that counts channels: the first one of an example."""
        return 1

    def outputs(self, x: Tensor | Moments) -> tuple[Any, ...]:
        """The shifted input, and the logarithm of the standard deviation.

        Args:
            x: Inputs, or their moments, `(batch, *shape)`.

        Raises:
            ValueError: Examples have another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"StochasticAdditive: expected examples of shape {self.shape}, got inputs of shape {tuple(x.shape)}"
            )
        given: Any = x
        shifted: Any = given + self.loc
        return shifted, self.log_scale.expand(shifted.shape)

    def extra_repr(self) -> str:
        """The shape."""
        return f"shape={self.shape}"

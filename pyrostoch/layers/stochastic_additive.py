"""Noise with a mean and a standard deviation for each entry, added to the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_positive
from pyrostoch.effects.activation import random_activation
from pyrostoch.moments import Moments
from pyrostoch.moments.gaussian import per_example

__all__ = ["StochasticAdditive"]


class StochasticAdditive(nn.Module):
    r"""Noise added to the input: $h = x + \mu + \sigma \varepsilon$, with $\mu$ and $\sigma$ in an example's shape.

    Args:
        shape: Shape of an example, without the batch.
        scale: Start of $\sigma$.

    Raises:
        ValueError: The scale is not positive.

    Example:
        >>> StochasticAdditive((3,))(torch.zeros(4, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(self, shape: tuple[int, ...] | int, scale: float = 0.1) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        start = torch.full(self.shape, check_positive("StochasticAdditive scale", scale))
        self.loc, self.log_scale = nn.Parameter(torch.zeros(self.shape)), nn.Parameter(start.log())

    def forward(self, x: Tensor | Moments) -> Tensor | Moments:
        """The input with noise, or what the interpretation puts in its place.

        Args:
            x: Inputs, or their moments, `(batch, *shape)`.

        Raises:
            ValueError: Examples have another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"StochasticAdditive: expected examples of shape {self.shape}, got inputs of shape {tuple(x.shape)}"
            )
        return random_activation(x, self)

    def draw(self, x: Tensor) -> Tensor:
        """Another draw of the noise for each example."""
        return x + self.loc + self.log_scale.exp() * torch.randn_like(x)

    def expected(self, x: Tensor) -> Tensor:
        """The shifted input."""
        return x + self.loc

    def noise_free(self, x: Tensor) -> Tensor:
        """The shifted input."""
        return x + self.loc

    def propagate(self, x: Moments) -> Moments:
        """The moments: the mean is shifted, and the noise's variance is added."""
        noise = (2.0 * self.log_scale).exp().expand(x.loc.shape)
        cov = None if x.cov is None else x.cov + torch.diag_embed(per_example(noise))
        return Moments(x.loc + self.loc, x.var + noise, cov, x.settings, x.links)

    def extra_repr(self) -> str:
        """The shape."""
        return f"shape={self.shape}"

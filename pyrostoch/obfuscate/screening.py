"""Random screening: parts of an example that are hidden anew at every iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyrostoch._checks import check_choice, check_count

__all__ = ["Screening"]


@dataclass(frozen=True)
class Screening:
    r"""Hides parts of examples: each patch of a grid with a probability, in every channel.

    The grid is laid at random over each example, so that any two neighbors may be parted. Hidden places are zeros, or
    independent normal noise with mean and standard deviation of the example's own channel.

    Args:
        fraction: The probability of a patch to be hidden, from 0 to 1: the expected share of an example.
        patch: Length of a patch along each axis: pixels of an image, steps of a series, entries of a vector.
        fill: What takes the place of hidden parts: `"zeros"` or `"noise"`.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> hidden = Screening(0.5, patch=4)(torch.ones(100, 3, 28, 28)) == 0
        >>> round(hidden.double().mean().item(), 1), bool((hidden[:, 0] == hidden[:, 2]).all())
        (0.5, True)

    References:
        DeVries, Taylor, "Improved regularization of convolutional neural networks with Cutout", 2017; Singh, Lee,
        "Hide-and-Seek", 2017, for patches of a grid.
    """

    fraction: float = 0.25
    patch: int = 4
    fill: Literal["zeros", "noise"] = "zeros"

    def __post_init__(self) -> None:
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, (int, float)) or not 0 <= self.fraction < 1:
            raise ValueError(f"Screening fraction: expected a number from 0 to below 1, got {self.fraction!r}")
        check_count("Screening patch", self.patch)
        check_choice("Screening fill", self.fill, ["zeros", "noise"])

    def __call__(self, x: Tensor) -> Tensor:
        r"""Hide parts of a batch, by torch's global random numbers.

        Args:
            x: Examples, (batch, features) or (batch, channels, \*sizes).

        Returns:
            A new tensor of the same shape.

        Raises:
            TypeError: They are no real numbers, such as indices of tokens, among which 0 is a token.
            ValueError: They have no axis besides that of the batch, or one that is shorter than a patch.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"Screening: expected real numbers, got {x.dtype}, of which 0 may be a value like any other"
            )
        if x.dim() < 2:
            raise ValueError(f"Screening: expected examples (batch, channels, *sizes), got shape {tuple(x.shape)}")
        axes = 1 if x.dim() == 2 else 2  # in vectors every entry is a place
        if min(x.shape[axes:]) < self.patch:
            raise ValueError(
                f"Screening patch: {self.patch} is longer than an axis of examples of shape {tuple(x.shape[1:])}, "
                "which would hide all of it at once; give a shorter one"
            )
        hidden = self._hidden(x.shape[0], x.shape[axes:], x.device)
        hidden = hidden.reshape(x.shape[0], *(1,) * (axes - 1), *x.shape[axes:])
        if self.fill == "zeros":
            return x.masked_fill(hidden, 0.0)
        own = tuple(range(axes, x.dim()))
        mean, spread = x.mean(own, keepdim=True), x.std(own, correction=0, keepdim=True)
        return torch.where(hidden, mean + spread * torch.randn_like(x), x)

    def _hidden(self, count: int, sizes: torch.Size, device: torch.device) -> Tensor:
        r"""Which places are hidden, (count, \*sizes)."""
        cells = [(size - 1) // self.patch + 2 for size in sizes]  # one more, for the random offset
        hidden = torch.rand(count, *cells, device=device) < self.fraction
        for axis, size in enumerate(sizes, 1):
            start = torch.randint(self.patch, (count, 1), device=device)
            place = (start + torch.arange(size, device=device)) // self.patch
            shape = [count, *(1,) * (axis - 1), size, *(1,) * (hidden.dim() - axis - 1)]
            full = [count, *hidden.shape[1:axis], size, *hidden.shape[axis + 1 :]]
            hidden = hidden.gather(axis, place.reshape(shape).expand(full))
        return hidden

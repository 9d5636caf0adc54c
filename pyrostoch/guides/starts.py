"""Where variational parameters start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrostoch.model import Site

__all__ = ["Start", "nudge_from_zero", "start_value"]

#: A number for every site, or a function of the site.
Start = float | Tensor | Callable[[Site], "float | Tensor"]


def start_value(start: Start, site: Site, shape: torch.Size, what: str) -> Tensor:
    """A starting value in a site's dtype, on its device, of the given shape.

    Args:
        start: Number, tensor, or function of the site.
        site: The site.
        shape: Shape wanted.
        what: Name of the quantity, for the error.

    Returns:
        A tensor of that shape.

    Raises:
        ValueError: The value does not broadcast to the shape.
    """
    value = start(site) if callable(start) and not isinstance(start, Tensor) else start
    tensor = torch.as_tensor(value, dtype=site.init.dtype, device=site.init.device)
    try:
        # Contiguous: a clone of an expanded tensor keeps strides of 0, which DDP warns of.
        return tensor.expand(shape).clone(memory_format=torch.contiguous_format)
    except RuntimeError as error:
        raise ValueError(
            f"{what} at site {site.name!r}: expected a number or a shape that broadcasts to {tuple(shape)}, got "
            f"{tuple(tensor.shape)}"
        ) from error


def nudge_from_zero(values: Tensor) -> Tensor:
    """The values with exact zeros moved to a hundredth of their mean size, where a scale can learn.

    A scale that starts at zero has no gradient, and a distribution of no width an infinite KL to a proper prior.

    Args:
        values: Starting values, such as an embedding's with its padding row of zeros.

    Returns:
        Values without zeros.
    """
    size = values.abs().mean()
    small = torch.where(size > 0, size, torch.ones_like(size)) / 100
    return torch.where(values == 0, small, values)

"""Initial values of variational parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrostoch.sites import Site

__all__ = ["Start", "nudge_from_zero", "start_value", "weights_with_a_scale"]

#: A number for every site, or a function of the site.
Start = float | Tensor | Callable[[Site], "float | Tensor"]


def start_value(start: Start, site: Site, shape: torch.Size, what: str) -> Tensor:
    """An initial value of the given shape, in a site's dtype and on its device.

    Args:
        start: Number, tensor, or function of the site.
        site: The site.
        shape: Shape of the result.
        what: Name of the quantity, for the error.

    Returns:
        A new tensor of that shape.

    Raises:
        ValueError: The value does not broadcast to the shape.
    """
    value = start(site) if callable(start) and not isinstance(start, Tensor) else start
    tensor = torch.as_tensor(value, dtype=site.init.dtype, device=site.init.device)
    try:
        # Contiguous: a clone of an expanded tensor keeps strides of 0, about which DDP warns.
        return tensor.expand(shape).clone(memory_format=torch.contiguous_format)
    except RuntimeError as error:
        raise ValueError(
            f"{what} at site {site.name!r}: expected a number or a shape that broadcasts to {tuple(shape)}, got "
            f"{tuple(tensor.shape)}"
        ) from error


def nudge_from_zero(values: Tensor) -> Tensor:
    """The values, with exact zeros replaced by a hundredth of the mean absolute value.

    A scale that starts at zero has no gradient, and a distribution of zero width has an infinite KL to a proper prior.

    Args:
        values: Initial values, such as an embedding's, whose padding row is zero.

    Returns:
        Values without zeros.
    """
    size = values.abs().mean()
    small = torch.where(size > 0, size, torch.ones_like(size)) / 100
    return torch.where(values == 0, small, values)


def weights_with_a_scale(site: Site, guide: str) -> Tensor:
    """The network's own weights at a site, from which a scale can be chosen.

    Args:
        site: The site.
        guide: Class of the guide that asks, for the error.

    Raises:
        ValueError: All of them are 0.
    """
    weights = site.init.detach()
    if not weights.any():
        raise ValueError(
            f"{guide}: all of the network's own weights at site {site.name!r} are 0, so that no scale can be chosen "
            "from them; start from random or trained weights"
        )
    return weights

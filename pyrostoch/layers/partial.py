"""Kernels' outputs of which some belong to no activation: positions of padding, and places where no class is selected.

There the activation is 0, and no part of the rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyrostoch._manual import see

__all__ = ["Partial", "without_absent", "zero_where_absent"]


class Partial(tuple[Any, ...]):
    """The kernels' outputs, and where they belong to no activation.

    Attributes:
        absent: True where there is none; its axes are the first ones of the activations, whose entries that belong
            together are last. `None` where there is one everywhere.

    Example:
        >>> outputs = Partial((torch.zeros(2, 3),))
        >>> outputs.absent = torch.tensor([False, True])
        >>> zero_where_absent(torch.ones(2, 3), outputs)
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
    """

    absent: Tensor | None = None


def zero_where_absent(value: Any, outputs: tuple[Any, ...]) -> Any:
    """The activations, and 0 where there is none.

    Args:
        value: The activations, or their moments; entries that belong together are on the last axis.
        outputs: The kernels' outputs.
    """
    absent = getattr(outputs, "absent", None)
    if absent is None:
        return value
    return torch.where(absent.reshape(*absent.shape, *(1,) * (len(value.shape) - absent.dim())), 0.0, value)


def without_absent(distribution: Any, outputs: tuple[Any, ...], title: str, prior: object) -> Distribution:
    """A distribution whose log density, and divergence, leave out what belongs to no activation.

    Args:
        distribution: q(h | x) or p(h), all of whose axes but the first are event axes.
        outputs: The kernels' outputs.
        title: Name of the layer's class, for the message.
        prior: The layer's prior, for the message.

    Raises:
        ValueError: The distribution couples places of which some have no activation.
    """
    absent = getattr(outputs, "absent", None)
    if absent is None:
        found: Distribution = distribution
        return found
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    if base.batch_shape[: absent.dim()] != absent.shape:
        raise ValueError(
            f"{title}: where there is padding, or no class is selected, expected a prior under which positions are "
            f"independent, such as 'standard' or 'learned', got {type(prior).__name__}; use another prior, or inputs "
            f"without such places{see('how-to/stochastic_layers')}"
        )
    keep = absent.logical_not().reshape(*absent.shape, *(1,) * (len(base.batch_shape) - absent.dim()))
    masked: Distribution = base.mask(keep.expand(base.batch_shape)).to_event(len(base.batch_shape) - 1)
    return masked

"""What guides whose weights depend on each other have in common: how they draw, and what they refuse."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.distributions import SharedDraw
from pyrostoch.effects import independent
from pyrostoch.guides.base import Guide
from pyrostoch.sites import Site

__all__ = ["check_memory", "draw_tied", "positive_tril", "raw_tril", "refuse_constants"]

# Copies of a parameter in training: itself, its gradient, the two moments of Adam, and one in the forward pass.
_COPIES = 5


def draw_tied(guide: Guide, shared: SharedDraw, make: Callable[[str], Any]) -> dict[str, Tensor]:
    """Draw the sites of a guide, by name, of which some share a draw.

    Args:
        guide: The guide.
        shared: What they share.
        make: Makes the distribution of one of them.
    """
    draws: dict[str, Tensor] = {}
    for name in guide.site_names:
        if name in shared.sites:
            draws[name] = pyro.sample(name, make(name), infer=independent())
            shared.record(draws[name])
        else:
            draws[name] = pyro.sample(name, guide.site_distribution(name))  # type: ignore[arg-type]
    return draws


def refuse_constants(site: Site, guide: str) -> None:
    """Raise an error for a site some of whose entries torch holds constant.

    Args:
        site: The site.
        guide: Class of the guide.

    Raises:
        ValueError: The site has such entries.
    """
    if site.fixed is None:
        return
    raise ValueError(
        f"guide {guide}: expected a site without constant entries, on which others would depend, got {site.name!r}, "
        "where torch holds some constant (a padding row, or weights that torch.nn.utils.prune cut). Give it another "
        f"guide, such as Additive, by PerSite, or no prior: {{{site.name!r}: None}}{see('how-to/choose_guide')}"
    )


def check_memory(site: Site, numbers: int, guide: str) -> None:
    """Raise an error, before anything is allocated, where a covariance does not fit into memory.

    Args:
        site: The site.
        numbers: How many numbers its covariance has.
        guide: Class of the guide.

    Raises:
        ValueError: Training it would take more memory than the device has.
    """
    needed, there = _COPIES * numbers * site.init.element_size(), _memory(site.init.device)
    if needed > there:
        raise ValueError(
            f"guide {guide}: the covariance at site {site.name!r}, of shape {tuple(site.init.shape)}, has {numbers:,} "
            f"numbers; training it would take {needed / 2**30:,.1f} GiB, and there are {there / 2**30:,.1f} GiB of "
            f"memory. Take LowRank, or cover the site by another guide by PerSite{see('how-to/which_posterior')}"
        )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if not hasattr(os, "sysconf"):  # as on Windows: not known
        return sys.maxsize
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def raw_tril(scale: Tensor) -> Tensor:
    """The parameter from which `positive_tril` makes a diagonal matrix.

    Args:
        scale: Its diagonal, positive.
    """
    return torch.diag_embed(scale.log())


def positive_tril(raw: Tensor) -> Tensor:
    """A lower triangular matrix with a positive diagonal, from any square matrix.

    Below the diagonal it is as it is, in units of the row's diagonal entry, so that a change of either means as much
    whatever the scale; the diagonal is the exponential.

    Args:
        raw: The parameter, (..., n, n).

    Example:
        >>> positive_tril(torch.tensor([[0.0, 5.0], [3.0, 0.0]]))
        tensor([[1., 0.],
                [3., 1.]])
    """
    diagonal = raw.diagonal(dim1=-2, dim2=-1).exp()
    return diagonal.unsqueeze(-1) * (raw.tril(-1) + torch.eye(raw.shape[-1], dtype=raw.dtype, device=raw.device))

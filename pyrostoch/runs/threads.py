"""How many threads a small network deserves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["suited_threads"]

# Below this many parameters a second thread gains nothing, and costs much where another program wants its core.
_SMALL = 100_000


@contextlib.contextmanager
def suited_threads(net: nn.Module) -> Iterator[None]:
    """Use one thread for a small network, and torch's own number for others; put back afterwards.

    Args:
        net: The network.

    Example:
        >>> with suited_threads(nn.Linear(2, 2)):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in net.parameters()) < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)

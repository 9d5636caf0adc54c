"""The number of threads for a small network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["limit_threads"]

# With fewer parameters a second thread brings nothing, and slows training down much if another program needs its core.
_SMALL = 100_000


@contextlib.contextmanager
def limit_threads(net: nn.Module) -> Iterator[None]:
    """Use one thread for a small network, and torch's setting for others; the setting is restored afterwards.

    Args:
        net: The network.

    Example:
        >>> with limit_threads(nn.Linear(2, 2)):
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

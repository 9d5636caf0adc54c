"""What guides have in common that collect points while `fit` trains one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["Collecting"]


class Collecting(nn.Module):
    """Base class of guides whose draws are one point while `fit` trains it, and afterwards come from what they kept.

    Example:
        >>> import pyrostoch as ps
        >>> issubclass(ps.guides.Swag, Collecting), issubclass(ps.guides.Samples, Collecting)
        (True, True)
    """

    # Of the class: a subclass may be made before its own attributes are.
    _collecting = False

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Draw the point that is trained."""
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False

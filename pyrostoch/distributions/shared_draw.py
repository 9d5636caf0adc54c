"""What ties the weights of several sites in one draw of a guide: numbers that are drawn once and enter all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor
from torch.distributions import Distribution

__all__ = ["SharedDraw", "depends_on_given", "is_pending", "mark_pending", "share_by_row", "shared_again"]


class SharedDraw:
    """Base class of what the distributions of several sites share during one draw of a guide.

    A guide makes one at each draw, gives it to the distributions of its sites, and records each value that Pyro
    returned. So the distribution of a site knows what was drawn before it, by the guide or by the user.

    Args:
        sites: Names of the sites, in the order in which they are drawn.

    Attributes:
        by_row: Whether each row of a batch gets shared numbers of its own. An interpretation sets this where it
            replaces all sites by their distributions; if it cannot, all rows share one draw.
        values: What Pyro returned for the sites drawn so far.
        drawn: What their distributions drew, by the site's place.

    Example:
        >>> from pyrostoch.distributions import LowRankDraw
        >>> shared = LowRankDraw(2, ("a", "b"))
        >>> shared.by_row, shared.sites
        (False, ('a', 'b'))
    """

    #: Whether the sites are weight and bias of one layer, so that the outputs of layers stay independent.
    one_layer = False

    def __init__(self, sites: Sequence[str] = ()) -> None:
        self.sites = tuple(sites)
        self.by_row = False
        self.values: list[Tensor] = []
        self.drawn: dict[int, Tensor] = {}
        # What each row of a batch has of its own, drawn when the first of the sites needs it.
        self._rows: Tensor | None = None

    def again(self) -> Self:
        """The same draw for another pass through the network, in which the rows of the batch draw anew."""
        other = copy.copy(self)
        other._rows = None
        return other

    def member(self, distribution: Distribution) -> Distribution:
        """The distribution of one of the sites, as a copy that shares this draw.

        Args:
            distribution: The distribution, of the draw that this one was made from by `again`.
        """
        found: Any = copy.copy(distribution)
        found.shared = self
        return found

    def record(self, value: Tensor) -> None:
        """Take note of the value of the next site.

        Args:
            value: What Pyro returned for it.
        """
        self.values.append(value)

    @property
    def has_given(self) -> bool:
        """Whether the user has set the value of a site, on which those drawn later depend."""
        return not all(self.is_own(place) for place in range(len(self.values)))

    def is_own(self, place: int) -> bool:
        """Whether the value of a site was drawn from its distribution, or will be; if not, the user has set it.

        Args:
            place: Place of the site among the sites.
        """
        value = self.values[place]
        return is_pending(value) or value is self.drawn.get(place)


def mark_pending(value: Tensor) -> Tensor:
    """Mark a placeholder of a draw that is made when it is first needed.

    Args:
        value: The placeholder.

    Returns:
        The same tensor.
    """
    value._pyrostoch_pending = True  # type: ignore[attr-defined]
    return value


def is_pending(value: Tensor) -> bool:
    """Whether a tensor was marked by `mark_pending`.

    Args:
        value: The tensor.

    Example:
        >>> import torch
        >>> is_pending(torch.zeros(1)), is_pending(mark_pending(torch.zeros(1)))
        (False, True)
    """
    return getattr(value, "_pyrostoch_pending", False)


def share_by_row(replaced: Mapping[str, Distribution]) -> None:
    """Let each row of a batch have shared numbers of its own, where a network call replaces all sites that share them.

    Args:
        replaced: The distributions of the sites that are replaced, by name.
    """
    for distribution in replaced.values():
        shared: SharedDraw | None = getattr(distribution, "shared", None)
        if shared is not None:
            shared.by_row = bool(shared.sites) and replaced.keys() >= set(shared.sites)


def shared_again(distributions: Mapping[str, Distribution]) -> dict[str, Distribution]:
    """The distributions for another pass through the network: copies of those that share something, which share anew.

    Args:
        distributions: The distributions of the sites, by name.
    """
    copies: dict[int, SharedDraw] = {}
    found: dict[str, Distribution] = {}
    for name, distribution in distributions.items():
        shared: SharedDraw | None = getattr(distribution, "shared", None)
        if shared is not None:
            if id(shared) not in copies:
                copies[id(shared)] = shared.again()
            distribution = copies[id(shared)].member(distribution)
        found[name] = distribution
    return found


def depends_on_given(distribution: Distribution) -> bool:
    """Whether a distribution shares something with sites of which the user has set one.

    Args:
        distribution: The distribution.
    """
    shared: SharedDraw | None = getattr(distribution, "shared", None)
    return shared is not None and shared.has_given

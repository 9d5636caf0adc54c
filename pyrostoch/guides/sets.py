"""What guides that are sets have in common: each draw is that of a member, chosen at random or in turn."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._manual import see
from pyrostoch.guides.plain import plain_network

__all__ = ["GuideSet"]


class GuideSet(nn.Module, ABC):
    """Base class of guides that are sets, whose members have equal weights.

    A draw takes a member at random. Within `in_turn()`, which `predict`, `compare`, `draws` and `decompose` enter,
    draws take all members once, in a random order, before they begin anew: with as many draws as members, or twice as
    many, the average over draws is that over all members. There is no mean of the weights: that of different networks
    is none of them.

    Example:
        >>> import pyrostoch as ps
        >>> issubclass(ps.guides.Ensemble, GuideSet)
        True
    """

    site_names: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        # A tuple, so that what restores attributes of modules restores it.
        self._left: tuple[int, ...] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of members."""

    @abstractmethod
    def draw_member(self, index: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every site from one member, as Pyro sites.

        Args:
            index: Number of the member.
            args: The model's arguments.
            kwargs: The same, by name.
        """

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide: draws every site from one member.

        Args:
            args: The model's arguments.
            kwargs: The same, by name.

        Returns:
            The draws by site name.
        """
        return self.draw_member(self._next(), *args, **kwargs)

    def _next(self) -> int:
        if self._left is None:
            return int(torch.randint(len(self), ()))
        if not self._left:
            self._left = tuple(torch.randperm(len(self)).tolist())
        index, self._left = self._left[0], self._left[1:]
        return index

    def export(self, model: nn.Module, *, draw: int | None = None) -> nn.Module:
        """A copy of the model's network, an ordinary module, with one draw of the weights: those of a member.

        Args:
            model: The `BayesianModel`.
            draw: Seed of the draw.

        Returns:
            The copy, in evaluation mode, with nothing random in it.

        Raises:
            ValueError: No draw is asked for, or a layer of the network is random itself.
        """
        if draw is None and len(self) > 1:
            raise ValueError(
                f"export: the members of {type(self).__name__} are different networks, and the mean of their weights "
                f"is none of them; give draw=, the seed of a draw{see('how-to/take_it_out')}"
            )
        return plain_network(model, self, 0 if draw is None else draw)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let draws take all members in turn."""
        before, self._left = self._left, ()
        try:
            yield
        finally:
            self._left = before

"""The low-rank part of one draw of weights that share it, and what the weights drawn so far tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Size, Tensor

from pyrostoch.distributions.shared_draw import SharedDraw, is_pending

__all__ = ["LowRankDraw", "group_size"]

# Up to how many weights each row has a draw of its own, which costs K products in place of one; and into how many
# groups that share one the rows are cut where there are more weights.
_FEW_WEIGHTS = 100_000
_GROUPS = 2


class _Weight(Protocol):
    """What a weight with a low-rank part has; see `LowRankNormal`."""

    loc: Tensor
    scale: Tensor
    factor: Tensor

    @property
    def information(self) -> Tensor: ...

    def rsample(self) -> Tensor: ...


class LowRankDraw(SharedDraw):
    r"""One draw of z, standard normal, for weights $w_l = \mu_l + \sigma_l \circ \varepsilon_l + \sum_k z_k f_{lk}$.

    Given the weights before place l, z is normal with precision $P_l = I + \sum_{j<l} F_j^\top D_j^{-1} F_j$ and mean
    $P_l^{-1} \sum_{j<l} F_j^\top D_j^{-1} (w_j - \mu_j)$, where $D = \mathrm{diag}(\sigma^2)$. Linear algebra is done
    in double precision, on K x K matrices.

    Args:
        rank: K.
        sites: Names of the sites, in the order in which they are drawn.

    Example:
        >>> from pyrostoch.distributions import LowRankNormal
        >>> shared = LowRankDraw(1)
        >>> first = LowRankNormal(torch.zeros(2), torch.ones(2), torch.ones(1, 2), shared=shared)
        >>> shared.record(first.rsample())
        >>> second = LowRankNormal(torch.zeros(2), torch.ones(2), torch.ones(1, 2), shared=shared)
        >>> shared.log_det(second.place)  # log(1 + 2)
        tensor(1.0986, dtype=torch.float64)
    """

    def __init__(self, rank: int, sites: Sequence[str] = ()) -> None:
        super().__init__(sites)
        self.rank = rank
        self._members: list[_Weight] = []
        self._z: Tensor | None = None
        self._roots: dict[int, Tensor] = {}

    def add(self, member: _Weight) -> int:
        """Add the distribution of the next weight, and return its place.

        Args:
            member: The distribution.
        """
        self._members.append(member)
        return len(self._members) - 1

    def whole(self, like: Tensor) -> Tensor:
        """The draw of z for the whole batch, (K,).

        Args:
            like: Tells dtype and device.
        """
        if self._z is None:
            self._z = torch.randn(self.rank, dtype=like.dtype, device=like.device)
        return self._z

    def of_rows(self, count: int, like: Tensor) -> tuple[Tensor, int]:
        """The draws of z for groups of rows of a batch, (groups, K), the same for all weights, and a group's size.

        Args:
            count: Number of rows.
            like: Tells dtype and device.
        """
        if not self.by_row:
            return self.whole(like).unsqueeze(0), count
        size = group_size(count, sum(member.loc.numel() for member in self._members))
        if self._rows is None:
            self._rows = torch.randn((-(-count // size), self.rank), dtype=like.dtype, device=like.device)
        return self._rows, size

    def before(self, place: int, shape: Size) -> Tensor:
        """The draw of z for the weight at a place, (*shape, K), given the weights before it.

        Args:
            place: The place.
            shape: Shape of the draws; empty for the one that goes with the other weights' draws.
        """
        member = self._members[place]
        if not shape and all(self.is_own(earlier) for earlier in range(place)):
            return self.whole(member.loc)
        mean, root = self.posterior(place)
        noise = torch.randn((*shape, self.rank), dtype=root.dtype, device=root.device)
        return (mean + noise @ root.mT).to(member.loc.dtype)

    def posterior(self, place: int) -> tuple[Tensor, Tensor]:
        r"""Mean of z given the weights before a place, (K,), and a root R of its covariance $R R^\top$.

        Args:
            place: The place.
        """
        total = torch.zeros(self.rank, dtype=torch.float64, device=self._members[0].loc.device)
        for earlier, member in enumerate(self._members[:place]):
            white = ((self._value(earlier) - member.loc).double() / member.scale.double().square()).flatten()
            total = total + member.factor.double().reshape(self.rank, -1) @ white
        cholesky = self._root(place)
        mean = torch.cholesky_solve(total.unsqueeze(1), cholesky).squeeze(1)
        eye = torch.eye(self.rank, dtype=torch.float64, device=total.device)
        return mean, torch.linalg.solve_triangular(cholesky, eye, upper=False).mT

    def log_det(self, place: int) -> Tensor:
        """Log of the determinant of the precision of z given the weights before a place.

        Args:
            place: The place.
        """
        return 2.0 * self._root(place).diagonal().log().sum()

    def _root(self, place: int) -> Tensor:
        """Cholesky factor of the precision of z given the weights before a place."""
        if place not in self._roots:
            device = self._members[0].loc.device
            precision = torch.eye(self.rank, dtype=torch.float64, device=device)
            for member in self._members[:place]:
                precision = precision + member.information
            self._roots[place] = torch.linalg.cholesky_ex(precision)[0]
        return self._roots[place]

    def _value(self, place: int) -> Tensor:
        value = self.values[place]
        if not is_pending(value):
            return value
        return self.drawn[place] if place in self.drawn else self._members[place].rsample()


def group_size(count: int, weights: int) -> int:
    """How many rows of a batch share a draw of the low-rank part: one where the weights are few, else half of them.

    Args:
        count: Number of rows.
        weights: Number of weights.

    Example:
        >>> group_size(100, 500), group_size(100, 500_000)
        (1, 50)
    """
    return 1 if weights <= _FEW_WEIGHTS else -(-count // _GROUPS)

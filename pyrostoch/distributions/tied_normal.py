"""Weights of several sites with one full covariance of all of their entries."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Size, Tensor
from torch.types import _size

from pyrostoch._ops import LinearOp
from pyrostoch.distributions.joint import JointWeights
from pyrostoch.distributions.shared_draw import SharedDraw, is_pending

__all__ = ["TiedDraw", "TiedNormal"]


class TiedNormal(JointWeights):
    r"""A site's weights $w = \mu + L_{<} e_{<} + L_{=}\,e$, where $e_{<}$ are the numbers of the sites drawn before.

    The rows $(L_{<}, L_{=})$ are those of the lower triangular factor of the covariance of all sites. `log_prob` and
    the KL divergence are given the sites drawn before; the sum of all divergences is that of all sites together. Taken
    alone, without `shared`, a site has its marginal distribution.

    Args:
        loc: Means, in the shape of the weight, of n entries.
        root: The factor's rows of this site, (n, m) with $m \ge n$; its last n columns are $L_{=}$, lower triangular
            and positive on the diagonal.
        shared: What it shares with the other sites; by default it is taken alone.
        place: Its place among the sites.

    Example:
        >>> TiedNormal(torch.zeros(1), torch.tensor([[3.0, 4.0]])).variance
        tensor([25.])
    """

    has_output_moments = True

    def __init__(self, loc: Tensor, root: Tensor, *, shared: TiedDraw | None = None, place: int = 0) -> None:
        self.loc, self.root, self.place = loc, root, place
        self.shared: TiedDraw | None = shared
        super().__init__(loc.shape)

    @property
    def own(self) -> Tensor:
        """The last columns of the root, (n, n)."""
        return self.root[:, self.root.shape[1] - len(self.root) :]

    @property
    def before(self) -> Tensor:
        """The other columns of the root, (n, m - n)."""
        return self.root[:, : self.root.shape[1] - len(self.root)]

    @property
    def mean(self) -> Tensor:
        """The means, in the shape of the weight, whatever the other sites."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances, in the shape of the weight, whatever the other sites."""
        return self.root.square().sum(1).reshape(self.event_shape)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the site's entries, (n, n), whatever the other sites."""
        return self.root @ self.root.mT

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *shape), given the sites drawn before."""
        shape = Size(sample_shape)
        if self.shared is None:
            return self.loc + (self._noise((*shape, self.root.shape[1])) @ self.root.mT).reshape(
                (*shape, *self.loc.shape)
            )
        noise = self._noise((*shape, len(self.root))) if shape else self.shared.noise(self.place)
        drawn = self._conditional_mean() + (noise @ self.own.mT).reshape((*shape, *self.loc.shape))
        if not shape:
            self.shared.drawn[self.place] = drawn
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw, (*sample shape), given the sites drawn before."""
        loc, factor = self._conditional()
        lead = value.shape[: value.dim() - len(self.event_shape)]
        centered = (value.double() - loc.double()).reshape((*lead, -1, 1))
        white = torch.linalg.solve_triangular(factor, centered, upper=False).squeeze(-1)
        found = -0.5 * (white.square().sum(-1) + self.log_det + self.loc.numel() * math.log(2 * math.pi))
        return found.to(value.dtype)

    @property
    def log_det(self) -> Tensor:
        """Log of the determinant of the covariance given the sites drawn before, in double precision."""
        return 2.0 * self.conditional_factor().diagonal().log().sum()

    def root_products(self, rows: Tensor) -> Tensor:
        """Vectors of the weight's shape times the root, with a column for each number that the sites share."""
        found = rows.flatten(rows.dim() - len(self.event_shape)) if self.event_shape else rows.unsqueeze(-1)
        return found @ self._padded(self.root)

    def draw_rows(self, count: int) -> Tensor:
        """A draw of the weight for each of some rows, with the numbers that a row has for all sites."""
        if self.shared is None or not self.shared.by_row:
            return super().draw_rows(count)
        noise = self.shared.rows(count)[:, : self.root.shape[1]]
        return self.loc + (noise @ self.root.mT).reshape((count, *self.event_shape))

    def covers(self, op: LinearOp) -> bool:
        """Linear layers, where all sites that share numbers are replaced together."""
        tied = self.shared is not None and not self.shared.by_row
        return op.spatial == 0 and op.input.dim() == 2 and not tied

    def includes(self, bias: JointWeights | None) -> bool:
        """Whether the bias is that of this layer, which `draw_output` adds."""
        return isinstance(bias, TiedNormal) and bias is self._bias()

    def draw_output(self, op: LinearOp) -> Tensor:
        """The output with a draw for each row, with the bias where it is tied to this weight alone."""
        output = super().draw_output(op)
        bias = self._bias()
        return output if bias is None else output + bias.draw_rows(len(op.input))

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        """What the weight and the bias add to the covariance of the outputs, in closed form."""
        root = self._padded(self.root).reshape((*self.event_shape, -1))
        of_mean = torch.einsum("ni,oik->nok", mean, root)
        bias = self._bias()
        if bias is not None:
            of_mean = of_mean + self._padded(bias.root)
        covariance = of_mean @ of_mean.mT
        if second.dim() == 2:
            return covariance + torch.einsum("ni,oik,pik->nop", second, root, root)
        return covariance + torch.einsum("nij,oik,pjk->nop", second, root, root)

    def _bias(self) -> TiedNormal | None:
        """The distribution of the layer's bias, where it is tied to this weight."""
        if self.shared is None or not self.shared.one_layer:
            return None
        return next((member for member in self.shared.members if member is not self), None)

    def _padded(self, root: Tensor) -> Tensor:
        """A root with a column for each number that the sites share."""
        missing = 0 if self.shared is None else self.shared.size - root.shape[1]
        return torch.nn.functional.pad(root, (0, missing))

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def conditional_factor(self) -> Tensor:
        """Lower triangular factor of the covariance given the sites drawn before, in double precision."""
        if self.shared is not None or self.root.shape[0] == self.root.shape[1]:
            return self.own.double()
        return torch.linalg.cholesky(self.covariance.double())

    def _conditional(self) -> tuple[Tensor, Tensor]:
        return self._conditional_mean(), self.conditional_factor()

    def _conditional_mean(self) -> Tensor:
        """The means given the sites drawn before, or whatever they are if this one is taken alone."""
        if self.shared is None or not self.place:
            return self.loc
        return self.loc + (self.before @ self.shared.white_before(self.place)).reshape(self.event_shape)


class TiedDraw(SharedDraw):
    """One draw of the weights of several sites with one covariance.

    Args:
        locs: Means of each site, in the shape of its weight.
        roots: The rows of the covariance's lower triangular factor of each site, up to the diagonal.
        sites: Names of the sites, in the order in which they are drawn.
        one_layer: Whether they are weight and bias of one layer.

    Example:
        >>> shared = TiedDraw([torch.zeros(1), torch.zeros(1)], [torch.eye(1), torch.tensor([[3.0, 4.0]])])
        >>> shared.record(shared.members[0].rsample())
        >>> shared.members[1].rsample().shape
        torch.Size([1])
    """

    def __init__(
        self, locs: Sequence[Tensor], roots: Sequence[Tensor], sites: Sequence[str] = (), *, one_layer: bool = False
    ) -> None:
        super().__init__(sites)
        self.one_layer = one_layer
        self.members = [
            TiedNormal(loc, root, shared=self, place=place)
            for place, (loc, root) in enumerate(zip(locs, roots, strict=True))
        ]
        #: How many numbers the sites share.
        self.size = sum(len(root) for root in roots)
        self._noise: dict[int, Tensor] = {}

    def again(self) -> Self:
        """The same draw for another pass through the network, with its own distributions of all sites."""
        other = super().again()
        other.members = [copy.copy(member) for member in self.members]
        for member in other.members:
            member.shared = other
        return other

    def member(self, distribution: Any) -> Any:
        """The distribution of one of the sites that shares this draw.

        Args:
            distribution: That of the draw that this one was made from.
        """
        return self.members[distribution.place]

    def noise(self, place: int) -> Tensor:
        """The standard normal numbers of the site at a place, (n,).

        Args:
            place: The place.
        """
        if place not in self._noise:
            member = self.members[place]
            self._noise[place] = torch.randn(len(member.root), dtype=member.loc.dtype, device=member.loc.device)
        return self._noise[place]

    def rows(self, count: int) -> Tensor:
        """The standard normal numbers of each row of a batch, for all sites, (count, size).

        Args:
            count: Number of rows.
        """
        if self._rows is None:
            like = self.members[0].loc
            self._rows = torch.randn((count, self.size), dtype=like.dtype, device=like.device)
        return self._rows

    def white_before(self, place: int) -> Tensor:
        """The numbers from which the weights before a place were made, or those that make what the user has given.

        Args:
            place: The place.
        """
        found: list[Tensor] = []
        for earlier, member in enumerate(self.members[:place]):
            value = self.values[earlier]
            if is_pending(value) or value is self.drawn.get(earlier):
                found.append(self.noise(earlier))
                continue
            centered = (value - member.loc).double().reshape(-1)
            if found:
                centered = centered - member.before.double() @ torch.cat(found).double()
            white = torch.linalg.solve_triangular(member.own.double(), centered.unsqueeze(1), upper=False)
            found.append(white.squeeze(1).to(member.loc.dtype))
        return torch.cat(found)

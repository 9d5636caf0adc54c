"""Weights with a variance each and a covariance of low rank, alone or shared by the weights of several layers."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Size, Tensor
from torch.types import _size

from pyrostoch._ops import LinearOp
from pyrostoch._precision import safe_sqrt
from pyrostoch.distributions.joint import JointWeights
from pyrostoch.distributions.low_rank_draw import LowRankDraw, group_size

__all__ = ["LowRankNormal"]


class LowRankNormal(JointWeights):
    r"""$w = \mu + \sigma \circ \varepsilon + \sum_k z_k f_k$: variances $\sigma^2$ and a covariance of rank K.

    $\varepsilon$ and z are independent and standard normal. The covariance is $\mathrm{diag}(\sigma^2) + F F^\top$.
    Several weights may share z: a `LowRankDraw` ties them. `log_prob` and the KL divergence of such a weight are then
    given those that were drawn before it, and their sums those of all weights together.

    Args:
        loc: Means $\mu$, in the shape of the weight.
        scale: Standard deviations $\sigma$ of the independent part, in the same shape.
        factor: The vectors $f_k$, (K, *shape).
        shared: The draw of z that the weight shares with others; by default it has its own.

    References:
        Ong, Nott, Smith, "Gaussian variational approximation with a factor covariance structure", 2018; Tomczak,
        Swaroop, Turner, "Efficient low rank Gaussian variational inference for neural networks", 2020.

    Example:
        >>> weight = LowRankNormal(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[[1.0, 2.0]]]))
        >>> weight.variance, weight.log_prob(torch.zeros(1, 2))
        (tensor([[2., 5.]]), tensor(-2.7338))
    """

    has_output_moments = True

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor, *, shared: LowRankDraw | None = None) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        self.shared: LowRankDraw | None = shared
        #: How many weights were drawn before this one, of those that share z.
        self.place = 0 if shared is None else shared.add(self)
        super().__init__(loc.shape)

    @property
    def mean(self) -> Tensor:
        """The means, in the shape of the weight."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances, in the shape of the weight."""
        return self.scale.square() + self.factor.square().sum(0)

    @property
    def covariance(self) -> Tensor:
        """The covariance of all entries, (n, n)."""
        factor = self.factor.reshape(len(self.factor), -1)
        return factor.mT @ factor + torch.diag(self.scale.flatten().square())

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *shape)."""
        shape = Size(sample_shape)
        if self.shared is None:
            z = torch.randn((*shape, len(self.factor)), dtype=self.loc.dtype, device=self.loc.device)
        else:
            z = self.shared.before(self.place, shape)
        drawn = self._given(z) + self.scale * self._noise((*shape, *self.event_shape))
        if self.shared is not None and not shape:
            self.shared.drawn[self.place] = drawn
        return drawn

    def draw_rows(self, count: int) -> Tensor:
        """A draw of the weight for each of some rows; rows that share z differ in the rest."""
        z, size = self._latents(count)
        return self._given(z.repeat_interleave(size, 0)[:count]) + self.scale * self._noise((count, *self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw, (*sample shape), given the weights that were drawn before it."""
        loc, factor = self.loc.double(), self.factor.double().reshape(len(self.factor), -1)
        if self.shared is not None:
            mean, root = self.shared.posterior(self.place)
            loc, factor = loc + torch.tensordot(mean, self.factor.double(), 1), root.mT @ factor
        scale = self.scale.double().flatten()
        lead = value.shape[: value.dim() - len(self.event_shape)]
        white = (value.double() - loc).reshape((*lead, -1)) / scale
        factor = factor / scale
        cholesky = torch.linalg.cholesky_ex(self._eye() + factor @ factor.mT)[0]
        inside = torch.linalg.solve_triangular(cholesky, (white @ factor.mT).unsqueeze(-1), upper=False).squeeze(-1)
        squares = white.square().sum(-1) - inside.square().sum(-1)
        log_det = 2.0 * (scale.log().sum() + cholesky.diagonal().log().sum())
        found = -0.5 * (squares + log_det + self.loc.numel() * math.log(2 * math.pi))
        return found.to(value.dtype)

    @cached_property
    def _terms(self) -> tuple[Tensor, Tensor]:
        factor = self.factor.reshape(len(self.factor), -1)
        # In the weight's own precision: what autocast to half precision made would be kept.
        with torch.autocast(self.loc.device.type, enabled=False):
            found: tuple[Tensor, Tensor] = _Terms.apply(factor, self.scale.reshape(-1).square().reciprocal())
        return found

    @property
    def information(self) -> Tensor:
        r"""$F^\top \mathrm{diag}(\sigma^{-2}) F$, (K, K), in double precision: what the weight tells of z."""
        return self._terms[0].double()

    @property
    def squares(self) -> Tensor:
        """The sum of the squares of all entries of F, in double precision."""
        return self._terms[1]

    @property
    def log_det(self) -> Tensor:
        """Log of the determinant of the covariance given the weights that were drawn before, in double precision."""
        independent = 2.0 * self.scale.log().sum(dtype=torch.float64)
        if self.shared is None:
            cholesky = torch.linalg.cholesky_ex(self._eye() + self.information)[0]
            return independent + 2.0 * cholesky.diagonal().log().sum()
        return independent + self.shared.log_det(self.place + 1) - self.shared.log_det(self.place)

    def root_products(self, rows: Tensor) -> Tensor:
        """Vectors of the weight's shape times F, (..., K)."""
        axes = len(self.event_shape)
        flat = rows.reshape(*rows.shape[: rows.dim() - axes], -1)
        return flat @ self.factor.reshape(len(self.factor), -1).mT

    def own_products(self, rows: Tensor) -> Tensor:
        r"""Vectors of the weight's shape times $\mathrm{diag}(\sigma)$, (..., n)."""
        axes = len(self.event_shape)
        return (rows * self.scale).reshape(*rows.shape[: rows.dim() - axes], -1)

    def covers(self, op: LinearOp) -> bool:
        """Linear layers and convolutions."""
        return op.input.dim() == 2 if op.spatial == 0 else op.batched()

    def draw_output(self, op: LinearOp) -> Tensor:
        """The output; noise of the independent part is drawn for each row and position, z for each group of rows.

        A group is a single row where the weights are few, and half of the batch where they are many. Every row's output
        has the right distribution in any case; rows of a group are not independent.
        """
        z, size = self._latents(len(op.input))
        if size > 1:
            groups = zip(op.input.split(size), self._given(z), strict=True)
            mean = torch.cat([op(rows, weight, None) for rows, weight in groups])
        else:
            mean = op(op.input, self.loc, None) + self._low_rank_output(op, z)
        deviation = safe_sqrt(op.of_squares(self.scale.square()))
        noise = torch.randn(mean.shape, dtype=deviation.dtype, device=mean.device)
        return mean + (deviation * noise).to(mean.dtype)

    def output_variance(self, op: LinearOp, mean: Tensor, variance: Tensor) -> Tensor:
        """What the weight adds to the variance of each output, in closed form."""
        found = op(mean.square() + variance, self.scale.square(), None)
        for vector in self.factor:
            found = found + op(mean, vector, None).square() + op(variance, vector.square(), None)
        return found

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        """What the weight adds to the covariance of the outputs, in closed form."""
        pushed = torch.einsum("koi,ni->nko", self.factor, mean)
        covariance = torch.einsum("nko,nkp->nop", pushed, pushed)
        if second.dim() == 2:
            covariance = covariance + torch.einsum("koi,ni,kpi->nop", self.factor, second, self.factor)
            variances = second
        else:
            covariance = covariance + torch.einsum("koi,nij,kpj->nop", self.factor, second, self.factor)
            variances = second.diagonal(dim1=1, dim2=2)
        return covariance + torch.diag_embed((mean.square() + variances) @ self.scale.square().mT)

    def _low_rank_output(self, op: LinearOp, z: Tensor) -> Tensor:
        """The sum of the outputs under each vector of the factor, times z of the row."""
        if op.spatial == 0:
            outputs = op(op.input, self.factor.flatten(0, 1), None).unflatten(1, self.factor.shape[:2])
            return torch.einsum("nk,nko->no", z.to(outputs.dtype), outputs)
        shape = (-1, *[1] * (op.spatial + 1))
        parts = [z[:, k].reshape(shape) * op(op.input, vector, None) for k, vector in enumerate(self.factor)]
        return torch.stack(parts).sum(0)

    def _latents(self, count: int) -> tuple[Tensor, int]:
        """The draws of z for groups of rows, (groups, K), and the number of rows in a group."""
        if self.shared is not None:
            return self.shared.of_rows(count, self.loc)
        size = group_size(count, self.loc.numel())
        shape = (-(-count // size), len(self.factor))
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device), size

    def _given(self, z: Tensor) -> Tensor:
        """The mean of the weight given z, (*lead, *shape)."""
        return self.loc + torch.tensordot(z.to(self.factor.dtype), self.factor, 1)

    def _eye(self) -> Tensor:
        return torch.eye(len(self.factor), dtype=torch.float64, device=self.loc.device)

    def _noise(self, shape: _size) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)


class _Terms(torch.autograd.Function):
    r"""$F \,\mathrm{diag}(\lambda) F^\top$ and $\sum F^2$, with derivatives in few passes over F, (K, n)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(factor: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        squares = torch.linalg.vector_norm(factor, dtype=torch.float64).square()
        return (factor * precision) @ factor.mT, squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, by_information: Tensor, by_squares: Tensor) -> Any:
        factor, precision = ctx.saved_tensors
        pushed = (by_information + by_information.mT) @ factor
        by_precision = factor[0] * pushed[0]
        for vector, other in zip(factor[1:], pushed[1:], strict=True):
            by_precision = torch.addcmul(by_precision, vector, other)
        return torch.addcmul(2.0 * by_squares.to(factor.dtype) * factor, pushed, precision), 0.5 * by_precision

"""A last layer whose outputs are independent: a full covariance of each output's weights and its bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.types import _size

from pyrostoch._ops import LinearOp
from pyrostoch._precision import safe_sqrt
from pyrostoch.distributions.joint import JointWeights
from pyrostoch.distributions.shared_draw import SharedDraw, is_pending

__all__ = ["RowsBias", "RowsDraw", "RowsNormal"]


class RowsNormal(JointWeights):
    r"""$w_o \sim N(m_o, L_o L_o^\top)$ independently for each output o of a linear layer.

    With a bias, $(w_o, b_o) \sim N(m_o, L_o L_o^\top)$ together: the weight has this distribution, the bias `RowsBias`,
    and a `RowsDraw` ties them.

    Args:
        loc: Means of the weights, (out, in).
        tril: Lower triangular factors $L_o$, (out, n, n), with n = in, or in + 1 where a bias comes last.
        shared: What the weight shares with the layer's bias; needed where it has one.

    Example:
        >>> weight = RowsNormal(torch.zeros(2, 1), torch.tensor([[[1.0]], [[3.0]]]))
        >>> weight.variance
        tensor([[1.],
                [9.]])
    """

    has_output_moments = True

    def __init__(self, loc: Tensor, tril: Tensor, *, shared: RowsDraw | None = None) -> None:
        self.loc, self.tril = loc, tril
        self.shared: RowsDraw | None = shared
        super().__init__(loc.shape)

    @property
    def own(self) -> Tensor:
        """The factors of the weights' covariances, (out, in, in)."""
        size = self.loc.shape[1]
        return self.tril[:, :size, :size]

    @property
    def mean(self) -> Tensor:
        """The means, (out, in)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances, (out, in)."""
        return self.own.square().sum(2)

    @property
    def covariance(self) -> Tensor:
        """The covariance of all entries, (n, n)."""
        return torch.block_diag(*(self.own @ self.own.mT))

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, out, in)."""
        shape = Size(sample_shape)
        if self.shared is None or shape:
            noise = torch.randn((*shape, *self.event_shape), dtype=self.loc.dtype, device=self.loc.device)
        else:
            noise = self.shared.noise(self.tril)[:, : self.loc.shape[1]]
        drawn = self.loc + torch.einsum("oij,...oj->...oi", self.own, noise)
        if self.shared is not None and not shape:
            self.shared.drawn[0] = drawn
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw of the weights, (*sample shape)."""
        white = _whiten(self.own, value - self.loc)
        found = -0.5 * (white.square().sum((-2, -1)) + self.log_det + self.loc.numel() * math.log(2 * math.pi))
        return found.to(value.dtype)

    @property
    def log_det(self) -> Tensor:
        """Log of the determinant of the covariance, in double precision."""
        return 2.0 * self.own.diagonal(dim1=1, dim2=2).abs().double().log().sum()

    def root_products(self, rows: Tensor) -> Tensor:
        """Vectors of the weight's shape times the factors, (..., out n), with n = in + 1 where there is a bias."""
        tril = self.tril[:, : self.loc.shape[1]] if self.shared is not None else self.own
        return torch.einsum("...oi,oij->...oj", rows, tril).flatten(-2)

    def covers(self, op: LinearOp) -> bool:
        """Linear layers; one with a bias only where weight and bias are replaced together."""
        tied = self.shared is not None and not self.shared.by_row
        return op.spatial == 0 and op.input.dim() == 2 and not tied

    def includes(self, bias: JointWeights | None) -> bool:
        """Whether the bias is that of this layer, which `draw_output` adds."""
        return isinstance(bias, RowsBias) and bias.shared is self.shared

    def draw_output(self, op: LinearOp) -> Tensor:
        """The output, whose entries are independent and normal, with the layer's bias if it has this distribution."""
        features, loc = self._extended(op.input), self._extended_loc()
        mean = features @ loc.mT
        deviation = safe_sqrt(torch.einsum("ni,oij->noj", features, self.tril).square().sum(2))
        return mean + deviation * torch.randn(mean.shape, dtype=deviation.dtype, device=mean.device)

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        """What the weight and the bias add to the covariance of the outputs: a diagonal matrix for each row."""
        variances = torch.einsum("ni,oij->noj", self._extended(mean), self.tril).square().sum(2)
        if second.dim() == 2:
            variances = variances + second @ self.variance.mT
        else:
            variances = variances + torch.einsum("nij,oik,ojk->no", second, self.own, self.own)
        return torch.diag_embed(variances)

    def _extended(self, features: Tensor) -> Tensor:
        """Features with a one at the end, where there is a bias."""
        if self.shared is None:
            return features.to(self.tril.dtype)
        return torch.cat([features, torch.ones_like(features[:, :1])], 1).to(self.tril.dtype)

    def _extended_loc(self) -> Tensor:
        return self.loc if self.shared is None else torch.cat([self.loc, self.shared.bias.loc.unsqueeze(1)], 1)


class RowsBias(JointWeights):
    """The bias of a layer whose weight is `RowsNormal`: for each output it depends on the weights.

    `log_prob` and the KL divergence are given the weights; the sum of both divergences is that of weight and bias.

    Args:
        loc: Means of the biases, (out,).
        tril: The factors of the weight's distribution, (out, in + 1, in + 1).
        shared: What it shares with the weight; by default it is taken alone.

    Example:
        >>> RowsBias(torch.zeros(1), torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])).variance
        tensor([25.])
    """

    has_output_moments = True

    def __init__(self, loc: Tensor, tril: Tensor, *, shared: RowsDraw | None = None) -> None:
        self.loc, self.tril = loc, tril
        self.shared: RowsDraw | None = shared
        super().__init__(loc.shape)

    @property
    def mean(self) -> Tensor:
        """The means, (out,)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances, (out,), whatever the weights."""
        return self.tril[:, -1].square().sum(1)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the biases, (out, out), a diagonal matrix."""
        return torch.diag(self.variance)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, out)."""
        shape = Size(sample_shape)
        if shape or self.shared is None:
            noise = torch.randn((*shape, *self.event_shape), dtype=self.loc.dtype, device=self.loc.device)
        else:
            noise = self.shared.noise(self.tril)[:, -1]
        return self._conditional_mean() + self._conditional_scale() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw, (*sample shape), given the weights."""
        normal = torch.distributions.Normal(self._conditional_mean(), self._conditional_scale(), validate_args=False)
        found: Tensor = normal.log_prob(value).sum(-1)
        return found

    def root_products(self, rows: Tensor) -> Tensor:
        """Vectors of the bias's shape times the last rows of the factors, (..., out (in + 1))."""
        return (rows.unsqueeze(-1) * self.tril[:, -1]).flatten(-2)

    @property
    def log_det(self) -> Tensor:
        """Log of the determinant of the covariance given the weights, in double precision."""
        return 2.0 * self._conditional_scale().double().log().sum()

    def _conditional_mean(self) -> Tensor:
        """The means given the weights, or whatever the weights if the bias is taken alone."""
        if self.shared is None:
            return self.loc
        return self.loc + (self.tril[:, -1, :-1] * self.shared.white_weight()).sum(1)

    def _conditional_scale(self) -> Tensor:
        return self.variance.sqrt() if self.shared is None else self.tril[:, -1, -1]


class RowsDraw(SharedDraw):
    """One draw of a last layer's weight and bias.

    Args:
        weight_loc: Means of the weights, (out, in).
        bias_loc: Means of the biases, (out,).
        tril: The factors, (out, in + 1, in + 1).
        sites: Names of weight and bias.

    Example:
        >>> shared = RowsDraw(torch.zeros(1, 1), torch.zeros(1), torch.eye(2).unsqueeze(0))
        >>> shared.record(shared.weight.rsample())
        >>> shared.bias.rsample().shape
        torch.Size([1])
    """

    one_layer = True

    def __init__(self, weight_loc: Tensor, bias_loc: Tensor, tril: Tensor, sites: Sequence[str] = ()) -> None:
        super().__init__(sites)
        self.weight = RowsNormal(weight_loc, tril, shared=self)
        self.bias = RowsBias(bias_loc, tril, shared=self)
        self._noise: Tensor | None = None

    def noise(self, tril: Tensor) -> Tensor:
        """The standard normal numbers of the draw, (out, in + 1).

        Args:
            tril: Tells shape, dtype and device.
        """
        if self._noise is None:
            self._noise = torch.randn(tril.shape[:2], dtype=tril.dtype, device=tril.device)
        return self._noise

    def white_weight(self) -> Tensor:
        """The drawn weights as the numbers from which they were made, (out, in)."""
        value = self.values[0]
        if is_pending(value) or value is self.drawn.get(0):
            return self.noise(self.weight.tril)[:, :-1]
        return _whiten(self.weight.own, value - self.weight.loc).to(value.dtype)


def _whiten(tril: Tensor, centered: Tensor) -> Tensor:
    """$L_o^{-1} (w_o - m_o)$, (*lead, out, in), in double precision."""
    solved = torch.linalg.solve_triangular(tril.double(), centered.double().unsqueeze(-1), upper=False)
    return solved.squeeze(-1)

"""A weight matrix with a covariance of its rows and one of its columns."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.types import _size

from pyrostoch._ops import LinearOp
from pyrostoch._precision import safe_sqrt
from pyrostoch.distributions.joint import JointWeights, as_kernels, as_weight

__all__ = ["MatrixNormal"]


class MatrixNormal(JointWeights):
    r"""$W = M + A E B^\top$ with independent standard normal E: $\mathrm{Cov}(w_{oi}, w_{pj}) = U_{op} V_{ij}$.

    $U = A A^\top$ is the covariance of outputs, $V = B B^\top$ that of inputs; their Kronecker product is that of all
    entries. The axes of a kernel's space count as inputs. For an input x, the output $W x$ is normal with mean
    $M x$ and covariance $U\,(x^\top V x)$, so that it can be drawn without drawing the weight.

    Args:
        loc: Means M, in the shape of the weight.
        rows: Lower triangular factor A, (out, out), positive on the diagonal.
        columns: Lower triangular factor B, (in, in), where `in` counts all entries of an output's kernel.
        out_axis: Axis of the weight that counts outputs.

    References:
        Gupta, Nagar, "Matrix variate distributions", 1999; Louizos, Welling, "Structured and efficient variational deep
        learning with matrix Gaussian posteriors", 2016.

    Example:
        >>> weight = MatrixNormal(torch.zeros(2, 3), 2 * torch.eye(2), torch.eye(3))
        >>> weight.variance[0], weight.rsample().shape
        (tensor([4., 4., 4.]), torch.Size([2, 3]))
    """

    has_output_moments = True

    def __init__(self, loc: Tensor, rows: Tensor, columns: Tensor, *, out_axis: int = 0) -> None:
        self.loc, self.rows, self.columns, self.out_axis = loc, rows, columns, out_axis
        super().__init__(loc.shape)

    @property
    def mean(self) -> Tensor:
        """The means M, in the shape of the weight."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances $U_{oo} V_{ii}$, in the shape of the weight."""
        u, v = self.rows.square().sum(1), self.columns.square().sum(1)
        return as_weight(u.unsqueeze(1) * v, self.event_shape, self.out_axis)

    @property
    def covariance(self) -> Tensor:
        """The covariance of all entries, (n, n)."""
        matrix = torch.kron(self.rows @ self.rows.mT, self.columns @ self.columns.mT)
        back = as_kernels(torch.arange(self.loc.numel()).reshape(self.event_shape), self.out_axis, self.loc.dim())
        order = back.flatten().argsort().to(matrix.device)
        return matrix[order][:, order]

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *shape)."""
        size = (*Size(sample_shape), len(self.rows), len(self.columns))
        noise = torch.randn(size, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + as_weight(self.rows @ noise @ self.columns.mT, self.event_shape, self.out_axis)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw, (*sample shape)."""
        matrix = as_kernels((value - self.loc).double(), self.out_axis, len(self.event_shape))
        rows, columns = self.rows.double(), self.columns.double()
        half = torch.linalg.solve_triangular(rows, matrix, upper=False)
        white = torch.linalg.solve_triangular(columns, half.mT, upper=False)
        squares = white.square().sum((-2, -1))
        found = -0.5 * (squares + self.log_det + self.loc.numel() * math.log(2 * math.pi))
        return found.to(value.dtype)

    @property
    def log_det(self) -> Tensor:
        """Log of the determinant of the covariance of all entries, in double precision."""
        of_rows = self.rows.diagonal().abs().double().log().sum()
        of_columns = self.columns.diagonal().abs().double().log().sum()
        return 2.0 * (len(self.columns) * of_rows + len(self.rows) * of_columns)

    def root_products(self, rows: Tensor) -> Tensor:
        r"""Vectors of the weight's shape times $A \otimes B$, (..., n)."""
        return (self.rows.mT @ as_kernels(rows, self.out_axis, len(self.event_shape)) @ self.columns).flatten(-2)

    def covers(self, op: LinearOp) -> bool:
        """Linear layers, and convolutions that are neither transposed nor grouped."""
        if op.spatial == 0:
            return op.input.dim() == 2
        plain = op.func in (torch.conv1d, torch.conv2d, torch.conv3d) and op.rest.get("groups", 1) == 1
        return plain and op.batched()

    def draw_output(self, op: LinearOp) -> Tensor:
        r"""The output, with noise of covariance $U\,(x^\top V x)$ for each row, and over positions independently."""
        mean = op(op.input, self.loc, None)
        filters = self.columns.mT.reshape(-1, *self.event_shape[1:]).to(mean.dtype)
        size = safe_sqrt(op(op.input, filters, None).square().sum(1, keepdim=True))
        noise = torch.randn(mean.shape, dtype=size.dtype, device=mean.device)
        mixed = torch.einsum("op,np...->no...", self.rows.to(size.dtype), noise)
        return mean + (size * mixed).to(mean.dtype)

    def output_variance(self, op: LinearOp, mean: Tensor, variance: Tensor) -> Tensor:
        """What the weight adds to the variance of each output, in closed form."""
        kernel = (-1, *self.event_shape[1:])
        size = op(mean, self.columns.mT.reshape(kernel), None).square().sum(1, keepdim=True)
        size = size + op(variance, self.columns.square().sum(1).reshape(kernel), None)
        return size * self.rows.square().sum(1).reshape(-1, *[1] * op.spatial)

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        r"""$U\,(m^\top V m + \mathrm{tr}(V C))$ for inputs of mean m and covariance C."""
        size = (mean @ self.columns).square().sum(1)
        if second.dim() == 2:
            size = size + second @ self.columns.square().sum(1)
        else:
            size = size + ((second @ self.columns) * self.columns).sum((1, 2))
        return size.reshape(-1, 1, 1) * (self.rows @ self.rows.mT)

"""A weight matrix whose covariance is diagonal in a basis of outputs times one of inputs."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.types import _size

from pyrostoch._ops import LinearOp
from pyrostoch._precision import safe_sqrt
from pyrostoch.distributions.joint import JointWeights, as_kernels, as_weight

__all__ = ["KroneckerNormal"]


class KroneckerNormal(JointWeights):
    r"""$W = M + Q (S \circ E) R^\top$ with orthogonal Q and R, and independent standard normal E.

    The covariance of all entries is $(Q \otimes R)\,\mathrm{diag}(S^2)\,(Q \otimes R)^\top$. So it is the inverse of a
    precision $G \otimes A + \delta I$, where $G = Q\,\mathrm{diag}(g)\,Q^\top$ belongs to the outputs and
    $A = R\,\mathrm{diag}(a)\,R^\top$ to the inputs: $S_{oi} = (g_o a_i + \delta)^{-1/2}$. The axes of a kernel's space
    count as inputs; a bias has one input. For an input x, the output $W x$ is normal with the covariance
    $Q\,\mathrm{diag}(S^2 (R^\top x)^2)\,Q^\top$, so that it can be drawn without drawing the weight.

    Args:
        loc: Means M, in the shape of the weight.
        rows: Basis Q of the outputs, (out, out), orthogonal.
        columns: Basis R of the inputs, (in, in), orthogonal, where `in` counts all entries of an output's kernel.
        scale: Standard deviations S in these bases, (out, in), positive.
        out_axis: Axis of the weight that counts outputs.

    References:
        Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015; Ritter,
        Botev, Barber, "A scalable Laplace approximation for neural networks", 2018.

    Example:
        >>> weight = KroneckerNormal(torch.zeros(2, 3), torch.eye(2), torch.eye(3), torch.full((2, 3), 0.5))
        >>> weight.variance[0], weight.rsample().shape
        (tensor([0.2500, 0.2500, 0.2500]), torch.Size([2, 3]))
    """

    has_output_moments = True

    def __init__(self, loc: Tensor, rows: Tensor, columns: Tensor, scale: Tensor, *, out_axis: int = 0) -> None:
        self.loc, self.rows, self.columns, self.scale, self.out_axis = loc, rows, columns, scale, out_axis
        super().__init__(loc.shape)

    @property
    def mean(self) -> Tensor:
        """The means M, in the shape of the weight."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances, in the shape of the weight."""
        return self._weight(self.rows.square() @ self.scale.square() @ self.columns.square().mT)

    @property
    def covariance(self) -> Tensor:
        """The covariance of all entries, (n, n)."""
        root = self.root_products(torch.eye(self.loc.numel()).to(self.loc).reshape(-1, *self.event_shape))
        return root @ root.mT

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *shape)."""
        size = (*Size(sample_shape), *self.scale.shape)
        noise = self.scale * torch.randn(size, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self._weight(self.rows @ noise @ self.columns.mT)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw, (*sample shape)."""
        matrix = self._matrix((value - self.loc).double())
        white = self.rows.double().mT @ matrix @ self.columns.double() / self.scale.double()
        found = -0.5 * (white.square().sum((-2, -1)) + self.log_det + self.loc.numel() * math.log(2 * math.pi))
        return found.to(value.dtype)

    @property
    def log_det(self) -> Tensor:
        """Log of the determinant of the covariance of all entries, in double precision."""
        return 2.0 * self.scale.double().log().sum()

    def root_products(self, rows: Tensor) -> Tensor:
        """Vectors of the weight's shape times a root of the covariance, (..., n)."""
        return ((self.rows.mT @ self._matrix(rows) @ self.columns) * self.scale).flatten(-2)

    def covers(self, op: LinearOp) -> bool:
        """Linear layers, and convolutions that are neither transposed nor grouped."""
        if op.spatial == 0:
            return op.input.dim() == 2
        plain = op.func in (torch.conv1d, torch.conv2d, torch.conv3d) and op.rest.get("groups", 1) == 1
        return plain and op.batched()

    def draw_output(self, op: LinearOp) -> Tensor:
        """The output, drawn for each row, and over positions independently."""
        mean = op(op.input, self.loc, None)
        size = safe_sqrt(self._in_basis(op, op.input))
        noise = size * torch.randn(size.shape, dtype=size.dtype, device=size.device)
        return mean + torch.einsum("op,np...->no...", self.rows.to(noise.dtype), noise).to(mean.dtype)

    def output_variance(self, op: LinearOp, mean: Tensor, variance: Tensor) -> Tensor:
        """What the weight adds to the variance of each output, in closed form."""
        of_mean = torch.einsum("op,np...->no...", self.rows.square(), self._in_basis(op, mean))
        return of_mean + op(variance, self.variance, None)

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        """What the weight adds to the covariance of a linear layer's outputs, in closed form."""
        if second.dim() == 2:
            spread = second @ self.columns.square()
        else:
            spread = torch.einsum("ik,nij,jk->nk", self.columns, second, self.columns)
        sizes = ((mean @ self.columns).square() + spread) @ self.scale.square().mT
        return torch.einsum("op,np,qp->noq", self.rows, sizes, self.rows)

    def _in_basis(self, op: LinearOp, values: Tensor) -> Tensor:
        """Variances of the output along the basis of outputs, (rows, out, ...), for given inputs."""
        filters = self.columns.mT.reshape(-1, *self.event_shape[1:]).to(values.dtype)
        squares = op(values, filters, None).square()
        return torch.einsum("oi,ni...->no...", self.scale.square().to(squares.dtype), squares)

    def _matrix(self, values: Tensor) -> Tensor:
        """Values in the weight's shape as matrices, (..., out, in)."""
        axes = len(self.event_shape)
        if axes < 2:
            return values.reshape((*values.shape[: values.dim() - axes], -1, 1))
        return as_kernels(values, self.out_axis, axes)

    def _weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `_matrix`."""
        if len(self.event_shape) < 2:
            return matrix.reshape((*matrix.shape[:-2], *self.event_shape))
        return as_weight(matrix, self.event_shape, self.out_axis)

"""A weight with a full covariance of all of its entries."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.types import _size

from pyrostoch.distributions.joint import JointWeights

__all__ = ["FullNormal"]


class FullNormal(JointWeights):
    r"""$\mathrm{vec}(W) \sim N(\mu, L L^\top)$: a normal weight of any shape with a full covariance of its entries.

    Args:
        loc: Means, in the shape of the weight.
        scale_tril: Lower triangular factor L, (n, n) for n entries, positive on the diagonal.

    Example:
        >>> weight = FullNormal(torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        >>> weight.variance, weight.rsample().shape
        (tensor([[ 1., 25.]]), torch.Size([1, 2]))
    """

    has_output_moments = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        self.loc, self.scale_tril = loc, scale_tril
        super().__init__(loc.shape)

    @property
    def mean(self) -> Tensor:
        """The means, in the shape of the weight."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variances, in the shape of the weight."""
        return self.scale_tril.square().sum(1).reshape(self.event_shape)

    @property
    def covariance(self) -> Tensor:
        """The covariance of all entries, (n, n)."""
        return self.scale_tril @ self.scale_tril.mT

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *shape)."""
        shape = Size(sample_shape)
        noise = torch.randn((*shape, self.loc.numel()), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (noise @ self.scale_tril.mT).reshape((*shape, *self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw, (*sample shape)."""
        lead = value.shape[: value.dim() - len(self.event_shape)]
        centered = (value - self.loc).double().reshape((*lead, -1, 1))
        white = torch.linalg.solve_triangular(self.scale_tril.double(), centered, upper=False).squeeze(-1)
        found = -0.5 * (white.square().sum(-1) + self.log_det + self.loc.numel() * math.log(2 * math.pi))
        return found.to(value.dtype)

    @property
    def log_det(self) -> Tensor:
        """Log of the determinant of the covariance, in double precision."""
        return 2.0 * self.scale_tril.diagonal().abs().double().log().sum()

    def root_products(self, rows: Tensor) -> Tensor:
        """Vectors of the weight's shape times L, (..., n)."""
        return rows.reshape(*rows.shape[: rows.dim() - len(self.event_shape)], -1) @ self.scale_tril

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        """What the weight adds to the covariance of the outputs, in closed form."""
        moments = mean.unsqueeze(2) * mean.unsqueeze(1) + (torch.diag_embed(second) if second.dim() == 2 else second)
        outputs, inputs = self.event_shape
        return torch.einsum("oipj,nij->nop", self.covariance.reshape(outputs, inputs, outputs, inputs), moments)

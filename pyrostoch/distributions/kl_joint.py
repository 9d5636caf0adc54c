r"""Closed-form KL divergences of weights whose entries depend on each other, in nats, registered with torch.

For a normal weight with means $\mu$, variances v and covariance $\Sigma$, and a prior that is normal and independent
for each entry, with means m and standard deviations s,

$$ \mathrm{KL} = \tfrac{1}{2} \sum_i \Bigl(\frac{v_i + (\mu_i - m_i)^2}{s_i^2} + 2 \log s_i - 1\Bigr)
- \tfrac{1}{2} \log\det\Sigma. $$

Where weights share a draw, $\log\det\Sigma$ is that given the weights drawn before, and the sum of the divergences is
that of all weights together: the expectation over the weights drawn before is taken exactly.

`RankOneWeights` have a divergence to `RankOne` only: the mean over components of the divergences of their factors,
plus the negative log density of the fixed weight.

References:
    Cover, Thomas, "Elements of information theory", 1991, theorem 2.5.3, on the chain rule of the divergence.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence, register_kl

from pyrostoch.distributions.full_normal import FullNormal
from pyrostoch.distributions.joint import JointWeights, as_kernels
from pyrostoch.distributions.kl_normal import shared_value
from pyrostoch.distributions.kronecker_normal import KroneckerNormal
from pyrostoch.distributions.low_rank import LowRankNormal
from pyrostoch.distributions.matrix_normal import MatrixNormal
from pyrostoch.distributions.rank_one import RankOne, RankOneWeights
from pyrostoch.distributions.rows_normal import RowsBias, RowsNormal
from pyrostoch.distributions.tied_normal import TiedNormal

__all__ = ["joint_kl"]


def joint_kl(q: JointWeights, p: Distribution) -> Tensor:
    """The divergence of a whole weight to a prior for which a formula is registered, in at least single precision.

    Args:
        q: The posterior.
        p: The prior, elementwise or of the whole weight.

    Example:
        >>> q = FullNormal(torch.zeros(1, 2), torch.eye(2))
        >>> joint_kl(q, Normal(torch.ones(1, 2), 1.0))
        tensor(1.)
    """
    return kl_divergence(q, p).to(torch.promote_types(q.loc.dtype, torch.float32))


@register_kl(JointWeights, Independent)
@register_kl(RankOneWeights, Independent)
def _unwrapped(q: JointWeights, p: Any) -> Tensor:
    return kl_divergence(q, p.base_dist)


@register_kl(LowRankNormal, Normal)
def _low_rank_normal(q: LowRankNormal, p: Normal) -> Tensor:
    scale, count = shared_value(p.scale), q.loc.numel()
    if scale is None:
        return _joint_normal(q, p)
    # With one scale for all weights, the vectors enter by their sum of squares: one pass over their memory.
    squares = (q.scale.square() + (q.loc - p.loc).square()).sum(dtype=torch.float64)
    squares = squares + q.squares
    scale = scale.double()
    return 0.5 * (squares / scale.square() + count * (2.0 * scale.log() - 1.0) - q.log_det)


@register_kl(MatrixNormal, Normal)
@register_kl(FullNormal, Normal)
@register_kl(RowsNormal, Normal)
@register_kl(RowsBias, Normal)
@register_kl(KroneckerNormal, Normal)
@register_kl(TiedNormal, Normal)
def _joint_normal(q: Any, p: Normal) -> Tensor:
    spread = (q.variance + (q.mean - p.loc).square()) / p.scale.square() + 2.0 * p.scale.log() - 1.0
    total: Tensor = 0.5 * (spread.sum(dtype=torch.float64) - q.log_det)
    return total


@register_kl(FullNormal, FullNormal)
def _full_full(q: FullNormal, p: FullNormal) -> Tensor:
    root = p.scale_tril.double()
    spread = torch.linalg.solve_triangular(root, q.scale_tril.double(), upper=False).square().sum()
    shift = (q.loc - p.loc).double().reshape(-1, 1)
    distance = torch.linalg.solve_triangular(root, shift, upper=False).square().sum()
    return 0.5 * (spread + distance - q.loc.numel() - q.log_det + p.log_det)


@register_kl(MatrixNormal, MatrixNormal)
def _matrix_matrix(q: MatrixNormal, p: MatrixNormal) -> Tensor:
    rows, columns = p.rows.double(), p.columns.double()
    of_rows = torch.linalg.solve_triangular(rows, q.rows.double(), upper=False).square().sum()
    of_columns = torch.linalg.solve_triangular(columns, q.columns.double(), upper=False).square().sum()
    shift = as_kernels((q.loc - p.loc).double(), q.out_axis, len(q.event_shape))
    half = torch.linalg.solve_triangular(rows, shift, upper=False)
    distance = torch.linalg.solve_triangular(columns, half.mT, upper=False).square().sum()
    return 0.5 * (of_rows * of_columns + distance - q.loc.numel() - q.log_det + p.log_det)


@register_kl(TiedNormal, TiedNormal)
def _tied_tied(q: TiedNormal, p: TiedNormal) -> Tensor:
    root = p.conditional_factor()
    spread = torch.linalg.solve_triangular(root, q.root.double(), upper=False).square().sum()
    shift = (q.loc - p.loc).double().reshape(-1, 1)
    distance = torch.linalg.solve_triangular(root, shift, upper=False).square().sum()
    return 0.5 * (spread + distance - q.loc.numel() - q.log_det + p.log_det)


@register_kl(KroneckerNormal, KroneckerNormal)
def _kronecker_kronecker(q: KroneckerNormal, p: KroneckerNormal) -> Tensor:
    of_rows, of_columns = p.rows.double().mT @ q.rows.double(), p.columns.double().mT @ q.columns.double()
    variances = of_rows.square() @ q.scale.double().square() @ of_columns.square().mT
    spread = (variances / p.scale.double().square()).sum()
    distance = (p.root_products((q.loc - p.loc).double()) / p.scale.double().flatten().square()).square().sum()
    return 0.5 * (spread + distance - q.loc.numel() - q.log_det + p.log_det)


@register_kl(RowsNormal, RowsNormal)
def _rows_rows(q: RowsNormal, p: RowsNormal) -> Tensor:
    root = p.own.double()
    spread = torch.linalg.solve_triangular(root, q.own.double(), upper=False).square().sum()
    shift = (q.loc - p.loc).double().unsqueeze(-1)
    distance = torch.linalg.solve_triangular(root, shift, upper=False).square().sum()
    return 0.5 * (spread + distance - q.loc.numel() - q.log_det + p.log_det)


@register_kl(LowRankNormal, LowRankNormal)
def _low_rank_low_rank(q: LowRankNormal, p: LowRankNormal) -> Tensor:
    r"""$\Sigma_p^{-1} = D^{-1} - D^{-1} F (I + F^\top D^{-1} F)^{-1} F^\top D^{-1}$."""
    scale = p.scale.double()
    factor = (p.factor.double() / scale).reshape(len(p.factor), -1)
    cholesky = torch.linalg.cholesky_ex(
        torch.eye(len(factor), dtype=factor.dtype, device=factor.device) + p.information
    )[0]

    def inside(vectors: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(cholesky, factor @ vectors.mT, upper=False)

    shift = ((q.loc - p.loc).double() / scale).reshape(1, -1)
    own = (q.factor.double() / scale).reshape(len(q.factor), -1)
    relative = (q.scale.double() / scale).flatten()
    spread = relative.square().sum() + own.square().sum() + shift.square().sum()
    explained = inside(own).square().sum() + inside(shift).square().sum()
    # The independent part of q, a diagonal matrix, between the vectors of p.
    whitened = torch.linalg.solve_triangular(cholesky, factor, upper=False)
    explained = explained + (whitened * relative).square().sum()
    return 0.5 * (spread - explained - q.loc.numel() - q.log_det + p.log_det)


@register_kl(RankOneWeights, RankOne)
def _factors(q: RankOneWeights, p: RankOne) -> Tensor:
    scale = torch.as_tensor(p.scale, dtype=torch.float64, device=q.loc.device)
    prior, total = Normal(torch.ones_like(scale), scale), torch.zeros((), dtype=torch.float64, device=q.loc.device)
    for loc, deviation in q.factors:
        total = total + kl_divergence(Normal(loc.double(), deviation.double()), prior).sum() / q.components
    of_weight = Normal(
        torch.zeros_like(scale), torch.as_tensor(p.weight_scale, dtype=torch.float64, device=scale.device)
    )
    return total - of_weight.log_prob(q.loc.double()).sum()


@register_kl(RankOneWeights, Distribution)
def _factors_refused(q: RankOneWeights, p: Distribution) -> NoReturn:
    raise ValueError(
        f"KL(RankOneWeights || {type(p).__name__}) is infinite: the weights, a matrix times one factor for each row "
        f"and one for each column, lie on a surface that has no probability under {type(p).__name__}. Use the prior "
        "RankOne, or no prior."
    )

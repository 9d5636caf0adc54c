"""KL divergences of wrapped distributions: event dimensions, masks, expansion; and formulas registered elsewhere."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import Laplace, LogNormal, Normal, StudentT
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import kl_divergence, register_kl
from torch.distributions.kl import _KL_MEMOIZE, _KL_REGISTRY

from pyrostoch.distributions import (
    LogUniform,
    MultiplicativeNormal,
    TwoPoint,
    has_closed_form,
    kl_sum,
)

F64 = torch.float64


def _f(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


LOC, SCALE, LOG_ALPHA = _f(-0.7, 0.2, 1.5), _f(0.4, 2.0, 0.1), _f(-2.0, 0.5, 4.0)

GAUSSIAN = Normal(LOC, SCALE)
MULTIPLICATIVE = MultiplicativeNormal(LOC, LOG_ALPHA)
POINTS = TwoPoint(SCALE)
NORMAL = Normal(_f(0.3), _f(0.9))
LAPLACE = Laplace(_f(0.9, -0.3, 0.0), _f(0.8))


def test_joint_distributions() -> None:
    q = Normal(LOC, SCALE)
    p = dist.MultivariateNormal(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64))
    expected = kl_divergence(q, Normal(0.0, _f(1.0))).sum()
    torch.testing.assert_close(kl_sum(q.to_event(1), p), expected)
    torch.testing.assert_close(kl_sum(q.expand((2, 3)).to_event(1), p), 2 * expected)
    torch.testing.assert_close(kl_sum(p, p.expand((2,))), torch.zeros((), dtype=F64))
    full = dist.MultivariateNormal(LOC, SCALE.square().diag())
    torch.testing.assert_close(kl_sum(full, p), expected)
    torch.testing.assert_close(kl_sum(full.expand((4,)), p), 4 * expected)
    with pytest.raises(ValueError, match=r"KL\(TwoPoint \|\| MultivariateNormal\) is infinite"):
        kl_sum(POINTS.to_event(1), p, POINTS.sample())
    assert not has_closed_form(q.to_event(1).mask(False), p.mask(False))
    assert not has_closed_form(LAPLACE.to_event(1), p)
    w = LAPLACE.sample()
    torch.testing.assert_close(kl_sum(LAPLACE.to_event(1), p, w), LAPLACE.log_prob(w).sum() - p.log_prob(w))


def test_masks() -> None:
    mask = torch.tensor([True, False, True])
    expected = kl_divergence(GAUSSIAN, NORMAL)[mask].sum()
    q, p = GAUSSIAN.mask(mask), NORMAL.mask(mask)
    torch.testing.assert_close(kl_sum(q, p), expected)
    torch.testing.assert_close(kl_sum(q.to_event(1), p.to_event(1)), expected)
    torch.testing.assert_close(kl_sum(q.mask(mask), NORMAL.mask(True)), expected)
    assert kl_sum(q, NORMAL.mask(False)) == 0
    masked = MULTIPLICATIVE.mask(mask), LogUniform().expand((3,)).mask(mask)
    torch.testing.assert_close(kl_sum(*masked), kl_divergence(MULTIPLICATIVE, LogUniform())[mask].sum())
    # Over the batch of a joint distribution.
    rows = torch.tensor([True, False])
    q2, p2 = (distribution.expand((2, 3)).to_event(1).mask(rows) for distribution in (GAUSSIAN, NORMAL))
    torch.testing.assert_close(kl_sum(q2, p2), kl_divergence(GAUSSIAN, NORMAL).sum())
    # A mask on one side only has no closed form; the estimate masks that log density alone.
    assert not has_closed_form(q, NORMAL)
    w = GAUSSIAN.sample()
    torch.testing.assert_close(kl_sum(q, NORMAL, w), GAUSSIAN.log_prob(w)[mask].sum() - NORMAL.log_prob(w).sum())


def test_pyros_expanded_distributions() -> None:
    q, p = ExpandedDistribution(GAUSSIAN, (4, 3)), ExpandedDistribution(NORMAL, (4, 3))
    expected = 4 * kl_divergence(GAUSSIAN, NORMAL).sum()
    for pair in ((q, p), (q, NORMAL), (q.to_event(2), p.to_event(1))):
        torch.testing.assert_close(kl_sum(*pair), expected)


def test_formulas_that_torch_registers_for_too_many_types() -> None:
    assert has_closed_form(LogNormal(_f(0.0), 1.0), LogNormal(_f(1.0), 1.0))
    shifted = dist.TransformedDistribution(NORMAL, [dist.transforms.AffineTransform(1.0, 2.0)])
    assert not has_closed_form(LogNormal(_f(0.0), 1.0), shifted)
    # Two exponential families of different kind reach a formula that refuses them.
    assert not has_closed_form(dist.Bernoulli(_f(0.5)), NORMAL)
    assert has_closed_form(dist.Bernoulli(_f(0.5)), dist.Bernoulli(_f(0.4)))
    for q, p in ((LogNormal(_f(0.0), 1.0), shifted), (dist.Bernoulli(_f(0.5)), NORMAL)):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)


def test_a_users_own_formula_is_found() -> None:
    class Mine(StudentT):
        pass

    prior = Mine(_f(3.0))
    assert not has_closed_form(GAUSSIAN, prior)
    try:
        register_kl(Normal, Mine)(lambda q, p: torch.full((3,), 2.0, dtype=F64))
        assert has_closed_form(GAUSSIAN, prior) and kl_sum(GAUSSIAN, prior) == 6
    finally:
        del _KL_REGISTRY[Normal, Mine]
        _KL_MEMOIZE.clear()
    assert not has_closed_form(GAUSSIAN, prior)

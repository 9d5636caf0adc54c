"""The summed divergence of normal distributions: value, derivatives, and the pairs that it does not handle."""

from __future__ import annotations

import pytest
import torch
from pyro import distributions as dist
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Normal, kl_divergence

from pyrostoch.distributions import CenteredNormal, kl_sum
from pyrostoch.distributions.kl_normal import normal_kl_sum

F64 = {"dtype": torch.float64}


def parameters(shape=(3, 4)):
    torch.manual_seed(0)
    mean, deviation = torch.randn(shape, **F64), torch.rand(shape, **F64) + 0.1
    return mean.requires_grad_(), deviation.requires_grad_(), torch.tensor(0.3, **F64), torch.tensor(0.7, **F64)


@pytest.mark.parametrize("shape", [(3, 4), (), (5,), (0,)])
def test_it_is_the_sum_of_the_elementwise_divergences_with_their_derivatives(shape):
    mean, deviation, loc, scale = parameters(shape)
    mine = kl_sum(Normal(mean, deviation), dist.Normal(loc, scale).expand(shape))
    plain = kl_divergence(Normal(mean, deviation), Normal(loc, scale)).sum()
    assert mine.dtype == torch.float64
    torch.testing.assert_close(mine, plain, rtol=1e-13, atol=1e-13)
    for one, other in zip(*(torch.autograd.grad(of, (mean, deviation)) for of in (mine, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_first_and_second_derivatives_and_vmap():
    mean, deviation, loc, scale = parameters((3,))

    def total(m, d):
        return normal_kl_sum(Normal(m, d, validate_args=False), Normal(loc, scale, validate_args=False))

    assert gradcheck(total, (mean, deviation))
    assert gradgradcheck(total, (mean, deviation))
    many = torch.randn(4, 3, **F64), torch.rand(4, 3, **F64) + 0.1
    torch.testing.assert_close(torch.vmap(total)(*many), torch.stack([total(*one) for one in zip(*many, strict=True)]))


def test_single_precision_is_summed_in_double():
    torch.manual_seed(0)
    mean, deviation = 0.05 * torch.randn(400, 800), torch.full((400, 800), 0.05)
    found = kl_sum(Normal(mean, deviation), Normal(0.0, 1.0))
    exact = kl_divergence(Normal(mean.double(), deviation.double()), Normal(0.0, 1.0)).sum()
    assert found.dtype == torch.float32
    assert abs(found.double() - exact) <= 2e-7 * exact


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch's own forward derivatives
def test_forward_derivatives_and_priors_that_learn():
    mean, deviation, loc, scale = parameters((3,))

    def total(m, d, a, s):
        return kl_sum(Normal(m, d, validate_args=False), Normal(a, s, validate_args=False))

    def plain(m, d, a, s):
        return kl_divergence(Normal(m, d, validate_args=False), Normal(a, s, validate_args=False)).sum()

    inputs = [value.detach() for value in (mean, deviation, loc, scale)]
    every = (0, 1, 2, 3)
    for transform in (torch.func.grad, torch.func.jacfwd):
        for one, other in zip(transform(total, every)(*inputs), transform(plain, every)(*inputs), strict=True):
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.func.hessian(total)(*inputs), torch.func.hessian(plain)(*inputs))

    def of_scales(scales, formula):
        return torch.vmap(lambda s: formula(*inputs[:3], s))(scales).sum()

    scales = torch.tensor([0.7, 0.3], **F64)
    found = [torch.func.grad(of_scales)(scales, formula) for formula in (total, plain)]
    torch.testing.assert_close(*found)


def test_divergence_of_nearly_equal_distributions_in_any_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        mean = torch.zeros(100_000, dtype=dtype, requires_grad=True)
        deviation = torch.full((100_000,), 1e-3, dtype=dtype, requires_grad=True)
        found = kl_sum(Normal(mean, deviation), Normal(torch.tensor(0.0, dtype=dtype), torch.tensor(1e-3, dtype=dtype)))
        found.backward()
        assert found.item() == 0.0 and not mean.grad.any()
        assert deviation.grad.dtype == dtype and deviation.grad.abs().max() < 1e-3
    close = Normal(torch.zeros(1_000_000), torch.full((1_000_000,), 0.1 * (1 + 1e-4)))
    exact = kl_divergence(
        Normal(torch.zeros((), **F64), close.scale[0].double()), Normal(0.0, torch.tensor(0.1).double())
    )
    assert kl_sum(close, Normal(0.0, 0.1)).item() == pytest.approx(1e6 * exact.item(), rel=0.05)


def test_priors_that_vary_and_other_distributions_use_the_elementwise_formula():
    mean, deviation, loc, scale = parameters()
    q = Normal(mean, deviation)
    assert normal_kl_sum(q, Normal(loc, scale)) is not None
    rows = torch.rand(4, **F64) + 0.5
    learned = scale.clone().requires_grad_()
    for prior in (
        Normal(loc.expand(4), rows),
        Normal(loc.expand(2, 3, 4), scale.expand(2, 3, 4)),
    ):
        assert normal_kl_sum(q, prior) is None
        plain = kl_divergence(q, prior).sum()
        torch.testing.assert_close(kl_sum(q, prior), plain, rtol=1e-12, atol=0.0)
    assert normal_kl_sum(CenteredNormal(deviation), Normal(loc, scale)) is None
    by_prior = torch.autograd.grad(kl_sum(q, Normal(loc, learned)), learned)[0]
    assert by_prior != 0

"""Functions with a known slope: in pieces as at once, and under torch's transformations as any other function."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrostoch.distributions import known_slope
from pyrostoch.distributions.alpha_kl import kl_log_uniform, kl_log_uniform_of_snr
from pyrostoch.distributions.bounded_ratio import BoundedRatio
from pyrostoch.distributions.known_slope import with_slope

both = pytest.mark.parametrize("function", [kl_log_uniform, kl_log_uniform_of_snr], ids=["log alpha", "snr"])


def arguments(*shape: int) -> Tensor:
    return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@both
@pytest.mark.parametrize("shape", [(7,), (64,), (13, 17), (5, 6, 7)])
def test_pieces_are_put_together_in_order(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.randn(shape)

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().clone().requires_grad_()
        (weighted,) = torch.autograd.grad((function(x) * weights).sum(), x)
        (plain,) = torch.autograd.grad(function(x).sum(), x)  # whose gradient is an expanded scalar
        return function(x).detach(), weighted, plain

    whole = run(arguments(*shape))
    monkeypatch.setattr(known_slope, "_PIECE", 8)
    for one, other in zip(whole, run(arguments(*shape)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
    transposed = arguments(*shape).T if len(shape) == 2 else arguments(*shape).flip(0)
    torch.testing.assert_close(function(transposed), function(transposed.contiguous()), rtol=1e-6, atol=0)


@both
def test_the_slope_is_that_of_double_precision(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-12, 12, 4001)
    single, double = x.clone().requires_grad_(), x.double().requires_grad_()
    (found,) = torch.autograd.grad(function(single).sum(), single)
    (exact,) = torch.autograd.grad(function(double).sum(), double)
    assert ((found - exact).abs() <= 1e-6 * exact.abs()).all()
    (slope,) = torch.autograd.grad(function(single).sum(), single, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), single)
    (slope,) = torch.autograd.grad(function(double).sum(), double, create_graph=True)
    (expected,) = torch.autograd.grad(slope.sum(), double)
    torch.testing.assert_close(curvature.double(), expected, rtol=1e-4, atol=2e-6)


@both
def test_under_the_transformations_of_torch(function: Callable[[Tensor], Tensor]) -> None:
    x = arguments(3, 5)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda row: function(row).sum(), row) for row in x])
    found = torch.vmap(torch.func.grad(lambda row: function(row).sum()))(x)
    torch.testing.assert_close(found, expected)
    outside = x.clone().requires_grad_()
    torch.vmap(lambda row: function(row).sum())(outside).sum().backward()
    torch.testing.assert_close(outside.grad, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13's own, of its first forward derivative
        _, forward = torch.func.jvp(function, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(forward, expected)


def test_a_graph_is_traced_without_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    monkeypatch.setattr(known_slope, "_PIECE", 2)
    x = arguments(64)
    traced = make_fx(torch.func.grad(lambda x: kl_log_uniform(x).sum()))(x)
    assert not any("split" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(traced(x + 1), torch.func.grad(lambda x: kl_log_uniform(x).sum())(x + 1))


def test_a_given_slope_is_what_backward_uses() -> None:
    x = torch.ones(3, requires_grad=True)
    with_slope(x, torch.sin, lambda x: torch.full_like(x, 7.0)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [7.0] * 3


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.3, 1.0, 1.5, 1e30])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_both_ways_to_bound_a_ratio_agree(size: float, sign: float) -> None:
    r = torch.tensor([sign * size])
    fast, slow = BoundedRatio(r), BoundedRatio(r.requires_grad_())
    assert torch.equal(fast.top, slow.top.detach()) and torch.equal(fast.bottom, slow.bottom.detach())
    for name in ("inside", "half_log1p_square"):
        assert torch.equal(getattr(fast, name)(), getattr(slow, name)().detach())

"""The divergences that depend on alpha alone, against mpmath."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import mpmath as mp
import pytest
import torch
from torch import Tensor

from pyrostoch.distributions import kl_ard, kl_log_uniform, kl_log_uniform_molchanov
from pyrostoch.distributions.alpha_kl import ARD_KL, LOG_UNIFORM_KL, MOLCHANOV_KL, AlphaKL

F64 = torch.float64
FORMS = {"exact": LOG_UNIFORM_KL, "molchanov": MOLCHANOV_KL, "ard": ARD_KL}
each_form = pytest.mark.parametrize("forms", FORMS.values(), ids=FORMS)
each_function = pytest.mark.parametrize("function", [f for forms in FORMS.values() for f in forms])


@cache
def exact(log_alpha: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """The divergence, twice the integral of Dawson's function up to s, and its derivative in log alpha, -s D(s)."""
    with mp.workdps(40):
        s = mp.exp(-log_alpha / 2) / mp.sqrt(2)
        dawson = mp.sqrt(mp.pi) / 2 * mp.exp(-s * s) * mp.erfi(s)
        return s * s * mp.hyp2f2(1, 1, mp.mpf(3) / 2, 2, -s * s), -s * dawson


def largest_error(computed: Tensor, expected: list[mp.mpf]) -> float:
    """Largest relative error."""
    values = computed.detach().double().tolist()
    return float(max(abs(mp.mpf(value) / reference - 1) for value, reference in zip(values, expected, strict=True)))


def test_the_reference_is_the_divergence() -> None:
    """From its definition: E log q - E log p by quadrature, for N(mu, alpha mu^2) with mu = 1."""
    with mp.workdps(25):
        constant = (mp.log(2 * mp.pi * mp.e) + mp.euler + mp.log(2)) / 2
        for log_alpha in (-2.0, 0.0, 3.0):
            sd = mp.exp(mp.mpf(log_alpha) / 2)
            edges = sorted([mp.mpf(0), mp.mpf(1), 1 - 14 * sd, 1 - 4 * sd, 1 + 4 * sd, 1 + 14 * sd])
            expected_log = mp.quad(lambda w, sd=sd: mp.npdf(w, 1, sd) * mp.log(abs(w)), edges)
            divergence = -mp.log(2 * mp.pi * mp.e) / 2 - mp.log(sd) + expected_log + constant
            assert abs(divergence / exact(mp.mpf(log_alpha))[0] - 1) < 1e-12


@pytest.mark.parametrize(
    ("dtype", "value_error", "slope_error"), [(F64, 1e-14, 1e-12), (torch.float32, 5e-7, 1e-6)], ids=["f64", "f32"]
)
def test_exact_divergence_and_its_derivative(dtype: torch.dtype, value_error: float, slope_error: float) -> None:
    log_alpha = torch.linspace(-20, 20, 241, dtype=dtype, requires_grad=True)
    references = [exact(mp.mpf(t)) for t in log_alpha.tolist()]
    value = kl_log_uniform(log_alpha)
    (slope,) = torch.autograd.grad(value.sum(), log_alpha)
    assert value.dtype == slope.dtype == dtype
    assert largest_error(value, [kl for kl, _ in references]) < value_error
    assert largest_error(slope, [derivative for _, derivative in references]) < slope_error


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-14), (torch.float32, 1e-6)], ids=["f64", "f32"])
def test_exact_divergence_of_the_signal_to_noise_ratio(dtype: torch.dtype, tolerance: float) -> None:
    snr = torch.exp(torch.linspace(-10, 10, 121, dtype=dtype)) * torch.tensor([1.0, -1.0] * 60 + [1.0], dtype=dtype)
    expected = [exact(-2 * mp.log(abs(mp.mpf(r))))[0] for r in snr.tolist()]
    assert largest_error(LOG_UNIFORM_KL[1](snr), expected) < tolerance


@each_form
def test_both_forms_agree(forms: AlphaKL) -> None:
    of_log_alpha, of_snr = forms
    log_alpha = torch.linspace(-25, 25, 301, dtype=F64)
    for sign in (-1, 1):
        torch.testing.assert_close(
            of_snr(sign * torch.exp(-log_alpha / 2)), of_log_alpha(log_alpha), rtol=1e-13, atol=0
        )


@each_function
def test_twice_differentiable(function: Callable[[Tensor], Tensor]) -> None:
    # Zero is the point mu = 0 of the second form.
    argument = torch.tensor([-9.0, -3.1, -1.0, -0.2, 0.0, 0.6, 1.0, 2.0, 11.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(function, argument)
    # The approximation's second derivative behaves as |mu|^0.97 at zero, where finite differences fail.
    if function is MOLCHANOV_KL[1]:
        argument = argument.detach()[argument != 0].requires_grad_()
    assert torch.autograd.gradgradcheck(function, argument)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_finite_for_extreme_arguments(forms: AlphaKL, dtype: torch.dtype) -> None:
    of_log_alpha, of_snr = forms
    for function, far in (
        (of_log_alpha, [-1e4, -200.0, -90.0, 90.0, 200.0, 1e4]),
        (of_snr, [-1e30, 1e-30, 1e19, 3e37]),
    ):
        argument = torch.tensor(far, dtype=dtype, requires_grad=True)
        value = function(argument)
        (slope,) = torch.autograd.grad(value.sum(), argument, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), argument)
        assert value.isfinite().all() and slope.isfinite().all() and curvature.isfinite().all()
    # For small alpha the divergence is -log(alpha) / 2 plus a constant.
    tail = of_log_alpha(torch.tensor([-200.0, -150.0], dtype=dtype))
    assert (tail[0] - tail[1]).item() == pytest.approx(25, rel=1e-6)


@each_form
def test_divergence_and_slope_are_zero_at_infinite_alpha(forms: AlphaKL) -> None:
    of_log_alpha, of_snr = forms
    infinity = torch.tensor(math.inf, dtype=F64, requires_grad=True)
    zero = torch.tensor(0.0, dtype=F64, requires_grad=True)
    for function, argument in ((of_log_alpha, infinity), (of_snr, zero)):
        value = function(argument)
        (slope,) = torch.autograd.grad(value, argument)
        assert value == 0 and slope == 0


@each_function
def test_falls_with_alpha(function: Callable[[Tensor], Tensor]) -> None:
    log_alpha = torch.linspace(-20, 20, 2001, dtype=F64)
    is_snr = function in [forms[1] for forms in FORMS.values()]
    assert (function(torch.exp(-log_alpha / 2) if is_snr else log_alpha).diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    log_alpha = torch.linspace(-9, 9, 37).to(dtype)
    for function in (kl_log_uniform, kl_log_uniform_molchanov, kl_ard):
        assert torch.equal(function(log_alpha), function(log_alpha.float()).to(dtype))


def test_error_of_the_approximation_is_as_documented() -> None:
    log_alpha = torch.linspace(-20, 20, 8001, dtype=F64)
    exactly = kl_log_uniform(log_alpha)
    gap = (kl_log_uniform_molchanov(log_alpha) - exactly).abs()
    assert gap.max().item() == pytest.approx(0.0094, abs=5e-5)
    assert (gap / exactly).max().item() == pytest.approx(0.034, abs=5e-4)


def test_ard_is_its_formula() -> None:
    log_alpha = torch.linspace(-20, 20, 81, dtype=F64)
    expected = [mp.log1p(mp.exp(-mp.mpf(t))) / 2 for t in log_alpha.tolist()]
    assert largest_error(kl_ard(log_alpha), expected) < 1e-15 * 4

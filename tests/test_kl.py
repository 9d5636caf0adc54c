"""One table of pairs: each closed form against quadrature or draws, and the sum by `kl_sum`."""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import (
    Binomial,
    Delta,
    Laplace,
    LogNormal,
    Multinomial,
    Normal,
    OneHotCategorical,
    StudentT,
    TorchDistribution,
    Uniform,
)
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyrostoch.distributions import (
    ARD,
    CenteredNormal,
    LogUniform,
    MultiplicativeNormal,
    ScaleMixture,
    SymmetricUniform,
    TwoPoint,
    has_closed_form,
    kl_log_uniform,
    kl_sum,
)
from pyrostoch.distributions.improper import ImproperPrior

F64 = torch.float64


def _f(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


LOC, SCALE, LOG_ALPHA = _f(-0.7, 0.2, 1.5), _f(0.4, 2.0, 0.1), _f(-2.0, 0.5, 4.0)

GAUSSIAN = Normal(LOC, SCALE)
MULTIPLICATIVE = MultiplicativeNormal(LOC, LOG_ALPHA)
CENTERED = CenteredNormal(SCALE)
UNIFORM = SymmetricUniform(SCALE)
POINTS = TwoPoint(SCALE)
NORMAL = Normal(_f(0.3), _f(0.9))
LAPLACE = Laplace(_f(0.9, -0.3, 0.0), _f(0.8))

CONTINUOUS = {"Normal": GAUSSIAN, "Multiplicative": MULTIPLICATIVE, "Centered": CENTERED, "Uniform": UNIFORM}
CLOSED = {
    f"{name}|{prior}": (q, p)
    for name, q in CONTINUOUS.items()
    for prior, p in {"LogUniform": LogUniform(), "Normal": NORMAL, "Laplace": LAPLACE, "ARD": ARD()}.items()
}
each_closed = pytest.mark.parametrize("pair", CLOSED.values(), ids=CLOSED)


def by_quadrature(q: TorchDistribution, p: TorchDistribution) -> Tensor:
    """KL by Gauss-Legendre panels over q's mass, split where either log density is not smooth."""
    nodes, weights = map(torch.as_tensor, np.polynomial.legendre.leggauss(40))
    result = []
    for i in range(3):
        mean, reach = float(q.mean[i]), float(q.stddev[i]) * 14
        if isinstance(q, SymmetricUniform):
            reach = float(q.scale[i])
        low, high = mean - reach, mean + reach
        kinks = [0.0] + ([float(p.loc[i])] if isinstance(p, Laplace) else [])
        edges = sorted({low, high, *(k for k in kinks if low < k < high)})
        total = 0.0
        for a, b in zip(edges, edges[1:], strict=False):
            # Panels shrink towards both ends, where log |w| may be singular.
            fine = torch.cat([_f(0.0), 0.5 ** torch.arange(60, 0, -1, dtype=F64)])
            grid = a + (b - a) * torch.cat([fine, 1 - fine.flip(0)[1:]])
            left, right = grid[:-1, None], grid[1:, None]
            w = (left + right) / 2 + (right - left) / 2 * nodes
            log_q = _nth(q, i).log_prob(w)
            integrand = log_q.exp() * (log_q - _nth(p, i).log_prob(w))
            total += float((integrand.nan_to_num(nan=0.0) * weights * (right - left) / 2).sum())
        result.append(total)
    return _f(*result)


def _nth(distribution: TorchDistribution, i: int) -> TorchDistribution:
    """One of three independent distributions."""
    if isinstance(distribution, LogUniform):
        return distribution
    names = (
        ("loc", "log_alpha") if isinstance(distribution, MultiplicativeNormal) else tuple(distribution.arg_constraints)
    )
    return type(distribution)(*(getattr(distribution, name).expand(3)[i] for name in names), validate_args=False)


def optimal_ard_prior(q: TorchDistribution) -> Normal:
    """The Gaussian prior with the scale that ARD fits to the posterior."""
    return Normal(torch.zeros(3, dtype=F64), (q.mean**2 + q.variance).sqrt())


@each_closed
def test_closed_form_against_quadrature(pair: tuple[TorchDistribution, TorchDistribution]) -> None:
    q, p = pair
    closed = kl_divergence(q, p)
    reference = by_quadrature(q, optimal_ard_prior(q) if isinstance(p, ARD) else p)
    assert has_closed_form(q, p) and closed.shape == (3,) and closed.dtype == F64
    torch.testing.assert_close(closed, reference, rtol=1e-9, atol=1e-9)


@each_closed
def test_closed_form_against_draws(pair: tuple[TorchDistribution, TorchDistribution]) -> None:
    q, p = pair
    prior = optimal_ard_prior(q) if isinstance(p, ARD) else p
    w = q.sample((100_000,))
    terms = q.log_prob(w) - prior.log_prob(w)
    error = terms.std(0) / math.sqrt(len(w))
    assert ((terms.mean(0) - kl_divergence(q, p)).abs() < 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("log_alpha", [-12.0, -3.0, 0.0, 2.0, 8.0, math.inf])
def test_monte_carlo_under_the_log_uniform_density_agrees_for_every_alpha(log_alpha: float) -> None:
    n = 200_000
    if log_alpha == math.inf:
        q: TorchDistribution = CenteredNormal(torch.full((n,), 0.3, dtype=F64))
    else:
        q = MultiplicativeNormal(torch.full((n,), -1.7, dtype=F64), torch.tensor(log_alpha, dtype=F64))
    w = q.sample()
    terms = q.log_prob(w) - LogUniform().log_prob(w)
    closed = kl_sum(q, LogUniform()).item() / n
    assert abs(terms.mean().item() - closed) < 4.5 * terms.std().item() / math.sqrt(n)


@each_closed
@pytest.mark.parametrize("wrap", ["plain", "event", "expanded"])
def test_sum_is_the_sum(pair: tuple[TorchDistribution, TorchDistribution], wrap: str) -> None:
    q, p = pair
    terms = kl_divergence(q, p)
    if wrap == "event":
        q, p = q.to_event(1), p.expand((3,)).to_event(1)
    elif wrap == "expanded":
        q, p, terms = q.expand((4, 3)).to_event(2), p, 4 * terms
    total = kl_sum(q, p)
    assert total.shape == () and total.dtype == F64
    torch.testing.assert_close(total, terms.sum())


def test_constants() -> None:
    assert (kl_divergence(CENTERED, LogUniform()) == 0).all() and (kl_divergence(CENTERED, ARD()) == 0).all()
    assert (kl_divergence(POINTS, LogUniform()) == 0).all()
    constant = (mp.log(2 * mp.pi * mp.e) + mp.euler + mp.log(2)) / 2
    assert kl_divergence(UNIFORM, LogUniform())[0].item() == pytest.approx(float(constant - 1 - mp.log(2)), abs=1e-15)
    assert kl_divergence(UNIFORM, ARD())[0].item() == pytest.approx(math.log(math.pi * math.e / 6) / 2, abs=1e-15)
    assert kl_sum(POINTS.expand((5, 3)), LogUniform()) == 0
    assert kl_divergence(POINTS, TwoPoint(SCALE[:1])).tolist() == [0, math.inf, math.inf]


def test_a_normal_with_zero_mean_has_a_finite_gradient() -> None:
    loc = torch.tensor([0.0, 1e-300, 0.5], dtype=F64, requires_grad=True)
    scale = torch.tensor([0.7, 0.7, 0.7], dtype=F64, requires_grad=True)
    for prior in (LogUniform(), LogUniform("molchanov"), ARD()):
        value = kl_divergence(Normal(loc, scale), prior)
        gradients = torch.autograd.grad(value.sum(), (loc, scale))
        assert value[0] == 0 and gradients[0][0] == 0 and gradients[1][0] == 0
        assert all(g.isfinite().all() for g in gradients) and gradients[0][2] > 0 > gradients[1][2]


@pytest.mark.parametrize("prior", [LogUniform(), LogUniform("molchanov"), ARD()])
def test_kl_of_multiplicative_noise_depends_on_alpha_also_at_zero_mean(prior: ImproperPrior) -> None:
    loc, log_alpha = torch.zeros(3, dtype=F64, requires_grad=True), LOG_ALPHA.clone().requires_grad_()
    value = kl_divergence(MultiplicativeNormal(loc, log_alpha), prior)
    torch.testing.assert_close(value, kl_divergence(MultiplicativeNormal(LOC, LOG_ALPHA), prior))
    assert (torch.autograd.grad(value.sum(), log_alpha)[0] < 0).all()


@pytest.mark.parametrize("prior", [LogUniform(), ARD()])
def test_kl_of_a_centered_normal_is_a_constant(prior: ImproperPrior) -> None:
    scale = SCALE.clone().requires_grad_()
    assert not kl_divergence(CenteredNormal(scale), prior).requires_grad
    assert kl_divergence(CenteredNormal(scale), NORMAL).requires_grad


def test_the_approximation_is_used_where_it_is_asked_for() -> None:
    fit, log_alpha = LogUniform("molchanov"), LOG_ALPHA
    expected = 0.63576 * torch.sigmoid(-1.8732 - 1.48695 * log_alpha) + torch.log1p(torch.exp(-log_alpha)) / 2
    torch.testing.assert_close(kl_divergence(MULTIPLICATIVE, fit), expected)
    torch.testing.assert_close(kl_divergence(Normal(LOC, MULTIPLICATIVE.scale), fit), expected)
    torch.testing.assert_close(kl_sum(MULTIPLICATIVE, fit.expand((3,))), expected.sum())
    assert (expected - kl_divergence(MULTIPLICATIVE, LogUniform())).abs().min() > 1e-5


@pytest.mark.parametrize("prior", [LogUniform(), LogUniform("molchanov"), ARD()])
@pytest.mark.parametrize("alpha_shape", [(), (7, 1), (1, 9), (7, 9)])
def test_shared_alphas_count_once_for_each_weight(prior: ImproperPrior, alpha_shape: tuple[int, ...]) -> None:
    log_alpha = torch.randn(alpha_shape, dtype=F64, requires_grad=True)
    q = MultiplicativeNormal(torch.randn(7, 9, dtype=F64), log_alpha)
    elementwise = kl_divergence(Normal(q.loc, q.scale), prior).sum()
    for distribution, copies in ((q, 1), (q.to_event(2), 1), (q.expand((2, 7, 9)).to_event(2), 2)):
        total = kl_sum(distribution, prior)
        torch.testing.assert_close(total, copies * elementwise)
        torch.testing.assert_close(
            torch.autograd.grad(total, log_alpha),
            torch.autograd.grad(copies * elementwise, log_alpha, retain_graph=True),
        )


def test_one_alpha_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "pyrostoch.distributions.kl.alpha_kl_of",
        lambda p: (lambda t: seen.append(t.numel()) or kl_log_uniform(t), None),
    )
    kl_sum(MultiplicativeNormal(torch.ones(500, 800), torch.tensor(0.0)).to_event(2), LogUniform())
    assert seen == [1]


def test_kl_of_no_weights_is_zero() -> None:
    assert kl_sum(MultiplicativeNormal(torch.ones(0, 3), torch.tensor(0.0)), LogUniform()) == 0
    assert kl_sum(MultiplicativeNormal(torch.ones(0, 3), torch.zeros(0, 3)), LogUniform()) == 0


def test_priors_broadcast() -> None:
    q = Normal(torch.randn(4, 3, dtype=F64), 0.5)
    expected = kl_divergence(q, NORMAL.expand((4, 3))).sum()
    for p in (NORMAL, NORMAL.expand((3,)), NORMAL.expand((3,)).to_event(1), NORMAL.expand((4, 3)).to_event(2)):
        torch.testing.assert_close(kl_sum(q, p), expected)
        torch.testing.assert_close(kl_sum(q.to_event(1), p), expected)
    # A prior larger than the posterior counts the posterior as often.
    torch.testing.assert_close(
        kl_sum(Normal(0.1, _f(0.5)), NORMAL.expand((6, 1))), 6 * kl_sum(Normal(0.1, _f(0.5)), NORMAL)
    )


def test_sums_are_accumulated_in_float64() -> None:
    # The divergence of each weight is 1e-4 of the rounding error of the sum in float32.
    n = 1 << 20
    scale = torch.full((n,), 1.0)
    scale[0] = 1e6
    q, p = Normal(0.0, scale), Normal(0.0, 1.01)
    exactly = kl_divergence(Normal(0.0, scale.double()), Normal(0.0, torch.tensor(1.01, dtype=F64))).sum()
    total = kl_sum(q, p)
    assert total.dtype == torch.float32 and total.item() == pytest.approx(exactly.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_do_not_overflow(dtype: torch.dtype) -> None:
    q = MultiplicativeNormal(torch.ones(400, 500, dtype=dtype), torch.tensor(-4.0, dtype=dtype))
    total = kl_sum(q, LogUniform())
    assert total.dtype == torch.float32
    expected = 200_000 * kl_log_uniform(torch.tensor(-4.0)).item()
    assert expected > 65504 and total.item() == pytest.approx(expected, rel=5e-3)


# Pairs without a closed form.

DRAWN = {
    "Normal|StudentT": (GAUSSIAN, StudentT(_f(3.0), 0.1, 1.0)),
    "Multiplicative|ScaleMixture": (MULTIPLICATIVE, ScaleMixture(_f(0.5), 1.0, 0.2)),
    "Uniform|StudentT": (UNIFORM, StudentT(_f(3.0))),
    "Laplace|LogUniform": (LAPLACE, LogUniform()),
    "Normal|LogNormal": (GAUSSIAN, LogNormal(_f(0.0), 1.0)),
    "Normal|masked": (GAUSSIAN, NORMAL.mask(True)),
}


@pytest.mark.parametrize("pair", list(DRAWN.values())[:4])
def test_the_estimate_is_the_difference_of_the_log_densities(pair: tuple[TorchDistribution, TorchDistribution]) -> None:
    q, p = pair
    assert not has_closed_form(q, p)
    w = q.sample()
    expected = (q.log_prob(w) - p.log_prob(w)).sum()
    for distribution, prior in (
        (q, p),
        (q.to_event(1), p),
        (q.to_event(1), p.expand((3,)).to_event(1)),
        (q, p.expand((3,))),
    ):
        torch.testing.assert_close(kl_sum(distribution, prior, w), expected)


@pytest.mark.parametrize("pair", DRAWN.values(), ids=DRAWN)
def test_no_closed_form_and_no_draw_is_an_error(pair: tuple[TorchDistribution, TorchDistribution]) -> None:
    q, p = pair
    assert not has_closed_form(q, p)
    with pytest.raises(ValueError, match=rf"KL\({type(q).__name__} \|\| \w+\) has no closed form.*value="):
        kl_sum(q.to_event(1), p)


def test_delta_keeps_its_log_density() -> None:
    value = torch.randn(2, 3, dtype=F64)
    density = torch.randn(2, 3, dtype=F64)
    for q in (Delta(value, density), Delta(value, density).to_event(2), Delta(value, density.sum(-1), event_dim=1)):
        assert not has_closed_form(q, NORMAL)
        torch.testing.assert_close(kl_sum(q, NORMAL, value), (density - NORMAL.log_prob(value)).sum())


@pytest.mark.parametrize(
    "prior",
    [
        NORMAL,
        LAPLACE,
        StudentT(3.0),
        ScaleMixture(0.5, 1.0, 0.1),
        LogNormal(0.0, 1.0),
        SymmetricUniform(1.0),
        Uniform(-1.0, 1.0),
        MultiplicativeNormal(1.0, 0.0),
        CenteredNormal(1.0),
        ARD(),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_two_points_under_a_continuous_prior_are_refused_by_name(prior: TorchDistribution) -> None:
    message = rf"KL\(TwoPoint \|\| {type(prior).__name__}\) is infinite.*LogUniform"
    for q, p in ((POINTS, prior), (POINTS.to_event(1), prior.expand((3,)).to_event(1))):
        for attempt in (kl_sum, has_closed_form, kl_divergence):
            with pytest.raises(ValueError, match=message):
                attempt(q, p)
        with pytest.raises(ValueError, match=message):
            kl_sum(q, p, q.sample())


def test_ard_without_a_formula_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="ARD has no density of its own"):
        kl_sum(LAPLACE, ARD(), LAPLACE.sample())


# Wrappers, and torch's own formulas.


@each_closed
def test_pyros_mean_field_elbo_finds_the_closed_form(pair: tuple[TorchDistribution, TorchDistribution]) -> None:
    q, p = pair
    model = lambda: pyro.sample("w", p.expand((3,)).to_event(1))  # noqa: E731
    guide = lambda: pyro.sample("w", q.to_event(1))  # noqa: E731
    if isinstance(p, ARD):  # Pyro evaluates every density, used or not.
        with pytest.raises(ValueError, match="ARD has no density of its own.*TraceMeanField_ELBO"):
            TraceMeanField_ELBO().loss(model, guide)
        return
    loss = TraceMeanField_ELBO().loss(model, guide)
    assert loss == pytest.approx(kl_sum(q, p).item(), rel=1e-12, abs=1e-12)


def test_counts_against_counts() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [60.0, 0.0, -60.0], [900.0, -900.0, 1.0]], dtype=F64)
    other = torch.tensor([[-0.2, 0.4, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], dtype=F64)
    counts = torch.arange(5, dtype=F64)[:, None, None]
    q, p = Binomial(4, logits=logits), Binomial(4, logits=other)
    log_q, log_p = q.log_prob(counts), p.log_prob(counts)
    truth = torch.where(log_q > -600.0, log_q.exp() * (log_q - log_p), 0.0).sum(0)
    assert torch.allclose(kl_divergence(q, p), truth)
    single = kl_divergence(Binomial(4, logits=logits.float()), Binomial(4, logits=other.float()))
    assert torch.allclose(single.double(), truth, rtol=1e-5)

    q, p = Multinomial(3, logits=logits), Multinomial(3, logits=other)
    every = torch.tensor([v for v in itertools.product(range(4), repeat=3) if sum(v) == 3], dtype=F64)[:, None, :]
    log_q, log_p = q.log_prob(every), p.log_prob(every)
    truth = torch.where(log_q > -600.0, log_q.exp() * (log_q - log_p), 0.0).sum(0)
    assert torch.allclose(kl_divergence(q, p), truth)
    single = kl_divergence(OneHotCategorical(logits=logits), OneHotCategorical(logits=other))
    assert torch.allclose(3.0 * single, truth)
    with pytest.raises(ValueError, match="equal numbers of draws, got 3 and 4"):
        kl_divergence(q, Multinomial(4, logits=other))
    assert kl_divergence(Binomial(4, logits=logits), Binomial(5, logits=other)).isnan().all()

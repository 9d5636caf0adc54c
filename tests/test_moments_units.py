"""Functions and maxima of Gaussian variables, and what a Gaussian output predicts, by quadrature and Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.distributions import Categorical, MultivariateNormal, Normal
from torch.testing import assert_close

from pyrostoch.moments import Gelu, Knot, Moments, MomentSettings, Piecewise, Probit, RectifiedPower, Smooth, activate
from pyrostoch.moments.pooling import tournament
from pyrostoch.moments.predictive import OutputDistribution, gaussian_points, noisy_gaussian, softmax_under_gaussian
from pyrostoch.moments.units import Unit

F32, F64 = torch.float32, torch.float64
Pair = tuple[Tensor, Tensor]
each_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])


def t64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def leaves(*values: Tensor) -> list[Tensor]:
    return [value.detach().clone().requires_grad_() for value in values]


@dataclass(frozen=True)
class Case:
    unit: Unit
    function: Callable[[Tensor], Tensor]
    knots: tuple[float, ...] = ()


def above(x: Tensor, at: float) -> Tensor:
    return (x > at).to(x)


def jumps_and_kinks(x: Tensor) -> Tensor:
    return 0.2 + 0.6 * x + 0.7 * above(x, -1.2) - 0.4 * F.relu(x + 1.2) - 1.3 * above(x, 0.1) + 1.5 * F.relu(x - 0.8)


def power(n: int, gain: float = 1.0, at: float = 0.0) -> Case:
    return Case(RectifiedPower(n, gain, at), lambda x: gain * F.relu(x - at) ** n, (at,))


MIXED = Piecewise((Knot(-1.2, 0.7, -0.4), Knot(0.1, -1.3), Knot(0.8, kink=1.5)), offset=0.2, slant=0.6)
STATES = Piecewise.states([-1, 0.5, 2], [-0.4, 0.6])
EXACT = {
    "relu": Case(Piecewise((Knot(kink=1.0),)), F.relu, (0,)),
    "leaky": Case(Piecewise((Knot(kink=0.9),), slant=0.1), lambda x: F.leaky_relu(x, 0.1), (0,)),
    "clamp": Case(Piecewise((Knot(-1, kink=1), Knot(1, kink=-1)), offset=-1), lambda x: x.clamp(-1, 1), (-1, 1)),
    "threshold": Case(Piecewise.threshold(0.3), lambda x: above(x, 0.3), (0.3,)),
    "states": Case(STATES, lambda x: 1.5 * (above(x, -0.4) + above(x, 0.6)) - 1, (-0.4, 0.6)),
    "abs": Case(Piecewise((Knot(kink=2.0),), slant=-1.0), torch.abs, (0,)),
    "sign": Case(Piecewise((Knot(jump=2.0),), offset=-1.0), torch.sign, (0,)),
    "mixed": Case(MIXED, jumps_and_kinks, (-1.2, 0.1, 0.8)),
    "power1": power(1, 1.5, 0.2),
    "power2": power(2, 0.5, 0.3),
    "power3": power(3, 2.0, -0.4),
}
SERIES = {
    "gelu": Case(Gelu(), F.gelu),
    "tanh": Case(Smooth(torch.tanh), torch.tanh),
    "sigmoid": Case(Smooth(torch.sigmoid), torch.sigmoid),
    "softplus": Case(Smooth(F.softplus), F.softplus),
}
SMOOTH = SERIES | {
    "probit": Case(Probit(2.0, -3.0, 1.0), lambda x: 1 - 3 * torch.special.ndtr(x / 2)),
    "erf": Case(Probit(math.sqrt(0.5), 2.0, -1.0), torch.erf),
}
ALL = EXACT | SMOOTH


def each_of(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(cases[n], id=n) for n in cases])


LOCS, VARS = t64(0.0, 0.7, -1.5, 2.5, 0.31, -6.0, 5.0), t64(1.0, 0.3, 2.0, 0.05, 1e-4, 1.0, 2.0)
NODES, WEIGHTS = map(torch.from_numpy, np.polynomial.legendre.leggauss(30))


def gaussian_nodes(m: Tensor, v: Tensor, splits: Sequence[float] = ()) -> Pair:
    """Nodes and weights of E g(x), in panels of a deviation at most that end at the splits."""
    inside = [x for x in splits if abs(x - m) < 13 * v.sqrt()]
    edges = torch.cat([m + v.sqrt() * torch.linspace(-13, 13, 27, dtype=F64), t64(*inside)]).sort()[0]
    middle, half = (edges[1:] + edges[:-1]).unsqueeze(1) / 2, edges.diff().unsqueeze(1) / 2
    x, w = (middle + half * NODES).flatten(), (half * WEIGHTS).flatten()
    return x, w * (-0.5 * (x - m) ** 2 / v).exp() / (2 * math.pi * v).sqrt()


def by_conditioning(case: Case, m: Pair, v: Pair, rho: Tensor) -> Tensor:
    """Covariance by quadrature over x of the mean of f(y) given x, with panels split where y crosses a knot."""
    slope, rest = rho * (v[1] / v[0]).sqrt(), v[1] * (1 - rho) * (1 + rho)
    crossings = [m[0] + (k - m[1] + n * rest.sqrt()) / slope for k in case.knots for n in (-9, -5, -2, 0, 2, 5, 9)]
    x, w = gaussian_nodes(m[0], v[0], [*case.knots, *crossings])
    y, f = m[1] + slope * (x - m[0]), case.function(x)
    given = case.unit.mean_variance(y, rest)[0] if rest > 0 else case.function(y)
    return (w * (f - (w * f).sum()) * given).sum()


def on_a_grid(case: Case, m: Pair, v: Pair, rho: Tensor) -> Tensor:
    """Covariance by the trapezoidal rule in two independent variables, for smooth functions."""
    u = torch.linspace(-9, 9, 181, dtype=F64)
    w = 0.1 * (-0.5 * u**2).exp() / math.sqrt(2 * math.pi)
    x = case.function(m[0] + v[0].sqrt() * u)
    y = case.function(m[1] + v[1].sqrt() * (rho * u.unsqueeze(1) + (1 - rho**2).sqrt() * u))
    return (w * (x - (w * x).sum()) * (y @ w)).sum()


def joint_distributions(rhos: Sequence[float]) -> Iterator[tuple[Pair, Pair, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    for rho in rhos:
        m, v = 1.5 * torch.randn(2, generator=draw, dtype=F64), 0.2 + 1.8 * torch.rand(2, generator=draw, dtype=F64)
        yield (m[0], m[1]), (v[0], v[1]), torch.tensor(rho, dtype=F64)


def gap(case: Case, reference: Callable[..., Tensor], rhos: Sequence[float]) -> Tensor:
    """Largest error of the covariance."""
    distributions = list(joint_distributions(rhos))
    found = [case.unit.covariance(m, v, rho * (v[0] * v[1]).sqrt()) for m, v, rho in distributions]
    return max(
        abs(value - reference(case, *distribution)) for value, distribution in zip(found, distributions, strict=True)
    )


def assert_finite_slopes(values: Sequence[Tensor], *arguments: Tensor) -> None:
    assert all(s.isfinite().all() for value in values for s in grad(value.sum(), arguments, retain_graph=True))


def assert_is_mean(value: Tensor, draws: Tensor) -> None:
    assert ((draws.mean(0) - value).abs() < 4 * draws.std(0) / math.sqrt(len(draws))).all()


@each_of(ALL)
def test_mean_and_variance_are_those_of_quadrature(case: Case) -> None:
    expected = []
    for m, v in zip(LOCS, VARS, strict=True):
        x, w = gaussian_nodes(m, v, case.knots)
        mean = (w * case.function(x)).sum()
        expected.append((mean, (w * (case.function(x) - mean) ** 2).sum()))
    for dtype, tolerance in ((F64, 1e-8 if case in SERIES.values() else 1e-11), (F32, 5e-4)):
        found = torch.stack(case.unit.mean_variance(LOCS.to(dtype), VARS.to(dtype)), 1)
        assert found.dtype == dtype
        assert_close(found.double(), torch.tensor(expected), rtol=tolerance, atol=tolerance / 20)


@each_of(ALL)
def test_slope_is_the_derivative_of_the_mean(case: Case) -> None:
    loc, var = leaves(LOCS, VARS)
    (slope,) = grad(case.unit.mean_variance(loc, var)[0].sum(), loc)
    for dtype, tolerance in ((F64, 1e-8), (F32, 5e-4)):
        assert_close(case.unit.slope(LOCS.to(dtype), VARS.to(dtype)).double(), slope, rtol=tolerance, atol=tolerance)


@each_of(EXACT)
def test_exact_covariance(case: Case) -> None:
    rhos = [0.01, -0.3, 0.5, -0.7, 0.9, -0.92, 0.93, -0.97, 0.99, 0.999, -0.999, 1 - 1e-6, 1e-6 - 1, 1, -1, 1, -1]
    assert gap(case, by_conditioning, rhos) < 1e-11


@each_of(SMOOTH)
def test_covariance_of_smooth_functions(case: Case) -> None:
    for size, limit in ((0.1, 1e-9), (0.5, 3e-5), (0.7, 3e-4), (0.9, 1e-3), (1.0, 3e-3)):
        assert gap(case, on_a_grid, [size, -size] * 6) < (limit if case in SERIES.values() else 1e-13)


@each_of(ALL)
def test_covariance_of_equal_variables_is_the_variance(case: Case) -> None:
    found = case.unit.covariance((LOCS, LOCS), (VARS, VARS), VARS)
    assert_close(found, case.unit.mean_variance(LOCS, VARS)[1], rtol=1e-6, atol=1e-8)
    assert case.unit.covariance((LOCS, LOCS.flip(0)), (VARS, VARS.flip(0)), 0 * VARS).abs().max() < 1e-8


@each_of({name: ALL[name] for name in ("threshold", "relu", "mixed", "power2", "gelu")})
def test_monte_carlo_agrees(case: Case) -> None:
    loc, var, rho = t64(0.2, -0.3), t64(1.2, 0.7), 0.6
    z = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    z[:, 1] = rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]
    f = case.function(loc + var.sqrt() * z)
    mean, variance = case.unit.mean_variance(loc, var)
    assert_is_mean(mean, f)
    assert_is_mean(variance, (f - mean) ** 2)
    assert_is_mean(case.unit.covariance(tuple(loc), tuple(var), rho * var.prod().sqrt()), (f - mean).prod(1))


@each_of(ALL)
def test_derivatives(case: Case) -> None:
    p = leaves(t64(0.3, -0.8), t64(-0.1, 0.9), t64(1.0, 0.4), t64(0.8, 1.5), t64(0.4, -0.6))
    assert gradcheck(case.unit.mean_variance, (p[0], p[2]))
    assert gradcheck(lambda *p: case.unit.covariance(p[:2], p[2:4], p[4]), p)


def check_without_variance(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    loc, var = leaves(torch.tensor([-3.0, -0.7, 0.4, 2.0, 50.0], dtype=dtype), torch.zeros(5, dtype=dtype))
    mean, variance = case.unit.mean_variance(loc, var)
    covariance = case.unit.covariance((loc, loc.flip(0)), (var, var), torch.zeros_like(var))
    assert_close(mean, case.function(loc), rtol=tolerance, atol=tolerance)
    assert_close((variance, covariance), (var, var), rtol=0, atol=1e-6)
    assert_finite_slopes((mean, variance, covariance), loc, var)


@each_of(ALL)
def test_without_variance_the_function_itself(case: Case) -> None:
    check_without_variance(case, F64, 1e-15)


@each_of(ALL)
def test_without_variance_the_function_itself_in_single_precision(case: Case) -> None:
    check_without_variance(case, F32, 1e-6)


@each_dtype
@each_of(ALL)
def test_without_variance_the_slope_of_the_function(case: Case, dtype: torch.dtype) -> None:
    (loc,) = leaves(t64(-3.0, -0.7, 0.4, 2.0).to(dtype))
    (expected,) = grad(case.function(loc).sum() + 0 * loc.sum(), loc)
    assert_close(case.unit.slope(loc.detach(), 0 * expected), expected, rtol=1e-5, atol=1e-5)


@each_of(ALL)
def test_a_mean_of_a_million_deviations_in_single_precision(case: Case) -> None:
    loc, var = leaves(torch.tensor([1.5, -1.5, 3.0]), torch.tensor([1.5e-6, 1.5e-6, 3e-6]) ** 2)
    mean, variance = case.unit.mean_variance(loc, var)
    (slope,) = grad(case.function(loc).sum() + 0 * loc.sum(), loc)
    assert_finite_slopes((mean, variance), loc, var)
    assert_close(mean, case.function(loc), rtol=1e-6, atol=1e-6)
    assert_close(variance, slope.square() * var, rtol=0.1, atol=1e-15)


@each_dtype
def test_a_function_with_slope_at_most_one_does_not_increase_variance(dtype: torch.dtype) -> None:
    loc, var = torch.linspace(-30, 30, 2401, dtype=dtype).unsqueeze(1), torch.logspace(-12, 4, 17, dtype=dtype)
    for name, bound in {**dict.fromkeys(["relu", "leaky", "clamp", "abs"], var), "sign": 1, "threshold": 0.25}.items():
        variance = ALL[name].unit.mean_variance(loc, var)[1]
        assert (variance >= 0).all() and (variance <= bound * (1 + 50 * torch.finfo(dtype).eps)).all()


def test_thresholds_may_differ_from_entry_to_entry() -> None:
    at, loc, var = t64(-0.5, 0.0, 1.2), torch.randn(4, 3, dtype=F64), torch.rand(4, 3, dtype=F64) + 0.1
    for make in (
        Piecewise.threshold,
        lambda t: Piecewise((Knot(t, kink=1.0), Knot(t + 1, jump=-0.5)), slant=0.3),
        lambda t: Piecewise.states([0.0, t, 2.0], [t, t + 0.7]),
    ):
        found, *alone = [
            torch.stack([*unit.mean_variance(m, v), unit.slope(m, v), unit.covariance((m, -m), (v, v), -v / 2)])
            for unit, m, v in ((make(at), loc, var), *((make(at[k].item()), loc[:, k], var[:, k]) for k in range(3)))
        ]
        assert_close(found, torch.stack(alone, -1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("at", [t64(0.3), t64(-0.5, 0.0, 1.2)], ids=["one", "each"])
def test_full_covariance_entry_by_entry(at: Tensor) -> None:
    loc, root = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, 3, dtype=F64)
    cov = root @ root.mT
    found = activate(Moments(loc, cov.diagonal(dim1=1, dim2=2), cov), Piecewise.threshold(at))
    expected, from_zero = torch.diag_embed(found.var), loc - at
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pair, variances = (from_zero[:, i], from_zero[:, j]), (cov[:, i, i], cov[:, j, j])
        expected[:, i, j] = expected[:, j, i] = Piecewise.threshold().covariance(pair, variances, cov[:, i, j])
    assert_close(found.cov, expected)


@pytest.mark.parametrize("correlated", [False, True], ids=["independent", "correlated"])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_the_largest_of_several_variables(k: int, correlated: bool) -> None:
    draw = torch.Generator().manual_seed(k)
    loc = 2 + torch.randn(k, generator=draw, dtype=F64) / 2
    root = torch.eye(k, dtype=F64) + 0.8 * correlated * torch.eye(k, dtype=F64).roll(1, 0)
    cov = root @ root.T
    mean, variance, counts = tournament(loc, cov.diagonal(), cov if correlated else None)
    found = (mean, variance, counts())
    largest, winner = (loc + torch.randn(200_000, k, generator=draw, dtype=F64) @ root.T).max(1)
    rows = (largest, (largest - largest.mean()) ** 2, F.one_hot(winner, k).double())
    assert found[2].sum().item() == pytest.approx(1, abs=1e-14)
    for value, draws, tolerance in zip(found, rows, (0.045, 0.08, 0.05), strict=True):
        if k == 2:
            assert_is_mean(value, draws)
        assert_close(value, draws.mean(0), rtol=0, atol=tolerance)
    if not correlated:
        *full, counts = tournament(loc.expand(2, 3, k), cov.diagonal().expand(2, 3, k), cov.expand(2, 3, k, k))
        assert all(torch.equal(batch[1, 2], value) for batch, value in zip([*full, counts()], found, strict=True))


def outputs(size: float, full: bool, points: int = 64) -> tuple[Moments, Tensor]:
    """Moments of three examples of four outputs, and their covariance."""
    draw = torch.Generator().manual_seed(3)
    loc, root = torch.randn(3, 4, generator=draw, dtype=F64), torch.randn(3, 4, 4, generator=draw, dtype=F64)
    cov = size * root @ root.mT / 4
    var, how = cov.diagonal(dim1=1, dim2=2), MomentSettings(full=full, points=points)
    return (Moments(loc, var, cov, how), cov) if full else (Moments(loc, var, None, how), torch.diag_embed(var))


def drawn(output: Moments, cov: Tensor) -> Tensor:
    return output.loc + (torch.linalg.cholesky(cov) @ torch.randn(100_000, 3, 4, 1, dtype=F64)).squeeze(-1)


either = pytest.mark.parametrize("full", [False, True], ids=["variances", "covariance"])


@either
def test_points_have_the_moments_of_the_output(full: bool) -> None:
    output, cov = outputs(1.0, full)
    before, points = torch.get_rng_state(), gaussian_points(output)
    assert points.shape == (64, 3, 4) and torch.equal(before, torch.get_rng_state())
    assert_close(points.mean(0), output.loc, rtol=0, atol=1e-14)
    assert full or (points.var(0, correction=0) - output.var).abs().max() < 1e-14
    off = gaussian_points(outputs(1.0, full, 4096)[0]) - output.loc
    assert_close(torch.einsum("kbi,kbj->bij", off, off) / 4096, cov, rtol=0, atol=0.01)


@either
def test_noisy_gaussian_is_exact(full: bool) -> None:
    output, cov = outputs(1.0, full)
    y, scale = torch.randn(3, 4, dtype=F64), torch.tensor(0.6, dtype=F64)
    closed = noisy_gaussian(output, scale)
    distribution = MultivariateNormal(output.loc, cov + 0.36 * torch.eye(4, dtype=F64))
    assert_close(closed.log_density(y), distribution.log_prob(y))
    assert_close((closed.fields["mean"], closed.fields["variance"]), (distribution.mean, distribution.variance))
    assert_is_mean(closed.expected(y), Normal(drawn(output, cov), scale).log_prob(y).sum(-1))


@either
def test_classes_of_gaussian_logits(full: bool) -> None:
    y = torch.tensor([0, 3, 1])
    for size in (0.1, 1.0):
        output, cov = outputs(size, full, 1024)
        logs = drawn(output, cov).log_softmax(-1)
        picked = logs[:, torch.arange(3), y]
        distribution = OutputDistribution(output, lambda logits: Categorical(logits=logits))
        assert_close(distribution.log_prob(y), picked.exp().mean(0).log(), rtol=0, atol=0.01)
        assert_close(distribution.expected_log_prob(y), picked.mean(0), rtol=0, atol=0.01)
        if size == 0.1:
            closed = softmax_under_gaussian(output)
            assert_close(closed.fields["log_probs"].exp(), logs.exp().mean(0), rtol=0, atol=0.02)
            assert_close(closed.log_density(y), closed.fields["log_probs"][torch.arange(3), y])
            assert_close(closed.expected(y), picked.mean(0), rtol=0.05, atol=0)
    two = softmax_under_gaussian(Moments(t64(0, 2).unsqueeze(0), t64(1, 3).unsqueeze(0)))
    x, w = gaussian_nodes(*t64(2, 4))
    assert_close(two.fields["log_probs"][0, 1].exp(), (w * x.sigmoid()).sum(), rtol=0, atol=0.01)

"""The integral of the bivariate normal density over its correlation, and the larger of two variables: by mpmath."""

from __future__ import annotations

import math
import random
from functools import cache

import mpmath as mp
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyrostoch.moments import bivariate_cdf, density_integral
from pyrostoch.moments.bivariate import normal_cdf, normal_pdf, rectified_mean
from pyrostoch.moments.pooling import maximum
from pyrostoch.moments.units import correlation

F32, F64 = torch.float32, torch.float64
Point = tuple[float, float, float]
each_order = pytest.mark.parametrize("order", [0, 1])
each_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
# Correlations are drawn as 1 - 10^-u for u in a range; u = 1.125 is 0.925, where the method of integration changes.
BANDS = {"away": (0.0, 1.125), "near": (1.125, 3.0), "nearer": (3.0, 12.0)}
each_band = pytest.mark.parametrize("band", BANDS)


@cache
def points(band: str, count: int = 40) -> list[Point]:
    """Thresholds up to 8; a third of the pairs are close together, where the density is close to a pole."""
    source = random.Random(band)
    drawn = []
    for k in range(count):
        rho = (1 - 10 ** -source.uniform(*BANDS[band])) * source.choice([-1, 1])
        a, b = (source.uniform(-8, 8) if k % 2 else source.gauss(0, 1) for _ in range(2))
        if k % 3 == 0:
            b = math.copysign(1, rho) * (a + 10 ** source.uniform(-9, 0) * source.choice([-1, 0, 1]))
        drawn.append((a, b, rho))
    return drawn


@cache
def exact(point: Point, order: int) -> float:
    """The integral with r = cos u, from arccos(rho) to pi / 2, split where exp(-d^2 / 2 sin(u)^2) changes fast."""
    a, b, rho = map(mp.mpf, point)
    if rho < 0:
        return (-1) ** (order + 1) * exact((point[0], -point[1], -point[2]), order)
    with mp.workdps(30):
        d, low, high = abs(a - b), mp.acos(rho), mp.pi / 2

        def integrand(u: mp.mpf) -> mp.mpf:
            c, s2 = mp.cos(u), mp.sin(u) ** 2
            pole = mp.mpf(d == 0) if s2 == 0 else mp.exp(-d * d / (2 * s2))
            return (rho - c) ** order * pole * mp.exp(-a * b / (1 + c))

        edges = sorted(x for x in [d / 8, d / 2, 2 * d, 8 * d, mp.mpf("0.01"), mp.mpf("0.3")] if low < x < high)
        return float(mp.quad(integrand, [low, *edges, high]) / (2 * mp.pi))


def at_one(a: mp.mpf, b: mp.mpf, order: int) -> mp.mpf:
    """At correlation 1, from the covariance of two steps or two ramps of the same variable."""
    low, high = min(a, b), max(a, b)
    if order == 0:
        return mp.ncdf(low) - mp.ncdf(a) * mp.ncdf(b)
    ramps = [x * mp.ncdf(x) + mp.npdf(x) for x in (a, b)]
    both = (1 + a * b) * mp.ncdf(low) + high * mp.npdf(low)
    return both - ramps[0] * ramps[1] - mp.ncdf(a) * mp.ncdf(b)


def tensors(rows: list[Point], dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor]:
    a, b, rho = torch.tensor(rows, dtype=dtype).unbind(1)
    return a, b, rho


@pytest.mark.parametrize("rho", [-0.9, 0.3, 0.95, 0.999])
def test_distribution_function_is_the_integral_over_one_variable(rho: float) -> None:
    """Against an integral by conditioning, which also checks the reference `exact`."""
    with mp.workdps(20):
        for a, b in ((0.4, -1.1), (-0.2, -0.19), (1.5, 2.0)):
            q = mp.sqrt(1 - mp.mpf(rho) ** 2)
            edges = sorted(x for x in [-12, -3, b / rho - 6 * q, b / rho, b / rho + 6 * q, 0] if x < a)
            below = mp.quad(lambda x, b=b, q=q: mp.npdf(x) * mp.ncdf((b - rho * x) / q), [*edges, a])
            assert float(below - mp.ncdf(a) * mp.ncdf(b)) == pytest.approx(exact((a, b, rho), 0), abs=1e-12)
            assert bivariate_cdf(*torch.tensor([a, b, rho], dtype=F64)).item() == pytest.approx(float(below), abs=1e-12)


@each_order
@each_band
def test_double_precision_is_nearly_exact(band: str, order: int) -> None:
    rows = points(band)
    found = density_integral(*tensors(rows), order)
    expected = torch.tensor([exact(row, order) for row in rows], dtype=F64)
    assert found.dtype == F64 and expected.abs().max() > 0.02
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@each_order
@each_band
def test_single_precision_is_good_to_a_millionth(band: str, order: int) -> None:
    arguments = tensors(points(band), F32)
    found = density_integral(*arguments, order)
    rows = list(zip(*(argument.tolist() for argument in arguments), strict=True))
    assert found.dtype == F32
    torch.testing.assert_close(
        found.double(), torch.tensor([exact(r, order) for r in rows], dtype=F64), rtol=0, atol=1e-6
    )


@each_order
@each_band
@each_dtype
def test_symmetries(dtype: torch.dtype, band: str, order: int) -> None:
    a, b, rho = tensors(points(band, 200), dtype)
    found = density_integral(a, b, rho, order)
    tolerance = {"rtol": 0, "atol": 10 * torch.finfo(dtype).eps}
    torch.testing.assert_close(density_integral(b, a, rho, order), found, **tolerance)
    torch.testing.assert_close(density_integral(-a, -b, rho, order), found, **tolerance)
    torch.testing.assert_close(density_integral(a, -b, -rho, order), (-1) ** (order + 1) * found, **tolerance)


@each_order
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-13), (F32, 1e-6)], ids=["f64", "f32"])
def test_closed_form_at_full_correlation(dtype: torch.dtype, tolerance: float, order: int) -> None:
    a, b, rho = tensors([(a, b, 1.0) for a, b, _ in points("near", 200)], dtype)
    for sign in (1, -1):
        pairs = zip(a.tolist(), (sign * b).tolist(), strict=True)
        expected = [sign ** (order + 1) * at_one(mp.mpf(x), mp.mpf(y), order) for x, y in pairs]
        found = density_integral(a, b, sign * rho, order).double()
        torch.testing.assert_close(found, torch.tensor([*map(float, expected)], dtype=F64), rtol=0, atol=tolerance)


@each_order
@each_dtype
def test_zero_without_correlation(dtype: torch.dtype, order: int) -> None:
    a, b, rho = tensors([(a, b, 0.0) for a, b, _ in points("near", 50)], dtype)
    assert (density_integral(a, b, rho, order) == 0).all()


@each_dtype
def test_thresholds_at_zero_follow_sheppard(dtype: torch.dtype) -> None:
    rho = torch.cat([torch.linspace(-1, 1, 201, dtype=dtype), torch.tensor([-0.92501, -0.92499, 0.92499, 0.92501])])
    rho, zero = rho.to(dtype), torch.zeros((), dtype=dtype)
    tolerance = {"rtol": 0, "atol": 1e-14 if dtype == F64 else 2e-7}
    torch.testing.assert_close(density_integral(zero, zero, rho), rho.asin() / (2 * math.pi), **tolerance)
    expected = (rho * rho.asin() + (1 - rho**2).sqrt() - 1) / (2 * math.pi)
    torch.testing.assert_close(density_integral(zero, zero, rho, 1), expected, **tolerance)


@each_order
@each_dtype
@pytest.mark.parametrize("far", [30.0, 1e8, math.inf])
def test_zero_at_a_far_threshold(far: float, dtype: torch.dtype, order: int) -> None:
    rho = torch.tensor([-1.0, -0.999, -0.5, 0.0, 0.5, 0.93, 1.0], dtype=dtype)
    for a, b in ((far, 0.3), (-far, 0.3), (far, far), (far, -far)):
        a, b = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (a, b))
        found = density_integral(a, b, rho, order)
        assert found.isfinite().all() and found.abs().max() < 1e-6
        assert all(grad.abs() < 1e-6 for grad in torch.autograd.grad(found.sum(), (a, b)))


@pytest.mark.parametrize("far", [30.0, 1e8, math.inf])
def test_distribution_function_beside_a_far_limit(far: float) -> None:
    b = torch.linspace(-3, 3, 7, dtype=F64).unsqueeze(1)
    rho = torch.tensor([-1.0, -0.999, -0.5, 0.0, 0.5, 0.93, 1.0], dtype=F64)
    a = torch.tensor(far, dtype=F64)
    torch.testing.assert_close(bivariate_cdf(a, b, rho), normal_cdf(b).expand(7, 7), rtol=0, atol=1e-15)
    torch.testing.assert_close(bivariate_cdf(-a, b, rho), torch.zeros(7, 7, dtype=F64), rtol=0, atol=1e-15)


@each_band
def test_distribution_function_of_four_quadrants_adds_up(band: str) -> None:
    a, b, rho = tensors(points(band, 100))
    quadrants = [bivariate_cdf(s * a, t * b, s * t * rho) for s in (1, -1) for t in (1, -1)]
    assert all((quadrant > -1e-15).all() for quadrant in quadrants)
    torch.testing.assert_close(sum(quadrants), torch.ones(100, dtype=F64), rtol=0, atol=1e-14)
    torch.testing.assert_close(quadrants[0] + quadrants[1], normal_cdf(a), rtol=0, atol=1e-14)


def test_rectified_mean_and_its_parts() -> None:
    x = torch.linspace(-8, 8, 65, dtype=F64)
    for function, formula in (
        (normal_pdf, mp.npdf),
        (normal_cdf, mp.ncdf),
        (rectified_mean, lambda t: t * mp.ncdf(t) + mp.npdf(t)),
    ):
        expected = torch.tensor([float(formula(mp.mpf(t))) for t in x.tolist()], dtype=F64)
        torch.testing.assert_close(function(x), expected, rtol=1e-15, atol=2e-15)


@each_order
@pytest.mark.parametrize("size", [(0.0, 0.3, 0.9), (0.94, 0.98), (0.9999,)], ids=["away", "near", "nearer"])
def test_derivatives_are_exact_twice(size: tuple[float, ...], order: int) -> None:
    rho = torch.tensor([*size, *(-r for r in size)], dtype=F64, requires_grad=True)
    a = torch.tensor([[0.3], [-1.2], [2.0]], dtype=F64, requires_grad=True)
    b = torch.tensor([[0.35], [0.9], [2.1]], dtype=F64, requires_grad=True)

    def function(*arguments: Tensor) -> Tensor:
        return density_integral(*arguments, order)

    assert torch.autograd.gradcheck(function, (a, b, rho), eps=1e-7)
    assert torch.autograd.gradgradcheck(function, (a, b, rho), eps=1e-7, atol=1e-4)


@each_band
def test_the_derivative_by_the_correlation_is_the_density(band: str) -> None:
    rows = [(a, b, rho) for a, b, rho in points(band, 60) if abs(rho) < 1 - 1e-8]
    a, b, rho = tensors(rows)
    rho.requires_grad_()
    (slope,) = torch.autograd.grad(density_integral(a, b, rho).sum(), rho)
    expected = []
    for x, y, r in ([*map(mp.mpf, row)] for row in rows):
        q2 = 1 - r * r
        expected.append(float(mp.exp(-(x * x - 2 * r * x * y + y * y) / (2 * q2)) / (2 * mp.pi * mp.sqrt(q2))))
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=F64), rtol=1e-6, atol=1e-10)
    (slope,) = torch.autograd.grad(density_integral(a, b, rho, 1).sum(), rho)
    torch.testing.assert_close(slope, density_integral(a, b, rho), rtol=0, atol=1e-15)


@each_order
def test_the_derivative_by_the_correlation_is_the_slope_of_the_values(order: int) -> None:
    rho = torch.tensor([-0.9, -0.4, 0.0, 0.2, 0.8, 0.92499999, 0.925, 0.92500001, 0.95, 0.97], dtype=F64)
    rho = torch.cat([rho, -rho]).requires_grad_()
    a, b = (torch.tensor(x, dtype=F64).unsqueeze(1) for x in ([0.0, 0.7, -1.5, 3.0], [0.0, 0.5, 1.5, 2.0]))
    (slope,) = torch.autograd.grad(density_integral(a, b, rho, order).sum(), rho)
    up, down = (density_integral(a, b, rho.detach() + h, order).sum(0) for h in (1e-5, -1e-5))
    torch.testing.assert_close(slope, (up - down) / 2e-5, rtol=0, atol=1e-6)


@each_order
@each_dtype
@pytest.mark.parametrize("rho", [1.0, -1.0])
def test_derivatives_at_full_correlation_are_finite_and_those_of_the_limit(
    rho: float, dtype: torch.dtype, order: int
) -> None:
    rows = [(0.4, 0.4, rho), (0.0, 0.0, rho), (0.4, -0.4, rho), (-0.7, 1.2, rho), (1.5, 0.2, rho), (9.0, 9.0, rho)]
    a, b, r = (argument.requires_grad_() for argument in tensors(rows, dtype))
    grads = torch.autograd.grad(density_integral(a, b, r, order).sum(), (a, b, r))
    assert all(grad.isfinite().all() for grad in grads)
    sign, h = int(rho), mp.mpf("1e-6")
    for k in (3, 4):
        x, y = mp.mpf(rows[k][0]), sign * mp.mpf(rows[k][1])
        expected = sign ** (order + 1) * (at_one(x + h, y, order) - at_one(x - h, y, order)) / (2 * h)
        assert grads[0][k].item() == pytest.approx(float(expected), abs=1e-6)
        assert order == 0 or grads[2][k].item() == pytest.approx(float(sign * at_one(x, y, 0)), abs=1e-6)


@each_order
def test_vmap_over_any_argument(order: int) -> None:
    a, b, rho = tensors(points("away") + points("near"))
    expected = density_integral(a, b, rho, order)
    mapped = torch.vmap(lambda *arguments: density_integral(*arguments, order))(a, b, rho)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-16)
    rows = torch.vmap(lambda x, y: density_integral(x, y, rho[5], order), in_dims=(0, None))(a, b[:3])
    torch.testing.assert_close(rows, density_integral(a.unsqueeze(1), b[:3], rho[5], order), rtol=0, atol=1e-16)


@each_order
def test_derivatives_under_vmap(order: int) -> None:
    arguments = tensors(points("away") + points("near"))
    slopes = torch.func.grad(lambda a, b, rho: density_integral(a, b, rho, order), argnums=(0, 1, 2))
    found = torch.vmap(slopes)(*arguments)
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    expected = torch.autograd.grad(density_integral(*leaves, order).sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


@each_order
def test_a_traced_graph_works_for_other_values(order: int) -> None:
    traced, others = tensors(points("away")), tensors(points("near"))

    def value_and_slope(a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, ...]:
        leaves = [argument.detach().requires_grad_() for argument in (a, b, rho)]
        value = density_integral(*leaves, order)
        return value, *torch.autograd.grad(value.sum(), leaves)

    graph = make_fx(value_and_slope)(*traced)
    for arguments in (traced, others):
        torch.testing.assert_close(graph(*arguments), value_and_slope(*arguments), rtol=0, atol=0)


def test_shapes_broadcast_and_dtypes_promote() -> None:
    a, b = torch.tensor([[0.1], [0.2]], dtype=F32), torch.tensor([0.3, 0.4, 0.5], dtype=F64)
    rho = torch.tensor(0.5, dtype=F32)
    found = density_integral(a, b, rho)
    assert found.shape == (2, 3) and found.dtype == F64
    assert found[1, 2].item() == pytest.approx(exact((a[1, 0].item(), 0.5, 0.5), 0), abs=1e-13)
    half = density_integral(a.half(), rho.half(), rho.half())
    assert half.dtype == F32 and half[0, 0].item() == pytest.approx(
        exact((a.half()[0, 0].item(), 0.5, 0.5), 0), abs=1e-7
    )


def test_correlations_beyond_one_by_rounding_count_as_one() -> None:
    a, b, rho = tensors([(0.3, 0.7, 1.0), (0.3, -0.7, -1.0), (0.3, 0.3, 1.0)])
    for order in (0, 1):
        assert torch.equal(density_integral(a, b, rho * (1 + 1e-15), order), density_integral(a, b, rho, order))
    assert torch.equal(correlation((0 * rho, 0 * rho), 1e-9 * rho), rho)


def test_other_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="expected order 0 or 1, got 2"):
        density_integral(torch.zeros(()), torch.zeros(()), torch.zeros(()), 2)


def larger(m: list[float], v: list[float], rho: float) -> list[float]:
    """Mean and variance of the larger, and the probability that it is the first, by quadrature."""

    def part(a: int, b: int, n: int) -> mp.mpf:
        s, rest = mp.sqrt(v[a]), mp.sqrt(v[b] * (1 - mp.mpf(rho) ** 2))
        gain = rho * mp.sqrt(v[b]) / s

        def integrand(x: mp.mpf) -> mp.mpf:
            return x**n * mp.npdf(x, m[a], s) * mp.ncdf((x - m[b] - gain * (x - m[a])) / rest)

        return mp.quad(integrand, [m[a] + k * s for k in range(-10, 11)])

    first, mean, square = (part(0, 1, n) + (part(1, 0, n) if n else 0) for n in range(3))
    return [float(mean), float(square - mean**2), float(first)]


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.8, 0.9, -0.99])
def test_the_larger_of_two_variables(rho: float) -> None:
    source = random.Random(rho)
    m, v = [source.gauss(0, 1) for _ in range(2)], [source.uniform(0.2, 2) for _ in range(2)]
    expected = torch.tensor(larger(m, v, rho), dtype=F64)
    for dtype, tolerance in ((F64, 1e-13), (F32, 1e-6)):
        p = torch.tensor([*m, *v, rho * math.sqrt(v[0] * v[1])], dtype=dtype).requires_grad_().unbind()
        found = torch.stack(maximum(p[:2], p[2:4], p[4]))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
        mean, variance, second = maximum(p[1::-1], p[3:1:-1], p[4])
        torch.testing.assert_close(torch.stack([mean, variance, 1 - second]), found, rtol=0, atol=tolerance)
    assert torch.autograd.gradcheck(lambda *p: maximum(p[:2], p[2:4], p[4]), [x.double() for x in p])


@each_dtype
def test_the_larger_of_variables_that_differ_by_a_constant(dtype: torch.dtype) -> None:
    rows = [(0.3, 0.3, 0.5), (1.0, -2.0, 2.0), (-2.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1e4, 1e4, 1e-4)]
    m, n, v = (argument.requires_grad_() for argument in tensors(rows, dtype))
    found = maximum((m, n), (v, v), v)
    first = torch.tensor([0.5, 1.0, 0.0, 0.5, 0.5], dtype=dtype)
    torch.testing.assert_close(found, (torch.maximum(m, n), v, first), rtol=1e-6, atol=1e-7)
    for value in found:
        assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (m, n, v), retain_graph=True))

"""Weights whose entries depend on each other: densities, divergences and layers' outputs beside full covariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyrostoch._ops import LinearOp, bind
from pyrostoch.distributions import (
    FlowWeights,
    FullNormal,
    KroneckerNormal,
    LowRankNormal,
    MatrixNormal,
    RankOneWeights,
    RowsDraw,
    RowsNormal,
    TiedDraw,
    TiedNormal,
    has_closed_form,
    kl_sum,
)

DRAWS = 20_000


def tril(size: int, scale: float = 0.5) -> Tensor:
    return torch.randn(size, size).double().tril(-1) * 0.3 + torch.diag(scale + torch.rand(size).double())


def low_rank(*shape: int) -> LowRankNormal:
    loc, scale = torch.randn(shape).double(), 0.3 + torch.rand(shape).double()
    return LowRankNormal(loc, scale, 0.7 * torch.randn((2, *shape)).double())


def matrix(*shape: int, out_axis: int = 0) -> MatrixNormal:
    outputs = shape[out_axis]
    inputs = math.prod(shape) // outputs
    return MatrixNormal(torch.randn(shape).double(), tril(outputs), tril(inputs), out_axis=out_axis)


def full(*shape: int) -> FullNormal:
    return FullNormal(torch.randn(shape).double(), tril(math.prod(shape)))


def rows(*shape: int) -> RowsNormal:
    outputs, inputs = shape
    return RowsNormal(torch.randn(shape).double(), torch.stack([tril(inputs) for _ in range(outputs)]))


def kronecker(*shape: int, out_axis: int = 0) -> KroneckerNormal:
    outputs = shape[out_axis]
    inputs = math.prod(shape) // outputs
    bases = [torch.linalg.qr(torch.randn(size, size).double())[0] for size in (outputs, inputs)]
    scale = 0.3 + torch.rand(outputs, inputs).double()
    return KroneckerNormal(torch.randn(shape).double(), *bases, scale, out_axis=out_axis)


def tied(*shape: int) -> TiedNormal:
    """One of two sites, taken alone."""
    size = math.prod(shape)
    return TiedNormal(torch.randn(shape).double(), tril(size + 2)[2:])


NORMAL = {
    "low rank": low_rank,
    "matrix": matrix,
    "matrix, outputs second": lambda *shape: matrix(*shape, out_axis=1),
    "full": full,
    "rows": rows,
    "kronecker": kronecker,
    "kronecker, outputs second": lambda *shape: kronecker(*shape, out_axis=1),
    "tied, alone": tied,
}
each_normal = pytest.mark.parametrize("name", NORMAL)


def twin(distribution: Any) -> MultivariateNormal:
    return MultivariateNormal(distribution.loc.flatten(), distribution.covariance)


@each_normal
def test_density_variance_and_draws_are_those_of_the_covariance(name: str) -> None:
    distribution = NORMAL[name](2, 3)
    exact, draws = twin(distribution), distribution.sample((DRAWS,))
    assert torch.allclose(distribution.log_prob(draws[:50]), exact.log_prob(draws[:50].flatten(1)))
    assert torch.allclose(distribution.log_prob(draws[0]), exact.log_prob(draws[0].flatten()))
    assert torch.allclose(distribution.variance.flatten(), exact.variance)
    # Entries of an empirical covariance have a standard error of at most sqrt(2 / n) of the two variances' roots.
    spread = exact.variance.sqrt()
    error = (draws.flatten(1).T.cov() - exact.covariance_matrix) / spread.outer(spread)
    assert error.abs().max() < 6.0 * math.sqrt(2.0 / DRAWS)


@each_normal
@pytest.mark.parametrize("scalar", [True, False])
def test_divergence_to_independent_weights(name: str, scalar: bool) -> None:
    distribution = NORMAL[name](2, 3)
    shape = () if scalar else (2, 3)
    loc, scale = torch.randn(shape).double(), 0.5 + torch.rand(shape).double()
    prior = MultivariateNormal(loc.expand(2, 3).flatten(), torch.diag(scale.expand(2, 3).flatten().square()))
    exact = kl_divergence(twin(distribution), prior)
    assert has_closed_form(distribution, Normal(loc, scale))
    assert kl_sum(distribution, Normal(loc, scale)).item() == pytest.approx(exact.item(), rel=1e-10)
    wrapped = torch.distributions.Independent(Normal(loc.expand(2, 3), scale.expand(2, 3)), 2)
    assert kl_divergence(distribution, wrapped).item() == pytest.approx(exact.item(), rel=1e-10)


@each_normal
def test_divergence_to_one_of_the_same_kind(name: str) -> None:
    one, other = NORMAL[name](2, 3), NORMAL[name](2, 3)
    assert kl_sum(one, other).item() == pytest.approx(kl_divergence(twin(one), twin(other)).item(), rel=1e-9)
    assert kl_sum(one, one).item() == pytest.approx(0.0, abs=1e-10)


def test_divergence_under_autocast_is_in_full_precision() -> None:
    loc, scale, factor = torch.randn(4, 5), 0.3 + torch.rand(4, 5), 0.7 * torch.randn(2, 4, 5)
    exact = LowRankNormal(loc, scale, factor).information
    one = LowRankNormal(loc, scale, factor)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one.information, exact)
    assert torch.equal(one.information, exact)


def test_another_prior_needs_draws() -> None:
    assert not has_closed_form(low_rank(2, 3), torch.distributions.Laplace(0.0, 1.0))
    assert not has_closed_form(low_rank(2, 3), matrix(2, 3))


def linear(x: Tensor, weight: Any) -> LinearOp:
    found = bind(F.linear, (x, weight.loc, None), {})
    assert found is not None
    return found


def covariance_of(values: Tensor) -> Tensor:
    return values.T.cov()


def check_alike(found: Tensor, expected: Tensor) -> None:
    """Two samples of vectors have the same means and covariances, within six standard errors."""
    error = ((found.var(0) + expected.var(0)) / len(found)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 6.0 * error + 1e-12).all()
    centered, other = found - found.mean(0), expected - expected.mean(0)
    products = centered.unsqueeze(1) * centered.unsqueeze(2)
    others = other.unsqueeze(1) * other.unsqueeze(2)
    error = ((products.var(0) + others.var(0)) / len(found)).sqrt()
    assert ((products.mean(0) - others.mean(0)).abs() < 6.0 * error + 1e-12).all()


def rank_one(*shape: int, out_axis: int = 0) -> RankOneWeights:
    in_axis = 1 - out_axis
    factors = [(1.0 + torch.randn(3, shape[axis]), 0.2 + torch.rand(3, shape[axis])) for axis in (out_axis, in_axis)]
    outputs, inputs = [(loc.double(), scale.double()) for loc, scale in factors]
    return RankOneWeights(torch.randn(shape).double(), outputs, inputs, out_axis=out_axis)


def flow(*shape: int) -> FlowWeights:
    from pyro.distributions.transforms import affine_autoregressive

    # In single precision, since the inverse of Pyro's transform makes numbers of that precision.
    return FlowWeights(torch.randn(shape), torch.full(shape, 0.5), [affine_autoregressive(math.prod(shape))])


@pytest.mark.parametrize("make", [*NORMAL.values(), rank_one, flow], ids=[*NORMAL, "rank one", "flow"])
def test_a_linear_layer_has_the_outputs_of_drawn_weights(make: Any) -> None:
    makers = {NORMAL["matrix, outputs second"]: matrix, NORMAL["kronecker, outputs second"]: kronecker}
    make = makers.get(make, make)
    distribution = make(2, 3)
    x = torch.randn(3).to(distribution.loc.dtype)
    with torch.no_grad():
        found = distribution.draw_output(linear(x.expand(DRAWS, 3), distribution))
        check_alike(found, distribution.sample((DRAWS,)) @ x)
        check_alike(distribution.draw_rows(DRAWS).flatten(1), distribution.sample((DRAWS,)).flatten(1))


CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...], int, dict[str, Any]]] = {
    "plain": (F.conv2d, (2, 3, 2, 2), 0, {}),
    "groups": (F.conv2d, (4, 2, 2, 2), 0, {"groups": 2}),
    "transposed": (F.conv_transpose2d, (3, 2, 2, 2), 1, {"padding": 1}),
    "transposed, groups": (F.conv_transpose2d, (4, 2, 2, 2), 1, {"groups": 2, "padding": 1}),
}


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("kind", ["low rank", "matrix", "kronecker", "rank one"])
def test_a_convolution_at_one_position_has_the_outputs_of_drawn_kernels(kind: str, convolution: str) -> None:
    func, shape, out_axis, rest = CONVOLUTIONS[convolution]
    makers: dict[str, Any] = {
        "low rank": low_rank,
        "matrix": lambda *shape: matrix(*shape, out_axis=out_axis),
        "kronecker": lambda *shape: kronecker(*shape, out_axis=out_axis),
        "rank one": lambda *shape: rank_one(*shape, out_axis=out_axis),
    }
    distribution = makers[kind](*shape)
    channels = shape[0] if out_axis else shape[1] * rest.get("groups", 1)
    x, count = torch.randn(1, channels, 2, 2).double(), 4000
    op = bind(func, (x.expand(count, -1, -1, -1), distribution.loc, None), rest)
    assert op is not None
    if kind in ("matrix", "kronecker") and convolution != "plain":
        assert not distribution.covers(op)
        return
    assert distribution.covers(op)
    with torch.no_grad():
        found = distribution.draw_output(op)
        position = found[..., :1, :1].flatten(1)
        drawn = torch.stack([func(x, kernel, None, **rest)[0, :, 0, 0] for kernel in distribution.sample((count,))])
    check_alike(position, drawn)


@each_normal
def test_moments_of_a_layer_are_those_of_draws(name: str) -> None:
    if "second" in name:
        pytest.skip("a linear layer has its outputs first")
    distribution = NORMAL[name](2, 3)
    mean, root = torch.randn(1, 3).double(), tril(3)
    inputs = mean + torch.randn(DRAWS, 3).double() @ root.mT
    outputs = torch.einsum("noi,ni->no", distribution.sample((DRAWS,)), inputs)
    weight = distribution.loc
    exact = weight @ root @ root.mT @ weight.mT + distribution.output_covariance(mean, (root @ root.mT)[None])[0]
    error = covariance_of(outputs) - exact
    fourth = (outputs - outputs.mean(0)).pow(4).mean(0)
    assert (error.abs() < 6.0 * (fourth.unsqueeze(0) * fourth.unsqueeze(1)).pow(0.25) / math.sqrt(DRAWS)).all()
    # Uncorrelated inputs: variances alone say the same as their covariance, and so do both methods.
    variance = torch.rand(1, 3).double()
    short = distribution.output_covariance(mean, variance)
    assert torch.allclose(short, distribution.output_covariance(mean, torch.diag_embed(variance)))
    op = linear(mean, distribution)
    assert torch.allclose(distribution.output_variance(op, mean, variance), short.diagonal(dim1=1, dim2=2))


def test_weight_and_bias_of_a_last_layer_together() -> None:
    roots = torch.stack([tril(3) for _ in range(2)])
    weight_loc, bias_loc = torch.randn(2, 2).double(), torch.randn(2).double()

    def draw() -> RowsDraw:
        return RowsDraw(weight_loc, bias_loc, roots, ("weight", "bias"))

    found, densities = [], []
    for _ in range(2000):
        shared = draw()
        weight = shared.weight.rsample()
        shared.record(weight)
        bias = shared.bias.rsample()
        found.append(torch.cat([weight, bias.unsqueeze(1)], 1))
        densities.append(shared.weight.log_prob(weight) + shared.bias.log_prob(bias))
    exact = [MultivariateNormal(torch.cat([weight_loc[o], bias_loc[o : o + 1]]), scale_tril=roots[o]) for o in range(2)]
    drawn = torch.stack(found)
    together = exact[0].log_prob(drawn[:, 0]) + exact[1].log_prob(drawn[:, 1])
    assert torch.allclose(torch.stack(densities), together)
    check_alike(drawn[:, 0], exact[0].sample((2000,)))
    # The divergences of weight and bias add up to that of both.
    prior = Normal(torch.full((), 0.2, dtype=torch.float64), torch.full((), 0.7, dtype=torch.float64))
    shared = draw()
    total = kl_sum(shared.weight, prior) + kl_sum(shared.bias, prior)
    whole = MultivariateNormal(torch.full((3,), 0.2, dtype=torch.float64), 0.49 * torch.eye(3).double())
    assert total.item() == pytest.approx(sum(kl_divergence(part, whole).item() for part in exact), rel=1e-10)


@pytest.mark.parametrize("one_layer", [True, False])
def test_sites_of_one_covariance_together(one_layer: bool) -> None:
    root, locs = tril(8), [torch.randn(2, 3).double(), torch.randn(2).double()]

    def draw() -> TiedDraw:
        return TiedDraw(locs, [root[:6, :6], root[6:]], ("weight", "bias"), one_layer=one_layer)

    found, densities = [], []
    for _ in range(2000):
        shared = draw()
        for member in shared.members:
            shared.record(member.rsample())
        found.append(torch.cat([value.flatten() for value in shared.values]))
        parts = zip(shared.members, shared.values, strict=True)
        densities.append(sum(member.log_prob(value) for member, value in parts))
    exact = MultivariateNormal(torch.cat([loc.flatten() for loc in locs]), scale_tril=root)
    drawn = torch.stack(found)
    assert torch.allclose(torch.stack(densities), exact.log_prob(drawn))  # type: ignore[arg-type]
    check_alike(drawn, exact.sample((2000,)))
    prior = Normal(torch.full((), 0.2, dtype=torch.float64), torch.full((), 0.7, dtype=torch.float64))
    total = sum(kl_sum(member, prior).item() for member in draw().members)
    whole = MultivariateNormal(torch.full((8,), 0.2, dtype=torch.float64), 0.49 * torch.eye(8).double())
    assert total == pytest.approx(kl_divergence(exact, whole).item(), rel=1e-10)
    # By row, weight and bias of an example come from one draw.
    shared, x = draw(), torch.randn(3).double()
    shared.by_row = True
    weight, bias = shared.members
    output = weight.draw_output(linear(x.expand(DRAWS, 3), weight))
    assert weight.includes(bias) == one_layer
    output = output if one_layer else output + bias.draw_rows(DRAWS)
    rows = exact.sample((DRAWS,))
    check_alike(output, torch.einsum("noi,i->no", rows[:, :6].reshape(-1, 2, 3), x) + rows[:, 6:])


def test_a_site_follows_another_that_the_user_gives() -> None:
    root = tril(3)
    locs = [torch.zeros(2).double(), torch.zeros(1).double()]
    shared = TiedDraw(locs, [root[:2, :2], root[2:]])
    given = torch.tensor([0.7, -0.4]).double()
    shared.record(given)
    covariance = root @ root.mT
    gain = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    exact = Normal(given @ gain, (covariance[2, 2] - covariance[:2, 2] @ gain).sqrt())
    value = torch.tensor([0.3]).double()
    assert torch.allclose(shared.members[1].log_prob(value), exact.log_prob(value).sum())
    check_alike(shared.members[1].sample((2000,)), exact.sample((2000, 1)))


def test_a_bias_follows_weights_that_the_user_gives() -> None:
    root = tril(3).unsqueeze(0)
    shared = RowsDraw(torch.zeros(1, 2).double(), torch.zeros(1).double(), root)
    given = torch.tensor([[0.7, -0.4]]).double()
    shared.record(given)
    covariance = (root @ root.mT)[0]
    gain = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    mean, variance = given[0] @ gain, covariance[2, 2] - covariance[:2, 2] @ gain
    exact = Normal(mean, variance.sqrt())
    value = torch.tensor([0.3]).double()
    assert torch.allclose(shared.bias.log_prob(value), exact.log_prob(value).sum())
    draws = shared.bias.sample((DRAWS,))
    check_alike(draws, exact.sample((DRAWS, 1)))


def test_the_density_of_a_flow_by_its_draw_and_by_its_inverse() -> None:
    distribution = flow(2, 2)
    drawn = distribution.rsample()
    assert torch.allclose(distribution.log_prob(drawn), distribution.log_prob(drawn.clone()), atol=1e-4)
    # It integrates to one: a mean of ratios under a wide normal distribution.
    wide = Normal(distribution.loc, 1.5)
    points = wide.sample((40_000,))
    with torch.no_grad():
        ratios = (distribution.log_prob(points) - wide.log_prob(points).sum((1, 2))).exp()
    assert (ratios.mean() - 1.0).abs() < 6.0 * ratios.std() / math.sqrt(len(ratios))


def test_a_flow_without_an_inverse_knows_its_last_draw_only() -> None:
    from pyro.distributions.transforms import planar

    distribution = FlowWeights(torch.zeros(2), torch.ones(2), [planar(2)])
    drawn = distribution.rsample()
    assert torch.isfinite(distribution.log_prob(drawn))
    with pytest.raises(ValueError, match="Planar has no inverse"):
        distribution.log_prob(torch.zeros(2))


def test_factors_of_rank_one_by_hand() -> None:
    distribution = rank_one(2, 3)
    draws = distribution.sample((DRAWS,))
    (rows_loc, rows_scale), (columns_loc, columns_scale) = distribution.factors
    chosen = torch.randint(3, (DRAWS,))
    r = rows_loc[chosen] + rows_scale[chosen] * torch.randn(DRAWS, 2).double()
    s = columns_loc[chosen] + columns_scale[chosen] * torch.randn(DRAWS, 3).double()
    check_alike(draws.flatten(1), (distribution.loc * r.unsqueeze(2) * s.unsqueeze(1)).flatten(1))
    from pyrostoch.distributions import RankOne

    one = torch.ones(()).double()
    prior, each = RankOne(0.3, 2.0), Normal(one, 0.3 * one)
    factors = sum(kl_divergence(Normal(loc, scale), each).sum() / 3 for loc, scale in distribution.factors)
    expected = factors - Normal(0.0 * one, 2.0 * one).log_prob(distribution.loc).sum()
    assert kl_sum(distribution, prior).item() == pytest.approx(expected.item(), rel=1e-10)
    with pytest.raises(ValueError, match="Use the prior RankOne"):
        kl_sum(distribution, Normal(0.0, 1.0))

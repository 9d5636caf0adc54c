"""Guides whose weights depend on each other, in networks: joint densities, divergences, and what ties layers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, TanhTransform, kl_divergence

import pyrostoch as ps
from pyrostoch.effects import LocalReparameterization

PRIOR = {"*": ps.priors.Normal(0.1, 0.7)}


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def model_of(net: nn.Module, num_data: int = 10, prior: Any = None) -> ps.BayesianModel:
    likelihood = ps.likelihoods.Gaussian(0.3)
    return ps.BayesianModel(net, prior=PRIOR if prior is None else prior, likelihood=likelihood, num_data=num_data)


def shaken(guide: Any, by: float = 0.3) -> Any:
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return guide


def joint(guide: ps.guides.LowRank) -> MultivariateNormal:
    """The distribution of all weights together, from the guide's parameters."""
    parts = [guide.parameters_for(name) for name in guide.site_names]
    loc = torch.cat([part["loc"].flatten() for part in parts])
    factor = torch.cat([part["factor"].flatten(1) for part in parts], 1)
    scale = torch.cat([part["log_scale"].exp().flatten() for part in parts])
    return MultivariateNormal(loc, factor.mT @ factor + torch.diag(scale.square()))


def flat(trace: poutine.Trace, guide: Any) -> Tensor:
    return torch.cat([trace.nodes[name]["value"].flatten() for name in guide.site_names])


def test_density_of_weights_that_share_a_low_rank_part() -> None:
    model = model_of(mlp())
    guide = shaken(ps.guides.LowRank(model, rank=3))
    exact = joint(guide)
    trace = poutine.trace(guide).get_trace()
    assert trace.log_prob_sum().item() == pytest.approx(exact.log_prob(flat(trace, guide)).item(), rel=1e-9)
    # Some sites given by the user: the others are drawn given these, and their densities are conditional.
    given = {name: trace.nodes[name]["value"] + 0.1 for name in list(guide.site_names)[:2]}
    trace = poutine.trace(poutine.condition(guide, given)).get_trace()
    assert trace.log_prob_sum().item() == pytest.approx(exact.log_prob(flat(trace, guide)).item(), rel=1e-9)


def test_weights_are_drawn_given_those_that_the_user_sets() -> None:
    model = model_of(mlp())
    guide = shaken(ps.guides.LowRank(model, rank=2, init_scale=0.3), 0.5)
    exact = joint(guide)
    first, count = guide.site_names[0], 12
    given = {first: torch.randn(4, 3).double()}
    draws = [poutine.trace(poutine.condition(guide, given)).get_trace() for _ in range(800)]
    found = torch.stack([flat(trace, guide)[count:] for trace in draws])
    covariance = exact.covariance_matrix
    gain = torch.linalg.solve(covariance[:count, :count], covariance[:count, count:]).mT
    mean = exact.loc[count:] + gain @ (given[first].flatten() - exact.loc[:count])
    spread = (covariance[count:, count:] - gain @ covariance[:count, count:]).diagonal().sqrt()
    assert ((found.mean(0) - mean).abs() < 6.0 * spread / math.sqrt(len(found))).all()
    assert ((found.std(0) / spread - 1.0).abs() < 6.0 / math.sqrt(2 * len(found))).all()


@pytest.mark.parametrize("estimator", ["shared", "local", "marginal"])
def test_divergence_of_all_weights_together_is_exact(estimator: Any) -> None:
    model = model_of(mlp())
    guide = shaken(ps.guides.LowRank(model, rank=3))
    exact = joint(guide)
    size = exact.event_shape[0]
    prior = MultivariateNormal(
        torch.full((size,), 0.1, dtype=torch.float64), 0.49 * torch.eye(size, dtype=torch.float64)
    )
    data = torch.randn(10, 3).double(), torch.randn(10, 2).double()
    terms = ps.decompose(model, guide, data, estimator=estimator)
    assert all(row.method == "exact" for row in terms.sites)
    assert terms.kl == pytest.approx(kl_divergence(exact, prior).item(), rel=1e-9)


class Two(nn.Module):
    """Two layers side by side, whose outputs are returned together."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)


def outputs(model: Any, guide: Any, x: Tensor, interpretation: Any) -> Tensor:
    with torch.no_grad(), interpretation:
        trace = poutine.trace(guide).get_trace()
        found: Tensor = poutine.replay(model.observation, trace=trace)(x).mean
    return found


@pytest.mark.parametrize("scope", ["all", "components"])
def test_local_draws_keep_what_ties_layers(scope: str) -> None:
    # The outputs of two layers are correlated within an example, and independent between examples.
    if scope == "all":
        model = model_of(Two().double())
        guide: Any = shaken(ps.guides.LowRank(model, rank=1, init_scale=0.1), 0.7)
    else:
        model = model_of(Two().double(), prior=ps.priors.RankOne())
        guide = shaken(ps.guides.RankOne(model, components=2), 0.7)
    x, count = torch.randn(2).double(), 40_000
    local = LocalReparameterization()
    found = outputs(model, guide, x.expand(count, 2), local)
    assert set(local.treatments.values()) == {"local (exact)"}
    draws = [guide() for _ in range(1000)]
    exact = torch.stack([torch.cat([drawn[name] @ x for name in guide.site_names]) for drawn in draws]).detach()
    for values in (found, exact):
        assert torch.isfinite(values).all()
    products = [(values - values.mean(0)).prod(1) for values in (found, exact)]
    error = math.sqrt(sum(product.var().item() / len(product) for product in products))
    assert abs(products[0].mean() - products[1].mean()) < 6.0 * error
    assert ((found.std(0) / exact.std(0) - 1.0).abs() < 0.3).all()
    neighbors = (found[::2] - found.mean(0)) * (found[1::2] - found.mean(0))
    assert (neighbors.mean(0).abs() < 6.0 * neighbors.std(0) / math.sqrt(count / 2)).all()


@pytest.mark.parametrize("scope", ["all", "site"])
def test_groups_of_examples_share_what_ties_many_weights(scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.distributions.low_rank_draw._FEW_WEIGHTS", 0)
    model = model_of(Two().double())
    guide = shaken(ps.guides.LowRank(model, rank=2, scope=scope, init_scale=0.1), 0.7)
    x, count = torch.randn(2).double(), 1000
    # Three rows are two groups: the first two rows share a draw, and the last has its own.
    found = torch.stack([outputs(model, guide, x.expand(3, 2), LocalReparameterization()) for _ in range(count)])
    exact = torch.stack([torch.cat([w @ x for w in guide().values()]) for _ in range(count)]).detach()
    for row in (0, 2):
        for pair in ((0, 0), (1, 1), (0, 1)):
            products = [(values - values.mean(0))[:, list(pair)].prod(1) for values in (found[:, row], exact)]
            error = math.sqrt(sum(product.var().item() / count for product in products))
            assert abs(products[0].mean() - products[1].mean()) < 6.0 * error
    apart = (found[:, 0, 0] - found[:, 0, 0].mean()) * (found[:, 2, 0] - found[:, 2, 0].mean())
    assert apart.mean().abs() < 6.0 * apart.std() / math.sqrt(count)
    together = (found[:, 0, 0] - found[:, 0, 0].mean()) * (found[:, 1, 0] - found[:, 1, 0].mean())
    assert together.mean() > 6.0 * together.std() / math.sqrt(count)


class Twice(nn.Module):
    """A layer that is used twice, so that its weight is shared by the examples, and one that is used once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.inner(x)))


def test_where_one_layer_is_shared_all_examples_share_what_ties_them() -> None:
    model = model_of(Twice().double())
    guide = shaken(ps.guides.LowRank(model, rank=1, init_scale=0.2), 0.5)
    x = torch.randn(2).double()
    local = LocalReparameterization()
    found = torch.stack([outputs(model, guide, x.expand(3, 2), local)[0] for _ in range(1000)])
    assert local.treatments == {"inner.weight": "shared (used 2 times)", "last.weight": "local (exact)"}
    exact = []
    for _ in range(1000):
        drawn = guide()
        exact.append(drawn["last.weight"] @ drawn["inner.weight"] @ drawn["inner.weight"] @ x)
    expected = torch.stack(exact).detach()
    error = ((found.var(0) + expected.var(0)) / 1000).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 6.0 * error).all()
    squares = [values.square() for values in (found, expected)]
    error = ((squares[0].var(0) + squares[1].var(0)) / 1000).sqrt()
    assert ((squares[0].mean(0) - squares[1].mean(0)).abs() < 6.0 * error).all()


GUIDES: dict[str, Any] = {
    "low rank": partial(ps.guides.LowRank, rank=2, init_scale=0.2),
    "low rank, by site": partial(ps.guides.LowRank, rank=2, scope="site", init_scale=0.2),
    "matrix": partial(ps.guides.MatrixNormal, init_scale=0.2),
    "full": partial(ps.guides.FullCovariance, init_scale=0.2),
    "flow": partial(ps.guides.Flow, transform=affine_autoregressive, init_scale=0.2),
}


@pytest.mark.parametrize("name", GUIDES)
def test_the_elbo_is_that_of_pyro(name: str) -> None:
    model = model_of(mlp().float())
    guide = shaken(GUIDES[name](model), 0.1)
    x, y = torch.randn(10, 3), torch.randn(10, 2)
    ours = torch.tensor([ps.ELBO("local").loss(model, guide, x, y) for _ in range(150)])
    theirs = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(150)])
    error = math.sqrt((ours.var() + theirs.var()).item() / 150)
    assert abs((ours.mean() - theirs.mean()).item()) < 6.0 * error


@pytest.mark.parametrize("name", [name for name in GUIDES if name not in {"low rank", "flow"}])
@pytest.mark.parametrize("covariance", ["moments", "moments:full"])
def test_moments_of_a_network_are_those_of_draws(name: str, covariance: str) -> None:
    # A linear network after the first layer's weights, so that moments are exact.
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    model = model_of(net)
    guide = shaken(GUIDES[name](model), 0.1)
    x, draws = torch.randn(2, 3).double(), 2000
    if covariance == "moments":  # outputs of a layer are correlated, which variances alone leave out
        model = model_of(nn.Sequential(nn.Linear(3, 2)).double())
        guide = shaken(GUIDES[name](model), 0.1)
    found = ps.predict(model, guide, x, mode=covariance)
    with torch.no_grad():
        drawn = [guide() for _ in range(draws)]
        values = []
        for weights in drawn:
            out = x
            for layer in range(len(model.net)):
                out = out @ weights[f"{layer}.weight"].mT + weights[f"{layer}.bias"]
            values.append(out)
    exact = torch.stack(values)
    assert ((found.mean - exact.mean(0)).abs() < 6.0 * exact.std(0) / math.sqrt(draws)).all()
    variance = found.variance - 0.09
    error = (exact - exact.mean(0)).square().std(0) / math.sqrt(draws)
    assert ((variance - exact.var(0)).abs() < 6.0 * error).all()


def test_layers_that_depend_on_each_other_have_no_moments() -> None:
    model = model_of(mlp())
    guide = ps.guides.LowRank(model)
    with pytest.raises(ValueError, match="'0.weight'.*it depends on the draws of other sites"):
        ps.predict(model, guide, torch.randn(2, 3).double(), mode="moments")


def test_what_is_refused_by_name() -> None:
    model = model_of(mlp())
    with pytest.raises(ValueError, match="rank of at most 2, the number of weights of site '2.bias'"):
        ps.guides.LowRank(model, rank=3, scope="site")
    with pytest.raises(ValueError, match="rank of at most 26, the number of weights, got 27"):
        ps.guides.LowRank(model, rank=27)
    with pytest.raises(ValueError, match="expected a whole number from 1 up"):
        ps.guides.RankOne(model, components=0)
    with pytest.raises(ValueError, match="transform at site '0.weight'.*12 entries"):
        ps.guides.Flow(model, lambda size: affine_autoregressive(5).double())
    with pytest.raises(TypeError, match="transform at site '0.weight'.*got str"):
        ps.guides.Flow(model, lambda size: ["tanh"])
    with pytest.raises(ValueError, match="the weight of one linear layer.*got '0.weight'"):
        ps.guides.LastLayer(model)
    with pytest.raises(ValueError, match="KL.RankOneWeights .. Normal. is infinite"):
        ps.ELBO()(model, ps.guides.RankOne(model))(torch.randn(2, 3).double(), torch.randn(2, 2).double())


@pytest.mark.parametrize("name", ["FullCovariance", "MatrixNormal", "LastLayer"])
def test_a_covariance_too_large_for_memory_is_named_before_it_is_made(name: str) -> None:
    with torch.device("meta"):
        net = nn.Linear(3_000_000, 3, bias=False)
    net.weight = nn.Parameter(torch.zeros(1).expand(3, 3_000_000))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=1)
    with pytest.raises(ValueError, match=rf"guide {name}: the covariance at site 'weight'.*GiB"):
        getattr(ps.guides, name)(model)


def test_a_transform_of_torch_moves_with_the_guide() -> None:
    model = model_of(mlp())
    guide = ps.guides.Flow(model, lambda size: [TanhTransform()])
    assert guide()["0.weight"].dtype == torch.float64
    assert guide.to(torch.float32)()["0.weight"].dtype == torch.float32


def test_a_part_of_a_guide_that_ties_sites_is_its_marginal() -> None:
    model = model_of(mlp())
    guide = shaken(ps.guides.LowRank(model, rank=2))
    exact = joint(guide)
    part: Any = guide.restricted_to(["0.weight"])
    trace = poutine.trace(part).get_trace()
    marginal = MultivariateNormal(exact.loc[:12], exact.covariance_matrix[:12, :12])
    assert trace.log_prob_sum().item() == pytest.approx(marginal.log_prob(flat(trace, part)).item(), rel=1e-9)
    pyro.clear_param_store()


@pytest.mark.parametrize(
    "make",
    [
        ps.guides.Additive,
        ps.guides.LowRank,
        partial(ps.guides.LowRank, rank=1, scope="site"),
        ps.guides.MatrixNormal,
        ps.guides.FullCovariance,
        partial(ps.guides.LastLayer, sites=["2.weight"]),
    ],
)
def test_guide_starts_where_another_one_is(make: Any) -> None:
    model = model_of(mlp())
    origin = shaken(ps.guides.Additive(model))
    with torch.no_grad():  # a row's scale times a column's, as every one of them can be
        for name in origin.site_names:
            log_scale = origin.parameters_for(name)["log_scale"]
            log_scale.copy_(log_scale.mean(-1, keepdim=True) + log_scale.reshape(-1, log_scale.shape[-1]).mean(0))
    guide = make(model, init_loc=origin, init_scale=origin)
    for name in guide.site_names:
        found, expected = guide.site_distribution(name), origin.site_distribution(name)
        torch.testing.assert_close(found.mean, expected.mean)
        low_rank = 1.05 if isinstance(guide, ps.guides.LowRank) else 1.0  # what its vectors start with comes on top
        ratio = (found.variance / expected.variance).detach()
        assert (ratio > 0.999).all() and (ratio < 1 + 10 * (low_rank - 1) + 1e-6).all()
    before = guide.parameters_for(guide.site_names[0])["loc"].clone()
    shaken(origin)
    assert torch.equal(before, guide.parameters_for(guide.site_names[0])["loc"]), "they share no tensor"
    assert not any(parameter is other for parameter in guide.parameters() for other in origin.parameters())


def test_start_at_a_guide_without_moments_or_of_other_sites_is_refused() -> None:
    model = model_of(mlp())
    flow = ps.guides.Flow(model, partial(affine_autoregressive, hidden_dims=[20]))
    with pytest.raises(ValueError, match=r"site '0.weight': expected a guide whose distributions have a mean"):
        ps.guides.LowRank(model, init_loc=flow)
    other = ps.guides.Additive(model_of(nn.Sequential(nn.Linear(3, 4)).double()))
    with pytest.raises(ValueError, match="no site '2.weight'"):
        ps.guides.LowRank(model, init_loc=other)

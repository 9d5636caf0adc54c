"""The rate of random activations: in decompositions against Pyro's ELBO, as a bound of information, and in training."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from stochastic import F64, N, assert_same_mean, data, mean_and_error, model_of, network
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.layers import StochasticLinear


@pytest.mark.parametrize("num_samples", [1, 40])
def test_decompose_agrees_with_pyro(num_samples: int) -> None:
    net = network(StochasticLinear(3, 4, prior="standard"), nn.Tanh(), StochasticLinear(4, 2, prior="standard"))
    model = model_of(net, prior={"2.kernel.weight": ps.priors.Normal()})
    guide = ps.guides.Amortised(model, weights=ps.guides.Additive(model))
    x, y = data(N)
    parts = ps.decompose(model, guide, (x, y), num_samples=num_samples, batch_size=7)
    assert parts.elbo == pytest.approx(parts.data - parts.kl - parts.rate, abs=1e-9)
    assert [row.method for row in parts.rates] == ["exact", "monte carlo"]
    q = net[0].activation_distribution(x)  # type: ignore[index, operator]
    exact = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum().item()
    assert parts.rates[0].rate == pytest.approx(exact) and parts.rates[0].bits == pytest.approx(exact / N / math.log(2))
    assert parts.rate == pytest.approx(sum(row.rate for row in parts.rates))
    if num_samples > 1:
        assert parts.elbo_stderr is not None
        with torch.no_grad():
            pyros = mean_and_error(lambda: -Trace_ELBO().loss(model, guide, x, y), 300)
        assert_same_mean(pyros, (torch.tensor(parts.elbo, dtype=F64), torch.tensor(parts.elbo_stderr, dtype=F64)))


class Paths(nn.Module):
    """Two stochastic branches, and perhaps one that is not."""

    def __init__(self, around: bool) -> None:
        super().__init__()
        self.a, self.b = StochasticLinear(3, 3, prior="standard"), StochasticLinear(3, 3, prior="standard")
        self.around, self.out = nn.Linear(3, 3) if around else None, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        h: Any = self.a(x) + self.b(x)
        return self.out(h if self.around is None else h + self.around(x))


@pytest.mark.parametrize("around", [False, True])
def test_information_is_bounded_only_where_all_paths_cross_draws(around: bool) -> None:
    model = model_of(Paths(around))
    x, y = data(N)
    parts = ps.decompose(model, ps.guides.Additive(model), (x, y))
    assert not any(row.cuts for row in parts.rates)
    assert (parts.information_bound is None) == around
    if not around:
        assert parts.information_bound == pytest.approx(parts.rate / N)
    assert ("rate of h alone" in str(parts)) == around


def test_equal_examples_show_no_bound() -> None:
    model = model_of(network(StochasticLinear(3, 2, prior="standard")))
    dead = model_of(network(StochasticLinear(3, 2, prior="standard"), nn.Linear(2, 2)))
    with torch.no_grad():
        dead.net[1].weight.zero_()  # type: ignore[index, union-attr]
    x, y = data(N)
    guide = ps.guides.Additive(model)
    assert ps.decompose(model, guide, (x, y)).information_bound is not None
    assert ps.decompose(dead, guide, (x, y)).information_bound is None


def test_a_rate_is_an_upper_bound_of_the_information() -> None:
    """With two equally likely inputs and one Gaussian activation, by quadrature."""
    net = network(StochasticLinear(1, 1, prior="standard"))
    x = torch.tensor([[-1.0], [1.0]], dtype=F64)
    q = net[0].activation_distribution(x)  # type: ignore[index, operator]
    h = torch.linspace(-15.0, 15.0, 60_001, dtype=F64)
    density = q.log_prob(h[:, None, None])[..., 0].exp()
    mixed = density.mean(1, keepdim=True)
    information = ((density * (density / mixed.clamp_min(1e-300)).clamp_min(1e-300).log()).mean(1)).sum() * 30 / 60_000
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(1.0), num_data=2)
    parts = ps.decompose(model, ps.guides.Additive(model), (x, torch.zeros(2, 1, dtype=F64)))
    assert parts.information_bound is not None
    assert 0.0 <= information.item() <= parts.information_bound


def test_fit_reports_and_weights_the_rate() -> None:
    x, y = data(N)
    rates = []
    for rate_weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = model_of(network(StochasticLinear(3, 4, prior="standard"), nn.Linear(4, 2)))
        run = ps.fit(
            model, ps.guides.Amortised(model), (x, y), epochs=30, lr=0.05, batch_size=20, seed=0, progress=False,
            rate_weight=rate_weight, compile=False,
        )  # fmt: skip
        last = {name: run.history[name][-1] for name in ("elbo", "data", "kl", "rate", "penalty", "loss")}
        assert last["elbo"] == pytest.approx(last["data"] - last["kl"] - last["rate"] - last["penalty"])
        assert last["loss"] == pytest.approx(last["kl"] + rate_weight * last["rate"] - last["data"])
        assert "rate" in str(run)
        rates.append(last["rate"])
    assert rates[1] < 0.5 * rates[0]
    with pytest.raises(ValueError, match="rate_weight"):
        ps.fit(model, ps.guides.Amortised(model), (x, y), epochs=1, rate_weight=-1.0)


def test_a_weight_without_a_rate_is_refused() -> None:
    model = model_of(network(StochasticLinear(3, 4), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="rate_weight=0.5: no activation of Sequential has a prior"):
        ps.fit(model, ps.guides.Additive(model), data(), epochs=1, rate_weight=0.5, progress=False, compile=False)

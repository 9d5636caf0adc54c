"""Random activations as Pyro sites where a wrong result would be easy: rows that are no examples, half precision."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from stochastic import F64, N, assert_same_mean, data, mean_and_error, model_of, network
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.layers import StochasticLinear


def test_score_gradients_where_examples_meet() -> None:
    """Batch statistics carry an example's draw into the costs of the others."""

    class Centered(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return 3.0 * (h - h.mean(0))

    net = network(
        StochasticLinear(2, 1, distribution="bernoulli", gradient="score", prior="standard"),
        Centered(),
        nn.Linear(1, 2),
    )
    model = model_of(net)
    x, y = data(3, 2)
    (logits,) = net[0].outputs(x)  # type: ignore[operator, index]
    truth: Any = 0.0
    for values in itertools.product((0.0, 1.0), repeat=3):
        h = torch.tensor(values, dtype=F64)[:, None]
        weight = torch.where(h > 0.5, logits.sigmoid(), logits.neg().sigmoid()).prod()
        truth = truth - weight * dist.Categorical(logits=net[1:](h)).log_prob(y).sum()  # type: ignore[index]
    kl = torch.distributions.kl_divergence(dist.Bernoulli(logits=logits), dist.Bernoulli(torch.full_like(logits, 0.5)))
    weight = net[0].kernel.weight  # type: ignore[index, union-attr]
    (expected,) = torch.autograd.grad(N / 3 * (truth + kl.sum()), weight)
    assert model.examples_meet(x)
    loss = ps.ELBO()(model, ps.guides.Additive(model))
    found = mean_and_error(lambda: torch.autograd.grad(loss(x, y), weight)[0], 800)
    assert_same_mean(found, (expected, torch.zeros_like(expected)))
    # Costs taken one by one, which is wrong here, would be told apart.
    model._keeps_examples_apart = lambda x: True  # type: ignore[method-assign]
    wrong = mean_and_error(lambda: torch.autograd.grad(loss(x, y), weight)[0], 800)
    assert ((wrong[0] - expected).abs() > 8.0 * wrong[1]).any()


@pytest.mark.parametrize("steps", [2, 3])
def test_score_gradients_with_time_first(steps: int) -> None:
    """As many steps as examples look like examples, but are none."""

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = StochasticLinear(1, 1, distribution="bernoulli", gradient="score", prior="standard")
            self.out = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Any:
            h: Any = self.layer(x)  # (time, batch, 1)
            return self.out(h.sum(0))

    net = TimeFirst().double()
    with torch.no_grad():
        net.out.weight.mul_(5.0)
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=2, in_dims=1)
    x, y = torch.randn(steps, 2, 1, dtype=F64), torch.tensor([0, 1])
    (logits,) = net.layer.outputs(x)
    truth: Any = 0.0
    for values in itertools.product((0.0, 1.0), repeat=2 * steps):
        h = torch.tensor(values, dtype=F64).reshape(logits.shape)
        weight = torch.where(h > 0.5, logits.sigmoid(), logits.neg().sigmoid()).prod()
        truth = truth - weight * dist.Categorical(logits=net.out(h.sum(0))).log_prob(y).sum()
    kl = torch.distributions.kl_divergence(dist.Bernoulli(logits=logits), dist.Bernoulli(torch.full_like(logits, 0.5)))
    (expected,) = torch.autograd.grad(truth + kl.sum(), net.layer.kernel.weight)
    loss = ps.ELBO()(model, ps.guides.Additive(model))
    found = mean_and_error(lambda: torch.autograd.grad(loss(x, y), net.layer.kernel.weight)[0], 800)
    assert_same_mean(found, (expected, torch.zeros_like(expected)))


def test_rates_in_half_precision_keep_their_digits() -> None:
    net = nn.Sequential(StochasticLinear(3, 4, prior="standard"), nn.Linear(4, 2))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=N)
    guide = ps.guides.Additive(model)
    x, y = data()
    with torch.autocast("cpu", torch.bfloat16):
        terms = ps.ELBO().terms(model, guide, x.float(), y)
        outputs = net[0].outputs(x.float())  # type: ignore[operator]
        drawn = net[0](x.float())
    assert outputs[0].dtype is torch.bfloat16 and drawn.dtype is torch.bfloat16
    loc, scale = outputs[0].double(), nn.functional.softplus(outputs[1].double())
    exact = (0.5 * (loc.square() + scale.square() - 1.0) - scale.log()).sum(1)
    assert torch.allclose(terms.rates["0"].by_example.double(), exact, rtol=1e-5)


@pytest.mark.parametrize("vectorized", ["particles", "predictive"])
def test_draws_for_several_particles_at_once_are_refused(vectorized: str) -> None:
    model = model_of(network(StochasticLinear(3, 2, prior="standard"), nn.Linear(2, 2)))
    guide = ps.guides.Amortised(model)
    x, y = data()
    with pytest.raises(ValueError, match=r"layer '0'.*draw in a loop"):
        if vectorized == "particles":
            Trace_ELBO(num_particles=2, vectorize_particles=True).loss(model, guide, x, y)
        else:
            Predictive(model, guide=guide, num_samples=3, parallel=True)(x)

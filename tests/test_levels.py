"""Weights on a grid: the distribution, its KL, the guide that trains it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import pyrostoch as ps
from pyrostoch.distributions import Grid, Levels

F64 = {"dtype": torch.float64}
LEVELS = (-1.0, 0.5, 2.0, 3.0)


def distribution(scale=0.7):
    torch.manual_seed(0)
    return Levels(torch.randn(3, 4, **F64), LEVELS, torch.tensor(scale, **F64))


def test_draws_have_the_probabilities_and_moments_of_the_distribution():
    q, values = distribution(), torch.tensor(LEVELS, **F64)
    drawn = q.sample((50_000,))
    for number, level in enumerate(LEVELS):
        share, p = (drawn == 0.7 * level).double().mean(0), q.probs[:, number]
        assert ((share - p).abs() < 4.5 * (p * (1 - p) / len(drawn)).sqrt()).all()
        torch.testing.assert_close(q.log_prob(torch.full((3,), 0.7 * level, **F64)), p.log())
    torch.testing.assert_close(q.mean, 0.7 * q.probs @ values)
    torch.testing.assert_close(q.variance, 0.49 * (q.probs @ values**2 - (q.probs @ values) ** 2))
    unchecked = Levels(q.logits, LEVELS, q.scale, validate_args=False)
    assert (unchecked.log_prob(torch.full((3,), 0.1, **F64)) == -math.inf).all()
    assert q.support.check(drawn).all()
    assert not q.support.check(drawn + 0.1).any()
    wide = q.expand((5, 3))
    assert wide.sample((2,)).shape == (2, 5, 3) and torch.equal(wide.mean[4], q.mean)
    assert torch.equal(q.states(), q.probs.argmax(-1).to(torch.int8))


def test_gradients_of_a_draw_in_logits_and_scale():
    logits, scale = torch.randn(3, 4, **F64, requires_grad=True), torch.tensor(0.7, **F64, requires_grad=True)
    q, weights = Levels(logits, LEVELS, scale), torch.tensor([1.0, -2.0, 0.5], **F64)
    drawn = q.rsample()
    by_logits, by_scale = torch.autograd.grad((drawn * weights).sum(), (logits, scale))
    (by_mean,) = torch.autograd.grad((q.mean * weights).sum(), logits)
    torch.testing.assert_close(by_logits, by_mean)
    torch.testing.assert_close(by_scale, (drawn.detach() / 0.7 * weights).sum())


def test_kl_to_the_grid_is_a_sum_over_levels():
    q = distribution()
    by_hand = (q.probs * (q.probs * 4).log()).sum(-1)
    torch.testing.assert_close(kl_divergence(q, Grid()), by_hand)
    assert kl_divergence(Levels(torch.zeros(5, 3)), Grid()).abs().max() < 1e-6
    with pytest.raises(ValueError, match="KL.Levels .. Normal. is infinite.*Grid"):
        kl_divergence(q, Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="Grid is an improper prior"):
        Grid().sample()


def test_the_guide_starts_at_the_weights_of_the_network_and_learns_levels():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    truth = torch.tensor([[2.0, 0.0, -2.0, 0.0, 2.0, -2.0]])
    y = x @ truth.T + 0.1 * torch.randn(400, 1)
    model = ps.BayesianModel(
        nn.Linear(6, 1, bias=False),
        prior=ps.priors.Grid(),
        likelihood=ps.likelihoods.Gaussian(0.1),
        num_data=400,
    )
    guide = ps.guides.CategoricalWeights(model)
    start = guide.site_distribution("weight").base_dist
    assert (start.mean - model.net.weight).abs().max() < model.net.weight.abs().max()
    ps.fit(model, guide, (x, y), epochs=150, batch_size=100, lr=0.05, compile=False, progress=False, seed=0)
    found = guide.site_distribution("weight").base_dist
    assert found.states().tolist() == [[2, 1, 0, 1, 2, 0]]
    assert found.scale[0, 0].item() == pytest.approx(2.0, abs=0.05)
    terms = ps.decompose(model, guide, (x, y))
    assert terms.kl == pytest.approx(6 * math.log(3.0), abs=0.1)
    rows = ps.compare(model, guide, (x, y), modes=("mean", "mc:5", "moments"))
    assert all(row.rmse < 0.15 for row in rows.rows)


@pytest.mark.parametrize("estimator", ["local", "shared", "marginal", "moments"])
def test_every_estimator_takes_weights_on_a_grid(estimator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    model = ps.BayesianModel(net, prior=ps.priors.Grid(), likelihood=ps.likelihoods.Categorical(), num_data=5)
    guide = ps.guides.CategoricalWeights(model, levels=(-1.0, 1.0))
    ps.ELBO(estimator)(model, guide)(torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 1, 0, 1])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in guide.parameters())


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected 4 increasing levels"):
        Levels(torch.zeros(4), (-1.0, 0.0, 1.0))
    model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Grid(), likelihood=ps.likelihoods.Gaussian(), num_data=3)
    with pytest.raises(ValueError, match="CategoricalWeights levels"):
        ps.guides.CategoricalWeights(model, levels=(1.0, -1.0))
    with pytest.raises(ValueError, match="CategoricalWeights width"):
        ps.guides.CategoricalWeights(model, width=0.0)


def test_many_levels_half_precision_and_levels_with_probability_zero():
    torch.manual_seed(0)
    logits = torch.zeros(1, 200)
    logits[0, 150] = 50.0
    assert Levels(logits, tuple(map(float, range(200)))).states().item() == 150
    probs = torch.tensor([0.001, 0.998, 0.001])
    drawn = Levels(probs.log().bfloat16().expand(1_000_000, 3)).sample()
    assert (drawn != 0.0).double().mean().item() == pytest.approx(0.002, rel=0.15)
    distribution = Levels(torch.tensor([0.0, 0.0, -torch.inf]))
    assert distribution.entropy().item() == pytest.approx(math.log(2.0))


def test_weights_that_are_all_zero_have_no_scale():
    net = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(net.weight)
    model = ps.BayesianModel(net, prior=ps.priors.Grid(), likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
    with pytest.raises(ValueError, match="own weights at site 'weight' are 0, so that no scale"):
        ps.guides.CategoricalWeights(model)


def test_a_weight_that_is_one_number_is_exported():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return self.factor * x

    model = ps.BayesianModel(Scaled(), prior=ps.priors.Grid(), likelihood=ps.likelihoods.Gaussian(0.1), num_data=5)
    guide = ps.guides.CategoricalWeights(model)
    distribution = guide.site_distribution("factor")
    assert distribution.batch_shape == () and guide.export(model).factor.item() == distribution.scale.item()

"""Prediction compared with closed forms of linear Gaussian models, and with averages over stored draws."""

from __future__ import annotations

import gc
import math
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyrostoch as ps
from pyrostoch.prediction import batched_sampling
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.prediction.predict import predict

F64 = {"dtype": torch.float64}
NOISE = 0.3


def linear(outputs=1, scale=0.4, likelihood=None, **kwargs):
    """Build a linear network whose predictive distribution is known in closed form."""
    net = nn.Linear(3, outputs, bias=False, **F64)
    likelihood = ps.likelihoods.Gaussian(NOISE) if likelihood is None else likelihood
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=10)
    return model, ps.guides.Additive(model, init_scale=scale, **kwargs)


def classifier(classes=3):
    net = nn.Sequential(nn.Linear(3, 5, **F64), nn.Tanh(), nn.Linear(5, classes, **F64))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=10)
    return model, ps.guides.Additive(model, init_scale=0.8)


def kept_draws(model, guide, x, count):
    """Distributions of the observations from weights drawn by the guide, one draw after another."""
    distributions = []
    for _ in range(count):
        with torch.no_grad():
            weights = guide()
            distributions.append(model.likelihood(torch.func.functional_call(model.net, weights, (x,))))
    return distributions


def test_mean_is_the_network_with_mean_weights():
    model, guide = linear()
    x = torch.randn(6, 3, **F64)
    found = predict(model, guide, x, mode="mean", batch_size=4)
    distribution = guide.site_distribution("weight")
    torch.testing.assert_close(found.mean, x @ distribution.mean.detach().T)
    torch.testing.assert_close(found.variance, torch.full_like(found.mean, NOISE**2), rtol=1e-6, atol=0)
    assert not found.epistemic.any()
    assert found.treatments == {"weight": "shared"} and found.num_samples == 1 and len(found) == 6


@pytest.mark.parametrize("joint", [False, True])
def test_mc_has_the_exact_moments_of_linear_regression(joint):
    model, guide = linear()
    x = torch.randn(5, 3, **F64)
    draws = 1500
    base = guide.site_distribution("weight").base_dist
    mean = x @ base.mean.detach().T
    spread = x.square() @ base.variance.detach().T
    # Within a deviation of the mean: far out, few of the draws have any density.
    y = mean + (2.0 * torch.rand(5, 1, **F64) - 1.0) * (spread + NOISE**2).sqrt()
    found = predict(model, guide, x, y=y, mode=f"mc:{draws}", joint=joint, batch_size=3)
    assert ((found.mean - mean).abs() < 5 * (spread / draws).sqrt()).all()
    assert ((found.epistemic / spread - 1).abs() < 5 * math.sqrt(2 / draws)).all()
    torch.testing.assert_close(found.aleatoric, torch.full_like(mean, NOISE**2), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance, found.aleatoric + found.epistemic)
    torch.testing.assert_close(found.total, found.variance)
    # The error of the log of an average is its relative error, from the closed second moment of the density.
    total = (spread + NOISE**2).squeeze()
    error = (y - mean).squeeze()
    exact = dist.Normal(mean.squeeze(), total.sqrt()).log_prob(error + mean.squeeze())
    second = -0.5 * torch.log(2 * math.pi * NOISE**2 * torch.ones_like(total)) - 0.5 * math.log(2)
    second = second + dist.Normal(0.0, (NOISE**2 / 2 + spread.squeeze()).sqrt()).log_prob(error)
    relative = ((second - 2 * exact).exp() - 1).clamp(min=0).sqrt() / math.sqrt(draws)
    assert relative.max() < 0.2
    assert ((found.log_density - exact).abs() < 5 * relative + 1e-3).all()
    assert found.treatments == {"weight": "shared" if joint else "local (exact)"}


def test_every_marginal_is_exact_where_a_weight_is_used_at_many_positions():
    net = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False, **F64), nn.Flatten(), nn.Linear(5, 1, bias=False, **F64))
    nn.init.ones_(net[2].weight)
    prior = {"0.*": ps.priors.Normal()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(NOISE), num_data=4)
    guide = ps.guides.Additive(model, init_loc=0.0, init_scale=0.4)
    found = predict(model, guide, torch.ones(4, 1, 5, **F64), mode="mc:1500")
    # The sum over five positions has 25 times the variance of the weight; with separate draws it would have 5 times.
    assert found.epistemic.mean().item() == pytest.approx(25 * 0.4**2, rel=5 * math.sqrt(2 / 1500))
    assert found.treatments == {"0.weight": "shared (convolution)"}


def test_joint_averages_equal_those_over_stored_draws():
    model, guide = classifier()
    x, y = torch.randn(7, 3, **F64), torch.randint(3, (7,))
    torch.manual_seed(3)
    distributions = kept_draws(model, guide, x, 9)
    torch.manual_seed(3)
    found = predict(model, guide, x, y=y, mode="mc:9", joint=True, batch_size=2)
    probs = torch.stack([distribution.probs for distribution in distributions])
    mean = probs.mean(0)
    torch.testing.assert_close(found.probs, mean)
    torch.testing.assert_close(found.total, torch.special.entr(mean).sum(-1))
    torch.testing.assert_close(found.aleatoric, torch.special.entr(probs).sum(-1).mean(0))
    torch.testing.assert_close(found.epistemic, found.total - found.aleatoric)
    expected = torch.stack([distribution.log_prob(y) for distribution in distributions]).logsumexp(0) - math.log(9)
    torch.testing.assert_close(found.log_density, expected)
    torch.testing.assert_close(found.log_prob(y), expected)


def test_joint_regression_density_equals_that_of_stored_draws():
    model, guide = linear(outputs=2)
    x, y = torch.randn(4, 3, **F64), torch.randn(4, 2, **F64)
    torch.manual_seed(3)
    distributions = kept_draws(model, guide, x, 6)
    torch.manual_seed(3)
    found = predict(model, guide, x, y=y, num_samples=6, joint=True, batch_size=3)
    torch.testing.assert_close(
        found.log_density, torch.stack([f.log_prob(y) for f in distributions]).logsumexp(0) - math.log(6)
    )
    torch.testing.assert_close(found.mean, torch.stack([distribution.mean for distribution in distributions]).mean(0))
    assert found.mean.shape == (4, 2) and found.log_density.shape == (4,)


def test_joint_draws_one_weight_for_the_whole_input_and_marginal_does_not():
    model, guide = linear()
    x = torch.randn(1, 3, **F64).expand(6, 3)
    joint = predict(model, guide, x, mode="mc:3", joint=True, batch_size=2).mean
    assert torch.allclose(joint, joint[:1].expand_as(joint), rtol=1e-14)
    marginal = predict(model, guide, x, mode="mc:3", batch_size=2).mean
    assert len(marginal.unique()) == 6


def test_uncertainties_of_a_variance_network_need_draws():
    net = nn.Sequential(nn.Linear(2, 50, bias=False, **F64), nn.ReLU(), nn.Linear(50, 3, bias=False, **F64))
    model = ps.BayesianModel(net, prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=5)
    guide = ps.guides.VarianceOnly(model)
    x = 100 * torch.ones(4, 2, **F64)
    mean = predict(model, guide, x, mode="mean")
    torch.testing.assert_close(mean.probs, torch.full((4, 3), 1 / 3, **F64))
    drawn = predict(model, guide, x, mode="mc:30")
    assert (drawn.aleatoric < 0.9 * math.log(3)).all()
    assert mean.epistemic.max() < 1e-12 < drawn.epistemic.min()


class Switching(nn.Module):
    """A network in which evaluation mode matters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4, **F64)
        self.norm = nn.BatchNorm1d(4, **F64)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 1, **F64)
        self.seen = []

    def forward(self, x):
        self.seen.append((len(x), self.norm.training, self.drop.training))
        if not torch.isfinite(x).all() or (x > 1e6).any():
            raise ArithmeticError("the network failed")
        return self.last(self.drop(self.norm(self.first(x))))


@pytest.mark.parametrize("mode", ["mean", "mc:2"])
@pytest.mark.parametrize("fail", [False, True])
def test_batchnorm_and_dropout_stay_off_and_every_mode_is_restored(mode, fail):
    net = Switching()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=9)
    guide = ps.guides.Additive(model)
    model.train()
    net.norm.eval()
    guide.eval()
    both = nn.ModuleList([model, guide])
    modes = {name: module.training for name, module in both.named_modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    x = torch.randn(9, 3, **F64)
    if fail:
        x[-1] = 1e7
        with pytest.raises(ArithmeticError):
            predict(model, guide, x, mode=mode, batch_size=4)
    else:
        predict(model, guide, x, mode=mode, batch_size=4)
        assert max(count for count, _, _ in net.seen) == 4
    assert not any(norm or drop for _, norm, drop in net.seen)
    assert modes == {name: module.training for name, module in both.named_modules()}
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name]), name
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("vectorized", [False, True])
def test_memory_does_not_grow_with_the_number_of_draws(monkeypatch, joint, vectorized):
    alive, most = weakref.WeakSet(), []
    statistics = DrawAverage.statistics

    def counted(self, distribution):
        alive.add(distribution.logits)
        gc.collect()  # a trace refers to itself
        most.append(len(alive))
        return statistics(self, distribution)

    monkeypatch.setattr(DrawAverage, "statistics", counted)
    # Four examples of three logits, in float64: two draws fit into memory, or only one.
    monkeypatch.setattr(batched_sampling, "_MAX_BYTES", {"cpu": 2 * 4 * 3 * 8 if vectorized else 1, "cuda": 1})
    model, guide = classifier()
    gc.collect()
    gc.freeze()  # only new objects are collected, which is quick
    try:
        predict(model, guide, torch.randn(8, 3, **F64), mode="mc:12", batch_size=4, joint=joint)
    finally:
        gc.unfreeze()
    assert len(most) >= 6 and max(most) <= 2


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_bernoulli_is_two_classes(shape):
    likelihood = ps.likelihoods.FromOutput(lambda out: dist.Bernoulli(logits=out.reshape(len(out), *shape[1:])))
    model, guide = linear(likelihood=likelihood)
    x, y = torch.randn(4, 3, **F64), torch.tensor([0.0, 1.0, 1.0, 0.0], **F64).reshape(shape)
    found = predict(model, guide, x, y=y, mode="mean")
    logits = (x @ guide.site_distribution("weight").mean.detach().T).squeeze()
    torch.testing.assert_close(found.probs, torch.stack([(-logits).sigmoid(), logits.sigmoid()], -1))
    torch.testing.assert_close(found.log_prob(y), found.log_density)
    with pytest.raises(ValueError, match="labels from 0 to 1, got 1 others, among them 0.5"):
        found.log_prob(torch.tensor([0.5, 1.0, 1.0, 0.0]))


def test_several_bernoullis_and_counts_have_means_and_variances():
    model, guide = linear(outputs=2, likelihood=ps.likelihoods.Bernoulli())
    x = torch.randn(4, 3, **F64)
    found = predict(model, guide, x, mode="mean")
    probs = (x @ guide.site_distribution("weight").mean.detach().T).sigmoid()
    torch.testing.assert_close(found.mean, probs)
    torch.testing.assert_close(found.variance, probs * (1 - probs))
    model, guide = linear(outputs=2, likelihood=ps.likelihoods.Poisson())
    found = predict(model, guide, x, mode="mean")
    torch.testing.assert_close(found.mean, found.variance)
    with pytest.raises(ValueError, match="not classes"):
        _ = found.probs
    with pytest.raises(ValueError, match="predict.*y=y"):
        found.log_prob(torch.zeros(4, 2))


def test_classes_at_many_positions():
    likelihood = ps.likelihoods.FromOutput(lambda out: dist.Categorical(logits=out.reshape(-1, 2, 3)))
    model, guide = linear(outputs=6, likelihood=likelihood)
    x, y = torch.randn(4, 3, **F64), torch.randint(3, (4, 2))
    torch.manual_seed(3)
    distributions = kept_draws(model, guide, x, 5)
    torch.manual_seed(3)
    found = predict(model, guide, x, y=y, mode="mc:5", joint=True)
    torch.testing.assert_close(
        found.probs, torch.stack([distribution.base_dist.probs for distribution in distributions]).mean(0)
    )
    torch.testing.assert_close(
        found.log_density, torch.stack([f.log_prob(y) for f in distributions]).logsumexp(0) - math.log(5)
    )
    assert found.total.shape == (4, 2)
    with pytest.raises(ValueError, match="log_density"):
        found.log_prob(y)


def test_several_inputs():
    net = nn.Bilinear(2, 3, 1, **F64)
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=5)
    guide = ps.guides.Additive(model, init_scale=1e-9)
    x = (torch.randn(5, 2, **F64), torch.randn(5, 3, **F64))
    for inputs in (x, list(x)):
        found = predict(model, guide, inputs, mode="mc:2", batch_size=2).mean
        torch.testing.assert_close(found, net(*x).detach(), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"as many examples in each input, got 5, 4;"):
        predict(model, guide, (x[0], x[1][:4]))


class Coin:
    """A Pyro model that is not a BayesianModel."""

    def observation(self, x):
        rate = pyro.sample("rate", dist.Beta(torch.tensor(2.0, **F64), torch.tensor(1.0, **F64)))
        return dist.Geometric(rate.expand(len(x)))


def test_any_model_with_an_observation():
    def guide(x):
        return pyro.sample("rate", dist.Beta(torch.tensor(8.0, **F64), torch.tensor(4.0, **F64)))

    found = predict(Coin(), guide, torch.zeros(3, 1), mode="mc:2000", y=torch.tensor([0.0, 1.0, 2.0], **F64))
    # Probabilities of a geometric distribution under a beta posterior: B(9, 4 + k) / B(8, 4).
    k = torch.arange(3.0, **F64)
    beta = torch.lgamma(torch.tensor(8.0)) + torch.lgamma(torch.tensor(4.0)) - torch.lgamma(torch.tensor(12.0))
    exact = torch.lgamma(torch.tensor(9.0)) + torch.lgamma(4 + k) - torch.lgamma(13 + k) - beta
    torch.testing.assert_close(found.log_density, exact, rtol=0, atol=0.06)
    assert predict(Coin(), guide, torch.zeros(3, 1), mode="mean").mean[0].item() == pytest.approx(0.5)


def test_autoguides_and_random_scales():
    model = ps.BayesianModel(
        nn.Linear(3, 1, **F64),
        prior=ps.priors.Hierarchical(),
        likelihood=ps.likelihoods.Gaussian(dist.HalfNormal(1.0)),
        num_data=6,
    )
    x, y = torch.randn(6, 3, **F64), torch.randn(6, 1, **F64)
    for options in ({"mode": "mc:3"}, {"mode": "mc:3", "joint": True}, {"mode": "mean"}):
        assert torch.isfinite(predict(model, ps.guides.Additive(model), x, **options).variance).all()
    model, _ = linear()
    auto = AutoNormal(model)
    auto(x, y)
    assert predict(model, auto, x, mode="mc:3").treatments == {"weight": "shared (a point)"}


def test_a_draw_gives_one_distribution_of_the_observations_under_replay():
    model, guide = linear()
    x = torch.randn(4, 3, **F64)
    torch.manual_seed(5)
    with ps.effects.LocalReparameterization(factorized=False, lazy=True):
        distribution = poutine.replay(model.observation, trace=poutine.trace(guide).get_trace(x))(x)
    torch.manual_seed(5)
    torch.testing.assert_close(predict(model, guide, x, mode="mc:1").mean, distribution.mean.detach())


@pytest.mark.gpu
def test_inputs_are_moved_to_the_model():
    model, guide = linear(scale=1e-6)
    x = torch.randn(5, 3, **F64)
    here = predict(model, guide, x, mode="mean")
    model.cuda(), guide.cuda()
    there = predict(model, guide, x, mode="mean", device="cuda", batch_size=2)
    torch.testing.assert_close(there.mean.cpu(), here.mean)
    with pytest.raises(ValueError, match="give device='cuda:0'"):
        predict(model, guide, x)

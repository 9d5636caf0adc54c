"""The decomposed ELBO against closed forms, quadrature and Pyro's own ELBOs."""

from __future__ import annotations

import json
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.infer.elbo import ESTIMATORS
from pyrostoch.prediction.decompose import decompose

# The estimators that draw; moments have their own tests.
DRAWN = [name for name in ESTIMATORS if not name.startswith("moments")]

F64 = {"dtype": torch.float64}
NOISE, PRIOR = 0.5, 0.8
GUIDES = {
    "additive": lambda m: ps.guides.Additive(m, init_scale=0.3),
    "weight": lambda m: ps.guides.WeightwiseAlpha(m, init_log_alpha=-1.0),
    "layer": lambda m: ps.guides.LayerwiseAlpha(m, init_log_alpha=-1.0),
    "variance": ps.guides.VarianceOnly,
}


def regression(prior=None, noise=NOISE, count=12, **kwargs):
    """Linear regression whose inputs are orthogonal, so that the exact posterior has independent weights."""
    model = ps.BayesianModel(
        nn.Linear(3, 1, bias=False, **F64),
        prior=ps.priors.Normal(0.0, PRIOR) if prior is None else prior,
        likelihood=ps.likelihoods.Gaussian(noise),
        num_data=count,
        **kwargs,
    )
    generator = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(count, 3, generator=generator, **F64))[0] * torch.tensor([2.0, 3.0, 1.0], **F64)
    y = x @ torch.tensor([[0.5], [-1.0], [0.2]], **F64) + 0.3 * torch.randn(count, 1, generator=generator, **F64)
    return model, x, y


def moments(guide):
    base = guide.site_distribution("weight").base_dist
    return base.mean[0].detach(), base.variance[0].detach()


def exact_data_term(guide, x, y):
    """The closed form for a guide with independent weights, which depends on their moments only."""
    mean, variance = moments(guide)
    squares = (y[:, 0] - x @ mean).square() + x.square() @ variance
    return (-squares / (2 * NOISE**2) - math.log(NOISE) - 0.5 * math.log(2 * math.pi)).sum().item()


def exact_kl(guide):
    base = guide.site_distribution("weight").base_dist
    prior = dist.Normal(torch.zeros((), **F64), torch.tensor(PRIOR, **F64))
    return torch.distributions.kl_divergence(base, prior).sum().item()


def exact_posterior(x, y):
    """Means and variances of the posterior; the inputs are orthogonal."""
    variance = 1 / (x.square().sum(0) / NOISE**2 + 1 / torch.tensor(PRIOR, **F64).square())
    return variance * (x.T @ y)[:, 0] / NOISE**2, variance


def log_evidence(x, y):
    covariance = torch.tensor(PRIOR, **F64).square() * x @ x.T + NOISE**2 * torch.eye(len(x), **F64)
    return dist.MultivariateNormal(torch.zeros(len(x), **F64), covariance).log_prob(y[:, 0]).item()


def within(found, truth, stderr, floor=1e-9):
    """Whether a Monte-Carlo result is within five of its standard errors of the truth."""
    return stderr is not None and abs(found - truth) <= 5 * stderr + floor


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("guide", GUIDES)
def test_terms_equal_the_closed_form(guide, estimator):
    model, x, y = regression()
    guide = GUIDES[guide](model)
    found = decompose(model, guide, (x, y), num_samples=100, batch_size=5, estimator=estimator)
    assert within(found.data, exact_data_term(guide, x, y), found.data_stderr)
    assert (
        (found.data_stderr == 0.0)
        if estimator.startswith("moments")
        else (0 < found.data_stderr < 0.3 * abs(found.data))
    )
    assert found.num_samples == (0 if estimator.startswith("moments") else 100)
    assert found.kl == pytest.approx(exact_kl(guide), rel=1e-12) and found.kl_stderr == 0.0 and found.kl_samples == 0
    assert found.elbo == pytest.approx(found.data - found.kl, rel=1e-14) and found.elbo_stderr == found.data_stderr
    (row,) = found.sites
    assert (row.site, row.method, row.weights, row.stderr, row.improper) == ("weight", "exact", 3, 0.0, False)


def test_the_bound_is_below_the_evidence_by_the_kl_to_the_posterior():
    model, x, y = regression()
    mean, variance = exact_posterior(x, y)
    evidence = log_evidence(x, y)
    exact = ps.guides.Additive(model, init_loc=mean.reshape(1, 3), init_scale=variance.sqrt().reshape(1, 3))
    assert exact_data_term(exact, x, y) - exact_kl(exact) == pytest.approx(evidence, abs=1e-10)
    found = decompose(model, exact, (x, y), num_samples=200)
    assert within(found.elbo, evidence, found.elbo_stderr) and found.elbo_stderr < 0.2
    wrong = ps.guides.Additive(model, init_loc=(mean + 0.3).reshape(1, 3), init_scale=0.5)
    ours, truth = dist.Normal(mean + 0.3, 0.5), dist.Normal(mean, variance.sqrt())
    gap = torch.distributions.kl_divergence(ours, truth).sum().item()
    found = decompose(model, wrong, (x, y), num_samples=200)
    assert within(evidence - found.elbo, gap, found.elbo_stderr) and gap > 10 * found.elbo_stderr


@pytest.mark.parametrize("estimator", ["shared", "marginal", "local"])
@pytest.mark.parametrize("pyros", [Trace_ELBO, TraceMeanField_ELBO])
def test_it_equals_pyros_own_elbos_in_expectation(pyros, estimator):
    x = torch.randn(20, 3, **F64)
    net = nn.Sequential(nn.Linear(3, 4, **F64), nn.Tanh(), nn.Linear(4, 3, **F64))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=20)
    guide = ps.guides.Additive(model, init_scale=0.3)
    y = (x[:, 0] > 0).long()
    with torch.no_grad():
        losses = torch.tensor([pyros().loss(model, guide, x, y) for _ in range(150)])
    found = decompose(model, guide, (x, y), num_samples=100, batch_size=20, estimator=estimator)
    error = math.hypot(losses.std().item() / math.sqrt(len(losses)), found.elbo_stderr)
    assert within(found.elbo, -losses.mean().item(), error) and error < 0.02 * abs(found.elbo)


def test_an_improper_prior_is_reported_and_its_closed_kl_equals_its_monte_carlo_estimate():
    model, x, y = regression(ps.priors.LogUniform())
    guide = ps.guides.WeightwiseAlpha(model, init_log_alpha=-1.0)
    found = decompose(model, guide, (x, y))
    distribution, prior = guide.site_distribution("weight"), ps.distributions.LogUniform().expand((1, 3)).to_event(2)
    draws = distribution.sample((4000,))
    ratios = distribution.log_prob(draws) - prior.log_prob(draws)
    assert within(found.kl, ratios.mean().item(), ratios.std().item() / math.sqrt(4000))
    assert found.improper and found.sites[0].improper and found.sites[0].method == "exact"
    assert "Improper prior on 'weight'" in str(found) and "up to a constant per weight" in str(found)
    assert "mproper" not in str(decompose(*_setup()))


def _setup(**kwargs):
    model, x, y = regression(**kwargs)
    return model, ps.guides.Additive(model, init_scale=0.3), (x, y)


def quadrature(q, p, low=-12.0, high=12.0, points=200_001):
    grid = torch.linspace(low, high, points, **F64)
    return torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid).item()


def test_a_kl_without_closed_form_is_monte_carlo_with_its_error():
    model, guide, data = _setup(prior=ps.priors.StudentT(df=3.0, scale=0.5))
    mean, variance = moments(guide)
    prior = dist.StudentT(torch.tensor(3.0, **F64), 0.0, 0.5)
    truth = sum(quadrature(dist.Normal(m, v.sqrt()), prior) for m, v in zip(mean, variance, strict=True))
    found = decompose(model, guide, data)
    assert found.kl_samples == 10 and found.sites[0].method == "monte carlo"
    assert within(found.kl, truth, found.kl_stderr) and found.kl_stderr == found.sites[0].stderr > 0
    assert found.data_stderr is None and found.elbo_stderr is None and "10 draws of the guide" in str(found)
    found = decompose(model, guide, data, num_samples=300)
    assert found.kl_samples == 300 and within(found.kl, truth, found.kl_stderr) and found.kl_stderr < 0.2 * found.kl
    assert found.elbo_stderr == pytest.approx(math.hypot(found.data_stderr, found.kl_stderr))


def test_standard_errors_are_correct():
    """Over many repetitions the deviations, in units of the stated error, have about unit variance."""
    model, guide, (x, y) = _setup()
    truth = exact_data_term(guide, x, y)
    runs = [decompose(model, guide, (x, y), num_samples=8) for _ in range(80)]
    scores = torch.tensor([(run.data - truth) / run.data_stderr for run in runs])
    assert 0.6 < scores.std() < 1.8


def test_a_random_prior_scale_makes_its_weights_kl_monte_carlo():
    model, guide, data = _setup(prior=ps.priors.Hierarchical(dist.HalfNormal(torch.tensor(1.0, **F64))))
    found = decompose(model, guide, data, num_samples=400)
    rows = {row.site: row for row in found.sites}
    assert {row.method for row in rows.values()} == {"monte carlo"}
    scale = guide.site_distribution("weight_prior_scale")
    center, width = scale.base_dist.loc.item(), scale.base_dist.scale.item()
    mean, variance = moments(guide)
    # Given the scale s the KL has a closed form; its mean over a log-normal s needs E log s and E s^-2.
    inverse = math.exp(-2 * center + 2 * width**2)
    truth = (center - 0.5 * variance.log() + (variance + mean.square()) * inverse / 2 - 0.5).sum().item()
    row = rows["weight"]
    assert within(row.kl, truth, row.stderr) and row.stderr > 0
    truth = quadrature(scale, dist.HalfNormal(torch.tensor(1.0, **F64)), 1e-6, 12.0)
    row = rows["weight_prior_scale"]
    assert within(row.kl, truth, row.stderr)
    # The two estimates are correlated, so the error of their sum is not that of independent ones.
    assert found.kl_stderr != pytest.approx(math.hypot(*(row.stderr for row in found.sites)), rel=1e-3)
    assert found.kl_stderr <= sum(row.stderr for row in found.sites)


def test_a_penalty_is_a_separate_term():
    model, x, y = regression(penalty=lambda net: net.weight.square().sum())
    found = decompose(model, ps.guides.Additive(model), (x, y))
    value = model.net.weight.square().sum().item()
    assert found.penalty == {"penalty": pytest.approx(value)}
    assert found.elbo == pytest.approx(found.data - found.kl - value) and "- penalty" in str(found)
    assert decompose(*_setup()).penalty == {}


def test_local_differs_from_shared_on_a_convolution():
    """With constant input, the variance of the sum over positions is 25 times a weight's if shared, else 5 times."""
    count, scale, positions = 30, 0.4, 5
    net = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False, **F64), nn.Flatten(), nn.Linear(positions, 1, bias=False, **F64))
    nn.init.ones_(net[2].weight)
    model = ps.BayesianModel(
        net, prior={"0.*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(1.0), num_data=count
    )
    mean = 0.05
    guide = ps.guides.Additive(model, init_loc=mean, init_scale=scale)
    data = (torch.ones(count, 1, positions, **F64), torch.zeros(count, 1, **F64))
    options = {"num_samples": 100, "batch_size": 3}
    found = {name: decompose(model, guide, data, estimator=name, **options) for name in DRAWN}

    def truth(applications):
        square = (positions * mean) ** 2 + applications * scale**2
        return -count * (square / 2 + 0.5 * math.log(2 * math.pi))

    for name in ("shared", "marginal", "flipout"):
        assert within(found[name].data, truth(positions**2), found[name].data_stderr), name
    local = found["local"]
    assert within(local.data, truth(positions), local.data_stderr)
    gap = local.data - found["marginal"].data
    assert gap > 10 * math.hypot(local.data_stderr, found["marginal"].data_stderr)
    assert local.sites[0].treatment == "local (factorized over 5 positions)"
    assert found["marginal"].sites[0].treatment == "shared (convolution)"
    assert found["shared"].sites[0].treatment == "shared"


def test_every_example_counts_once_in_every_form_of_data():
    model, x, y = regression(prior={"weight": None})
    guide = ps.guides.Additive(model)
    exact = dist.Normal(model.net(x).detach(), NOISE).log_prob(y).sum().item()
    dataset = TensorDataset(x, y)
    ways = [(x, y), dataset, DataLoader(dataset, batch_size=5, shuffle=True), [x, y]]
    for data in ways:
        for size in (1, 5, 12, 1000):
            found = decompose(model, guide, data, batch_size=size)
            assert found.data == pytest.approx(exact, rel=1e-12) and found.num_data == 12
    assert found.kl == 0 and found.sites == ()


def test_data_that_are_not_the_training_set_are_refused():
    model, guide, (x, y) = _setup()
    with pytest.raises(ValueError, match="num_data=12 examples, the training set, got 11"):
        decompose(model, guide, (x[:11], y[:11]))
    with pytest.raises(ValueError, match="num_data=12 .* got 10; .* must not drop its last batch"):
        decompose(model, guide, DataLoader(TensorDataset(x, y), batch_size=5, drop_last=True))
    with pytest.raises(ValueError, match="NaN"):
        decompose(model, guide, (x.clone().fill_(math.nan), y))
    with pytest.raises(ValueError, match=r"targets of shape \(12, 1\)"):
        decompose(model, guide, (x, y[:, 0]))
    with pytest.raises(ValueError, match="num_samples: .* got 0"):
        decompose(model, guide, (x, y), num_samples=0)
    with pytest.raises(ValueError, match="estimator: expected one of .* did you mean 'local'"):
        decompose(model, guide, (x, y), estimator="locl")
    with pytest.raises(ValueError, match="device 'meta': the model is on cpu"):
        decompose(model, guide, (x, y), device="meta")
    with pytest.raises(ValueError, match="a model that has num_data"):
        decompose(nn.Linear(3, 1), guide, (x, y))
    classes = ps.BayesianModel(
        nn.Linear(3, 2, **F64), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=12
    )
    with pytest.raises(ValueError, match="labels from 0 to 1 .* 1 outside, among them 7"):
        decompose(classes, ps.guides.Additive(classes), (x, torch.tensor([0] * 11 + [7])))


def test_the_network_is_in_evaluation_mode_and_restored():
    net = nn.Sequential(nn.Linear(3, 4, **F64), nn.BatchNorm1d(4, **F64), nn.Dropout(0.5), nn.Linear(4, 1, **F64))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(1.0), num_data=8)
    x, y = torch.randn(8, 3, **F64), torch.zeros(8, 1, **F64)
    guide = ps.guides.Additive(model)
    model.train()
    net[1].eval()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    found = [decompose(model, guide, (x, y), batch_size=size).data for size in (2, 8)]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert [module.training for module in net] == [True, False, True, True]
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_autoguides_are_decomposed_too():
    model, _, (x, y) = _setup()
    guide = AutoNormal(model, init_scale=0.3)
    guide(x, y)
    own = decompose(model, guide, (x, y), num_samples=200)
    with torch.no_grad():
        losses = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(200)])
    error = math.hypot(losses.std().item() / math.sqrt(200), own.elbo_stderr)
    assert within(own.elbo, -losses.mean().item(), error)
    assert own.sites[0].treatment == "shared (a point)"


def test_the_result_is_printed_as_a_table_and_converted_to_plain_data():
    found = decompose(*_setup(), num_samples=3)
    plain = json.loads(json.dumps(found.to_dict()))
    assert {"elbo", "data", "kl", "elbo_stderr", "improper", "num_data", "sites", "penalty"} <= set(plain)
    assert {"site", "kl", "method", "stderr", "weights", "treatment"} <= set(plain["sites"][0])
    assert plain["elbo"] == found.elbo and plain["sites"][0]["treatment"] == "local (exact)"
    text = str(found)
    parts = (
        "ELBO of 12 examples, 3 draws, estimator 'marginal'",
        "data term",
        "= ELBO",
        "exact",
        "weight",
        "local (exact)",
        "±",
    )
    for part in parts:
        assert part in text


def test_an_estimator_that_draws_nothing_runs_once():
    model, x, y = regression()
    guide = ps.guides.Additive(model)
    passes = []
    model.net.register_forward_hook(lambda *_: passes.append(1))
    found = decompose(model, guide, (x, y), num_samples=100, batch_size=5, estimator="moments")
    once = decompose(model, guide, (x, y), batch_size=5, estimator="moments")
    assert len(passes) < 60 and (found.data, found.data_stderr, found.num_samples) == (once.data, 0.0, 0)
    assert "nothing drawn" in str(found) and "±" not in str(found)


def test_a_network_with_its_own_noise_runs_for_every_draw_under_moments_too():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(len(x), 1, **F64)

    model, x, y = regression()
    model = ps.BayesianModel(
        Noisy(3, 1, bias=False, **F64), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=12
    )
    found = decompose(model, ps.guides.Additive(model), (x, y), num_samples=20, estimator="moments")
    assert found.num_samples == 20 and found.data_stderr > 0.0


def test_equal_values_have_no_standard_error():
    model, x, y = regression()
    guide = AutoDelta(model)
    guide(x, y)
    found = decompose(model, guide, (x, y), num_samples=100, estimator="shared")
    assert (found.data_stderr, found.num_samples) == (0.0, 100)

"""Bayesian networks by moments against exact twins: closed forms, shared draws of the weights, finite differences."""

from __future__ import annotations

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyrostoch as ps
from pyrostoch.effects import MomentPropagation
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.layers import MCDropout, MCDropout2d
from pyrostoch.moments import MissingRuleError, Moments, MomentSettings
from pyrostoch.moments.predictive import gaussian_points, softmax_under_gaussian
from pyrostoch.prediction.predict import predict

pytestmark = pytest.mark.usefixtures("float64")
NORMAL = ps.priors.Normal(0.0, 0.8)
COVARIANCES = pytest.mark.parametrize("covariance", ["diagonal", "full"])
MODES = pytest.mark.parametrize("mode", ["moments", "moments:full"])


def bayes(net, likelihood=None, prior=None, num_data=20):
    likelihood, prior = likelihood or ps.likelihoods.Gaussian(0.3), prior or {"*": NORMAL}
    return ps.BayesianModel(net, prior=prior, likelihood=likelihood, num_data=num_data)


def output_of(model, guide, x, covariance="diagonal", **kwargs):
    """Moments of the network's output, and the treatments."""
    with MomentPropagation(covariance, **kwargs) as how, torch.no_grad():
        trace = poutine.trace(guide).get_trace()
        return poutine.replay(model.observation, trace=trace)(x).output, how.treatments


def sampled(model, guide, x, count=20_000):
    """Outputs of the plain network for draws of the weights that all examples share, (count, B, n)."""
    with torch.no_grad():
        weights = {name: guide.site_distribution(name).expand((count,)).sample() for name in guide.site_names}
        run = torch.func.vmap(lambda drawn: torch.func.functional_call(model.net, drawn, (x,)), randomness="different")
        return run(weights).flatten(2)


def assert_like(y, found, sigmas=4.5):
    """Check that mean, variance and (if carried) covariance are within standard errors of those of the draws."""
    apart = found - found.mean(0)
    rows = [(y.loc.flatten(1), found), (y.var.flatten(1), apart.square())]
    if y.settings.full:
        rows.append((y.covariance(), apart.unsqueeze(2) * apart.unsqueeze(3)))
    for value, draws in rows:
        assert value.shape == draws.shape[1:]
        assert ((draws.mean(0) - value).abs() <= sigmas / math.sqrt(len(found)) * draws.std(0) + 1e-12).all()


ALPHAS = (ps.guides.LayerwiseAlpha, ps.guides.NeuronwiseAlpha, ps.guides.WeightwiseAlpha)
GUIDES = {"additive": partial(ps.guides.Additive, init_scale=0.4)}
GUIDES |= {guide.__name__: partial(guide, init_log_alpha=-0.5) for guide in ALPHAS}
GUIDES |= {family: partial(ps.guides.VarianceOnly, family=family) for family in ("gaussian", "bernoulli", "uniform")}
NETS = {
    "linear": (lambda: nn.Linear(3, 4), (3,)),
    "linear, tokens": (lambda: nn.Linear(3, 2), (2, 3)),
    "conv2d": (lambda: nn.Conv2d(2, 2, 2, stride=(1, 2), padding=(0, 1)), (2, 3, 3)),
    "conv2d, circular": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 2, 3)),
    "of moments": (lambda: nn.Sequential(MCDropout(0.4), nn.Linear(3, 4)), (3,)),
    "conv2d of moments": (lambda: nn.Sequential(MCDropout(0.4), nn.Conv2d(2, 2, 2, padding=1)), (2, 2, 1)),
}
PAIRS = [(guide, net) for guide in GUIDES for net in NETS if guide == "additive" or "," not in net]


@COVARIANCES
@pytest.mark.parametrize(("guide", "net"), PAIRS)
def test_layers_with_random_weights_have_the_moments_of_shared_draws(guide, net, covariance):
    make, shape = NETS[net]
    model = bayes(make())
    guide, x = GUIDES[guide](model), torch.randn(2, *shape)
    y, treatments = output_of(model, guide, x, covariance)
    assert (
        y.settings.full == (covariance == "full") and set(treatments.values()) == {"moments"} and len(treatments) == 2
    )
    assert_like(y, sampled(model, guide, x))


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding=1), (4, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2), (2, 3, 3, 2)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1, groups=2), (2, 3)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, bias=False), (2, 3, 3)),
    "only the weight": (lambda: nn.Conv2d(2, 3, 2), (2, 3, 3)),
    "only the bias": (lambda: nn.Conv2d(2, 3, 2), (2, 3, 3)),
}


@pytest.mark.parametrize("guide", ["additive", "uniform"])
@pytest.mark.parametrize("layer", LAYERS)
def test_variances_of_every_layer_are_exact(layer, guide):
    net, x = LAYERS[layer][0](), torch.randn(2, *LAYERS[layer][1])
    model = bayes(net, prior={layer.removeprefix("only the ") if "only" in layer else "*": NORMAL})
    guide = GUIDES[guide](model)
    y, _ = output_of(model, guide, x)
    means = {name: guide.site_distribution(name).mean for name in guide.site_names}
    variances = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    variances |= {name: guide.site_distribution(name).variance for name in guide.site_names}
    torch.testing.assert_close(y.loc, torch.func.functional_call(net, means, (x,)))
    torch.testing.assert_close(y.var, torch.func.functional_call(net, variances, (x.square(),)))


def test_a_full_covariance_with_random_weights_is_refused_where_it_has_no_rule():
    model = bayes(nn.Conv1d(1, 1, 2))
    with pytest.raises(ValueError, match="full covariance with random weights in conv1d: expected a linear layer"):
        predict(model, ps.guides.Additive(model), torch.ones(1, 1, 3), mode="moments:full")


def regression():
    """Linear regression, with mean and variance of the output in closed form."""
    model, x, y = bayes(nn.Linear(3, 2)), torch.randn(6, 3), torch.randn(6, 2)
    guide = ps.guides.Additive(model, init_scale=lambda site: 0.2 + torch.rand(site.init.shape))
    weight, bias = (guide.site_distribution(name).base_dist for name in ("weight", "bias"))
    mean, variance = F.linear(x, weight.mean, bias.mean), F.linear(x.square(), weight.variance, bias.variance)
    return model, guide, x, y, mean, variance


@pytest.mark.parametrize("mode", MOMENTS)
def test_linear_regression_is_predicted_in_closed_form(mode):
    model, guide, x, y, mean, variance = regression()
    found = predict(model, guide, x, y=y, mode=mode, batch_size=4)
    density = dist.Normal(mean, (variance + 0.09).sqrt()).log_prob(y).sum(1)
    rows = {"mean": mean, "variance": variance + 0.09, "total": variance + 0.09, "log_density": density}
    rows |= {"aleatoric": torch.full_like(mean, 0.09), "epistemic": variance}
    for name, exact in rows.items():
        torch.testing.assert_close(getattr(found, name), exact.detach(), rtol=1e-10, atol=1e-10)
    assert found.treatments == {"weight": "moments", "bias": "moments"} and (found.mode, found.num_samples) == (mode, 1)


@pytest.mark.parametrize("estimator", MOMENTS)
def test_the_elbo_of_linear_regression_is_exact(estimator):
    model, guide, x, y, mean, variance = regression()
    data = (dist.Normal(mean, 0.3).log_prob(y) - variance / (2 * 0.09)).sum() * 20 / 6
    prior, distributions = (
        dist.Normal(torch.zeros(()), 0.8),
        [guide.site_distribution(name).base_dist for name in model.sites],
    )
    exact = sum(torch.distributions.kl_divergence(distribution, prior).sum() for distribution in distributions) - data
    loss = ps.ELBO(estimator).differentiable_loss(model, guide, x, y)
    torch.testing.assert_close(loss, exact, rtol=0, atol=1e-9)
    both = (torch.autograd.grad(part, list(guide.parameters())) for part in (loss, exact))
    for found, gradient in zip(*both, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.pool, self.last = nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Linear(4, 3)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.first(x))))
        x = x + F.relu(self.second(x))
        return self.last(x.mean((2, 3)))


CLASSIFIERS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3)), (4,)),
    "residual conv net": (Residual, (1, 6, 6)),
}


@pytest.mark.parametrize("net", CLASSIFIERS)
def test_class_probabilities_are_near_those_of_many_draws(net):
    make, shape = CLASSIFIERS[net]
    model = bayes(make(), ps.likelihoods.Categorical(), prior=NORMAL).eval()
    guide, x = ps.guides.Additive(model, init_scale=0.3), 1.5 * torch.randn(5, *shape)
    draws = sampled(model, guide, x, 6_000).softmax(-1).mean(0)
    found = {mode: predict(model, guide, x, mode=mode) for mode in ("mc:2000", *MOMENTS)}
    errors = {mode: (prediction.probs - draws).abs() for mode, prediction in found.items()}
    for mode in MOMENTS:
        torch.testing.assert_close(found[mode].probs.sum(1), torch.ones(5))
        assert found[mode].treatments == {name: "moments" for name in model.sites}
        assert errors[mode].max() < 0.03
    for mode in ("moments", "moments:full"):
        torch.testing.assert_close(found[mode].epistemic, found["mc:2000"].epistemic, rtol=0.25, atol=0.01)
    assert errors["moments:full"].mean() < errors["moments"].mean() + 0.006


class Using(nn.Module):
    def __init__(self, use, body):
        super().__init__()
        self.head, self.body, self.use = nn.Linear(4, 4), body, use

    def forward(self, x):
        return self.use(self.body, self.head(x))


def step(body, x):
    return body(x[:, None])[0][:, 0]


def attend(body, x):
    return body(x[:, None], x[:, None], x[:, None])[0][:, 0]


def product(body, x):
    return torch.einsum("bi,oi->bo", x, body.weight)


LINEAR, LSTM = partial(nn.Linear, 4, 4, bias=False), partial(nn.LSTM, 4, 4, batch_first=True)
ATTENTION = partial(nn.MultiheadAttention, 4, 2, batch_first=True)
NORMED = partial(nn.Sequential, nn.ReLU(), nn.Sequential(nn.GroupNorm(2, 4, affine=False)))
REFUSED = {
    "tied": (lambda body, x: body(body(x)), LINEAR, "*", "site 'body.weight': moment propagation .* used 2 times"),
    "einsum": (product, LINEAR, "*", "site 'body.weight': moment propagation .* used in torch.functional.einsum"),
    "lstm": (step, LSTM, "head.*", "module 'body': moments: no rule for torch.lstm"),
    "random attention": (attend, ATTENTION, "*", "site 'body.in_proj_weight': moment propagation .*attention"),
    "attention": (attend, ATTENTION, "head.*", r"module 'body': moments: no rule .* MultiheadAttention \(attention"),
    "deep": (lambda body, x: body(x), NORMED, "head.*", "module 'body.1.0': moments: no rule for .*group_norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_moments_are_named_by_site_or_module(name):
    use, body, pattern, message = REFUSED[name]
    model = bayes(Using(use, body()), prior={pattern: NORMAL})
    guide, x, y = ps.guides.Additive(model), torch.randn(3, 4), torch.randn(3, 4)
    with pytest.raises((ValueError, MissingRuleError), match=message):
        predict(model, guide, x, mode="moments")
    with pytest.raises((ValueError, MissingRuleError), match=message):
        ps.ELBO("moments").loss(model, guide, x, y)


def test_a_stock_guide_is_refused_by_its_site():
    model = bayes(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="site 'weight': moment propagation .* not marked independent"):
        ps.ELBO("moments").loss(model, AutoNormal(model), torch.randn(2, 3), torch.randn(2, 1))


def test_weights_without_moments_are_drawn_with_the_fallback():
    model = bayes(Using(lambda body, x: product(body, x).exp(), nn.Linear(4, 4, bias=False)))
    y, treatments = output_of(model, ps.guides.Additive(model), torch.randn(3, 4), fallback="mc")
    assert (
        treatments["body.weight"] == "drawn (used in torch.functional.einsum)"
        and treatments["head.weight"] == "moments"
    )
    assert y.shape == (3, 4) and (y.var > 0.0).all()
    assert predict(model, ps.guides.Additive(model), torch.randn(3, 4), mode="moments:mc").mean.isfinite().all()


MISSPELLED = {"moment": "mode: .*did you mean 'moments'", "moments:ful": "did you mean 'moments:full'"}
MISSPELLED |= {"moments:5": "did you mean 'moments'", "moments:full:9": "did you mean 'moments:full'"}


@pytest.mark.parametrize("name", MISSPELLED)
def test_misspelled_names_are_refused(name):
    model = bayes(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=f"estimator: expected one of .* got '{name}'; did you mean 'moments"):
        ps.ELBO(name)
    with pytest.raises(ValueError, match=MISSPELLED[name]):
        predict(model, ps.guides.Additive(model), torch.randn(2, 3), mode=name)


LIKELIHOODS = {
    "categorical": (ps.likelihoods.Categorical(), 3, torch.tensor([0, 2, 1, 1])),
    "bernoulli": (ps.likelihoods.Bernoulli(), 1, torch.tensor([[0.0], [1.0], [1.0], [0.0]])),
    "poisson": (ps.likelihoods.Poisson(), 2, torch.tensor([[0.0, 3.0]] * 4)),
    "gaussian": (ps.likelihoods.Gaussian(0.4), 2, torch.ones(4, 2)),
    "learned": (ps.likelihoods.Gaussian(0.4, learn=True), 2, torch.ones(4, 2)),
    "random scale": (ps.likelihoods.Gaussian(dist.Gamma(torch.tensor(20.0), 40.0)), 2, torch.ones(4, 2)),
    "heteroscedastic": (ps.likelihoods.HeteroscedasticGaussian(), 4, torch.ones(4, 2)),
    "student": (ps.likelihoods.StudentT(6.0, 0.5), 2, torch.ones(4, 2)),
    "user's": (lambda out: dist.Gamma(out.exp(), 2.0), 2, torch.ones(4, 2)),
}


def one_layer(name):
    likelihood, outputs, y = LIKELIHOODS[name]
    # Of moderate size under any seed: the mean of exp(large) over draws has no useful error.
    generator = torch.Generator().manual_seed(0)
    net, x = nn.Linear(3, outputs), 0.8 * torch.randn(4, 3, generator=generator)
    nn.init.normal_(net.weight, std=0.3, generator=generator)
    nn.init.zeros_(net.bias)
    model = bayes(net, likelihood, num_data=4)
    return model, ps.guides.Additive(model, init_scale=0.15), x, y


@MODES
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_predictions_of_every_likelihood_from_moments_of_one_layer_equal_many_draws(name, mode):
    model, guide, x, y = one_layer(name)
    found, drawn = (predict(model, guide, x, y=y, mode=how) for how in (mode, "mc:10000"))
    fields = ["total", "aleatoric", "epistemic"] + (["log_density"] if name != "random scale" else [])
    for field in fields + (["mean"] if found.log_probs is None else ["probs"]):
        torch.testing.assert_close(getattr(found, field), getattr(drawn, field), rtol=0.07, atol=0.005)
    if name in ("categorical", "gaussian", "learned", "random scale"):
        assert predict(model, guide, x, mode=f"{mode}:closed").total.shape == found.total.shape
    else:
        with pytest.raises(ValueError, match="has no closed form for moments of the output"):
            predict(model, guide, x, mode=f"{mode}:closed")


@MODES
@pytest.mark.parametrize("name", ["poisson", "gaussian", "heteroscedastic", "student", "user's"])
def test_the_elbo_of_one_layer_is_that_of_many_draws(name, mode):
    model, guide, x, y = one_layer(name)
    local = torch.tensor([ps.ELBO("local").loss(model, guide, x, y) for _ in range(200)])
    error = 0.02 + 4.5 * local.std().item() / math.sqrt(200)
    assert ps.ELBO(mode).loss(model, guide, x, y) == pytest.approx(local.mean().item(), abs=error)


@pytest.mark.parametrize("name", ["flat gaussian", "flat bernoulli", "flat student"])
def test_an_output_without_a_second_axis_is_read(name):
    layer, likelihood = nn.Linear(3, 1), LIKELIHOODS[name.removeprefix("flat ")][0]
    model, twin = (bayes(net, likelihood) for net in (nn.Sequential(layer, nn.Flatten(0)), nn.Sequential(layer)))
    guide, x = ps.guides.Additive(model, init_scale=0.3), torch.randn(4, 3)
    found, expected = (predict(one, guide, x, mode="moments").total for one in (model, twin))
    torch.testing.assert_close(found, expected.reshape(4))


def test_points_and_the_closed_form_for_classes_use_the_covariance_of_the_last_layer():
    # The closed form is an expansion in the output's variance, so inputs are nearly certain: it holds for any weights.
    x = Moments(torch.randn(5, 3), 0.02 * torch.rand(5, 3) + 0.01, settings=MomentSettings(points=2048))
    y, labels = F.linear(x, torch.randn(4, 3)), torch.tensor([0, 1, 2, 3, 0])
    points = gaussian_points(y)
    sampled = torch.einsum("kbi,kbj->bij", points - y.loc, points - y.loc) / len(points)
    torch.testing.assert_close(points.mean(0), y.loc)
    torch.testing.assert_close(sampled, y.covariance(), rtol=0.02, atol=0.01)
    closed, logs = softmax_under_gaussian(y), points.log_softmax(-1)
    expected = logs[:, torch.arange(5), labels].mean(0)
    epistemic = (logs.exp() * (logs - logs.exp().mean(0).log())).sum(-1).mean(0)
    torch.testing.assert_close(closed.fields["log_probs"].exp(), logs.exp().mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(closed.expected(labels), expected, rtol=0.04, atol=0)
    torch.testing.assert_close(closed.fields["epistemic"], epistemic, rtol=0.3, atol=0)


def test_fit_and_compare_with_moments():
    x = torch.randn(30, 2)
    model = bayes(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), num_data=30)
    guide, data = ps.guides.Additive(model), (x, x[:, :1] - x[:, 1:])
    quiet = {"compile": False, "progress": False}
    fits = ps.fit(model, guide, data, epochs=40, batch_size=30, lr=0.03, estimator="moments", **quiet)
    assert fits.history["loss"][-1] < 0.5 * fits.history["loss"][0]
    scores = ps.compare(model, guide, data, modes=("moments", "moments:full", "mc:200"))
    assert [row.num_samples for row in scores.rows] == [1, 1, 200] and "moments:full" in str(scores)
    assert scores["moments"].nll == pytest.approx(scores["mc:200"].nll, abs=0.1)


@MODES
def test_dropout_that_stays_on_has_its_exact_variance(mode):
    net = nn.Sequential(nn.Linear(3, 4), MCDropout(0.3), nn.Linear(4, 2))
    model = bayes(net, prior={"2.weight": NORMAL})
    guide, x = ps.guides.Additive(model, init_scale=0.4), torch.randn(5, 3)
    found = predict(model, guide, x, mode=mode)
    distribution, squares = guide.site_distribution("2.weight").base_dist, net[0](x).square()
    exact = F.linear(squares / 0.7, distribution.variance) + F.linear(squares * 0.3 / 0.7, distribution.mean.square())
    torch.testing.assert_close(found.epistemic, exact.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mean, net[2](net[0](x)).detach(), rtol=1e-10, atol=1e-10)


class ResidualLinear(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize("kind", ["channels", "residual link"])
def test_the_full_covariance_starts_at_dropout_of_the_input(kind):
    parts = (MCDropout2d(0.4), nn.Conv2d(2, 2, 2)) if kind == "channels" else (MCDropout(0.4), ResidualLinear(3, 3))
    model = bayes(nn.Sequential(*parts), prior=NORMAL)
    guide, x = ps.guides.Additive(model, init_scale=0.4), torch.randn(2, *((2, 2, 3) if kind == "channels" else (3,)))
    assert_like(output_of(model, guide, x, "full")[0], sampled(model, guide, x))


@pytest.mark.parametrize("estimator", MOMENTS)
def test_the_elbo_draws_nothing_and_has_the_gradients_of_finite_differences(estimator):
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    model = bayes(net, ps.likelihoods.Categorical(), num_data=9)
    guide, x, y = ps.guides.Additive(model, init_scale=0.3), torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    elbo, parameters, width, state = ps.ELBO(estimator), list(guide.parameters()), 1e-5, torch.get_rng_state()
    loss = elbo.differentiable_loss(model, guide, x, y)
    assert elbo.loss(model, guide, x, y) == loss.item() and torch.equal(state, torch.get_rng_state())
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction, losses = torch.randn_like(parameter), []
        for step in (width, -2.0 * width):
            parameter.data += step * direction
            losses.append(elbo.loss(model, guide, x, y))
        parameter.data += width * direction
        slope = (losses[0] - losses[1]) / (2.0 * width)
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-6)

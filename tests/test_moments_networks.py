"""Bayesian networks by moments against exact twins: closed forms, shared draws of the weights, finite differences."""

from __future__ import annotations

import math

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
from pyrostoch.infer.predict import predict
from pyrostoch.layers import MCDropout, MCDropout2d
from pyrostoch.moments import MissingRuleError

F64 = {"dtype": torch.float64}
NORMAL = ps.priors.Normal(0.0, 0.8)
COVARIANCES = pytest.mark.parametrize("covariance", ["diagonal", "full"])


@pytest.fixture(autouse=True)
def double(float64):
    """All in double precision."""


def bayes(net, likelihood=None, prior=None, num_data=20):
    likelihood = ps.likelihoods.Gaussian(0.3) if likelihood is None else likelihood
    return ps.BayesianModel(
        net, prior={"*": NORMAL} if prior is None else prior, likelihood=likelihood, num_data=num_data
    )


def output_of(model, guide, x, covariance="diagonal", **kwargs):
    """Moments of the network's output, and the routes."""
    with MomentPropagation(covariance, **kwargs) as how, torch.no_grad():
        trace = poutine.trace(guide).get_trace()
        return poutine.replay(model.observation, trace=trace)(x).output, how.routes


def sampled(model, guide, x, count=20_000):
    """Outputs of the plain network for draws that all examples share, (count, B, n)."""
    with torch.no_grad():
        weights = {name: guide.site_law(name).expand((count,)).sample() for name in guide.site_names}
        run = torch.func.vmap(lambda drawn: torch.func.functional_call(model.net, drawn, (x,)), randomness="different")
        return run(weights).flatten(2)


def assert_like(y, found, sigmas=4.5):
    """Mean, variance and, if carried, covariance within standard errors of the draws'."""
    apart = found - found.mean(0)
    rows = [(y.loc.flatten(1), found), (y.var.flatten(1), apart.square())]
    if y.how.full:
        rows.append((y.covariance(), apart.unsqueeze(2) * apart.unsqueeze(3)))
    for value, draws in rows:
        assert value.shape == draws.shape[1:]
        assert ((draws.mean(0) - value).abs() <= sigmas / math.sqrt(len(found)) * draws.std(0) + 1e-12).all()


GUIDES = {
    "additive": lambda model: ps.guides.Additive(model, init_scale=0.4),
    "layer": lambda model: ps.guides.LayerwiseAlpha(model, init_log_alpha=-0.5),
    "neuron": lambda model: ps.guides.NeuronwiseAlpha(model, init_log_alpha=-0.5),
    "weight": lambda model: ps.guides.WeightwiseAlpha(model, init_log_alpha=-0.5),
    "gaussian": lambda model: ps.guides.VarianceOnly(model, family="gaussian"),
    "bernoulli": lambda model: ps.guides.VarianceOnly(model, family="bernoulli"),
    "uniform": lambda model: ps.guides.VarianceOnly(model, family="uniform"),
}
NETS = {
    "linear": (lambda: nn.Linear(3, 4), (3,)),
    "linear over tokens": (lambda: nn.Linear(3, 2), (2, 3)),
    "conv2d": (lambda: nn.Conv2d(2, 2, 2, stride=(1, 2), padding=(0, 1)), (2, 3, 3)),
    "conv2d, circular": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 2, 3)),
    "of moments": (lambda: nn.Sequential(MCDropout(0.4), nn.Linear(3, 4)), (3,)),
    "conv2d of moments": (lambda: nn.Sequential(MCDropout(0.4), nn.Conv2d(2, 2, 2, padding=1)), (2, 2, 1)),
}


@COVARIANCES
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("guide", GUIDES)
def test_layers_with_random_weights_have_the_moments_of_shared_draws(guide, net, covariance):
    make, shape = NETS[net]
    model = bayes(make())
    guide, x = GUIDES[guide](model), torch.randn(2, *shape)
    y, routes = output_of(model, guide, x, covariance)
    assert y.how.full == (covariance == "full") and set(routes.values()) == {"moments"} and len(routes) == 2
    assert_like(y, sampled(model, guide, x))


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding=1), (4, 7)),
    "conv2d, same": (lambda: nn.Conv2d(2, 2, 3, padding="same", bias=False), (2, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2), (2, 3, 3, 2)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1, groups=2), (2, 3)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, padding=1), (2, 3, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 2, 2, bias=False), (2, 2, 2, 2)),
    "only the weight": (lambda: nn.Linear(3, 2), (3,)),
    "only the bias": (lambda: nn.Conv2d(2, 3, 2), (2, 3, 3)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_variances_of_every_layer_are_exact(layer):
    make, shape = LAYERS[layer]
    net, kind = make(), layer.removeprefix("only the ")
    model = bayes(net, prior={kind if layer.startswith("only") else "*": NORMAL})
    guide, x = ps.guides.Additive(model, init_scale=0.4), torch.randn(2, *shape)
    y, _ = output_of(model, guide, x)
    variances = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    variances |= {name: guide.site_law(name).variance for name in guide.site_names}
    torch.testing.assert_close(y.loc, net(x))
    torch.testing.assert_close(y.var, torch.func.functional_call(net, variances, (x.square(),)))


def test_a_full_covariance_of_random_weights_is_refused_where_it_is_not_known():
    model = bayes(nn.Conv1d(1, 1, 2))
    with pytest.raises(ValueError, match="full covariance with random weights in conv1d is known for linear layers"):
        output_of(model, ps.guides.Additive(model), torch.ones(1, 1, 3), "full")


def regression(batch=6, outputs=2, num_data=20):
    model = bayes(nn.Linear(3, outputs), num_data=num_data)
    guide = ps.guides.Additive(model, init_scale=lambda site: 0.2 + torch.rand(site.init.shape))
    return model, guide, torch.randn(batch, 3), torch.randn(batch, outputs)


def exact_output(guide, x):
    laws = {name: guide.site_law(name).base_dist for name in ("weight", "bias")}
    mean = F.linear(x, laws["weight"].mean, laws["bias"].mean)
    return laws, mean, F.linear(x.square(), laws["weight"].variance, laws["bias"].variance)


@pytest.mark.parametrize("mode", MOMENTS)
def test_linear_regression_is_predicted_in_closed_form(mode):
    model, guide, x, y = regression()
    _, mean, variance = exact_output(guide, x)
    found = predict(model, guide, x, y=y, mode=mode, batch_size=4)
    density = dist.Normal(mean, (variance + 0.09).sqrt()).log_prob(y).sum(1)
    rows = {"mean": mean, "variance": variance + 0.09, "total": variance + 0.09, "log_density": density}
    rows |= {"aleatoric": torch.full_like(mean, 0.09), "epistemic": variance}
    for name, exact in rows.items():
        torch.testing.assert_close(getattr(found, name), exact.detach(), rtol=1e-10, atol=1e-10)
    assert found.routes == {"weight": "moments", "bias": "moments"} and (found.mode, found.num_samples) == (mode, 1)


@pytest.mark.parametrize("estimator", MOMENTS)
def test_the_elbo_of_linear_regression_is_exact_and_draws_nothing(estimator):
    model, guide, x, y = regression()
    laws, mean, variance = exact_output(guide, x)
    data = (dist.Normal(mean, 0.3).log_prob(y) - variance / (2 * 0.09)).sum() * 20 / 6
    prior = dist.Normal(torch.zeros(()), 0.8)
    exact = sum(torch.distributions.kl_divergence(law, prior).sum() for law in laws.values()) - data
    parameters = list(guide.parameters())
    expected = torch.autograd.grad(exact, parameters)
    state, elbo = torch.get_rng_state(), ps.ELBO(estimator)
    loss = elbo.differentiable_loss(model, guide, x, y)
    assert loss.item() == pytest.approx(exact.item(), abs=1e-9)
    for found, gradient in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)
    assert elbo.loss(model, guide, x, y) == loss.item() and torch.equal(state, torch.get_rng_state())


class Residual(nn.Module):
    """A small image network with all that images need."""

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
    draws = sampled(model, guide, x, 10_000).softmax(-1).mean(0)
    found = {mode: predict(model, guide, x, mode=mode) for mode in ("mc:2000", *MOMENTS)}
    errors = {mode: (prediction.probs - draws).abs() for mode, prediction in found.items()}
    for mode in MOMENTS:
        torch.testing.assert_close(found[mode].probs.sum(1), torch.ones(5))
        assert found[mode].routes == {name: "moments" for name in model.sites}
        assert errors[mode].max() < 0.03
    for mode in ("moments", "moments:full"):
        torch.testing.assert_close(found[mode].epistemic, found["mc:2000"].epistemic, rtol=0.25, atol=0.01)
    assert errors["moments:full"].mean() < errors["moments"].mean() + 0.002


class Using(nn.Module):
    """A layer, and then a body that is used in some way."""

    def __init__(self, use, body):
        super().__init__()
        self.head, self.body, self.use = nn.Linear(4, 4), body, use

    def forward(self, x):
        return self.use(self.body, self.head(x))


EVERYWHERE, HEAD = {"*": NORMAL}, {"head.weight": NORMAL}
TOKENS = [lambda body, x: body(x[:, None])[0][:, 0], lambda body, x: body(*[x[:, None]] * 3)[0][:, 0]]
REFUSED = {
    "tied": (lambda body, x: body(body(x)), nn.Linear(4, 4), EVERYWHERE, "site 'body.weight': .* used 2 times"),
    "einsum": (
        lambda body, x: torch.einsum("bi,oi->bo", x, body.weight),
        nn.Linear(4, 4, bias=False),
        EVERYWHERE,
        "site 'body.weight': moments need .* used in torch.functional.einsum",
    ),
    "random lstm": (
        TOKENS[0],
        nn.LSTM(4, 2),
        EVERYWHERE,
        "site 'body.weight_ih_l0': moments need .* used in torch.lstm",
    ),
    "random attention": (TOKENS[1], nn.MultiheadAttention(4, 2), NORMAL, "site 'body.in_proj_weight': moments need"),
    "lstm": (TOKENS[0], nn.LSTM(4, 2, batch_first=True), HEAD, "module 'body': moments: no rule for torch.lstm"),
    "attention": (TOKENS[1], nn.MultiheadAttention(4, 2), HEAD, "module 'body': .* no rule .* in MultiheadAttention"),
    "deep": (
        lambda body, x: body(x),
        nn.Sequential(nn.ReLU(), nn.Sequential(nn.GroupNorm(2, 4))),
        HEAD,
        "module 'body.1.0': moments: no rule for torch.nn.functional.group_norm",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_moments_is_named_by_its_site_or_module(name):
    use, body, prior, message = REFUSED[name]
    model = bayes(Using(use, body), prior=prior)
    guide, x, y = ps.guides.Additive(model), torch.randn(3, 4), torch.randn(3, 2 if "lstm" in name else 4)
    with pytest.raises((ValueError, MissingRuleError), match=message):
        predict(model, guide, x, mode="moments")
    with pytest.raises((ValueError, MissingRuleError), match=message):
        ps.ELBO("moments").loss(model, guide, x, y)


def test_a_stock_guide_is_refused_by_its_site():
    model = bayes(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="site 'weight': moments need .* not marked independent"):
        predict(model, AutoNormal(model), torch.randn(2, 3), mode="moments")


def test_what_cannot_be_replaced_is_drawn_where_that_is_allowed():
    use, body, prior, _ = REFUSED["einsum"]
    model = bayes(Using(lambda body, x: use(body, x).exp(), body), prior=prior)
    y, routes = output_of(model, ps.guides.Additive(model), torch.randn(3, 4), fallback="mc")
    assert routes["body.weight"] == "one draw (used in torch.functional.einsum)" and routes["head.weight"] == "moments"
    assert y.shape == (3, 4) and (y.var > 0.0).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moment", "did you mean 'moments'"),
        ("moments:5", "mode 'moments' draws nothing: leave num_samples out, got 'moments:5'"),
        pytest.param(
            "moments:ful",
            "did you mean 'moments:full'",
            marks=pytest.mark.xfail(strict=True, reason="taken for a number of samples"),
        ),
    ],
)
def test_misspelt_modes_are_refused(name, message):
    model = bayes(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=message):
        predict(model, ps.guides.Additive(model), torch.randn(2, 3), mode=name)
    with pytest.raises(ValueError, match=f"estimator: expected one of .* got '{name}'; did you mean 'moments"):
        ps.ELBO(name)


def test_a_number_of_samples_is_refused():
    model = bayes(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="draws nothing"):
        predict(model, ps.guides.Additive(model), torch.randn(2, 3), mode="moments:full", num_samples=3)


LIKELIHOODS = {
    "categorical": (ps.likelihoods.Categorical(), 3, torch.tensor([0, 2, 1, 1])),
    "bernoulli": (ps.likelihoods.Bernoulli(), 1, torch.tensor([[0.0], [1.0], [1.0], [0.0]])),
    "answers": (ps.likelihoods.Bernoulli(), 2, torch.tensor([[0.0, 1.0]] * 4)),
    "poisson": (ps.likelihoods.Poisson(), 2, torch.tensor([[0.0, 3.0]] * 4)),
    "gaussian": (ps.likelihoods.Gaussian(0.4), 2, torch.ones(4, 2)),
    "learnt": (ps.likelihoods.Gaussian(0.4, learn=True), 2, torch.ones(4, 2)),
    "random scale": (ps.likelihoods.Gaussian(dist.Gamma(torch.tensor(20.0), 40.0)), 2, torch.ones(4, 2)),
    "heteroscedastic": (ps.likelihoods.HeteroscedasticGaussian(), 4, torch.ones(4, 2)),
    "student": (ps.likelihoods.StudentT(6.0, 0.5), 2, torch.ones(4, 2)),
    "user's": (lambda out: dist.Gamma(out.exp(), 2.0), 2, torch.ones(4, 2)),
}
RANDOM = pytest.mark.xfail(strict=True, reason="the likelihood's own site is asked for a draw, which is refused")


@COVARIANCES
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=RANDOM) if "random" in name else name for name in LIKELIHOODS]
)
def test_every_likelihood_reads_the_moments_of_one_layer_as_many_draws(name, covariance):
    likelihood, outputs, y = LIKELIHOODS[name]
    model = bayes(nn.Linear(3, outputs), likelihood)
    guide, x = ps.guides.Additive(model, init_scale=0.3), torch.randn(4, 3)
    modes = {"diagonal": "moments", "full": "moments:full"}
    found, drawn = (predict(model, guide, x, y=y, mode=mode) for mode in (modes[covariance], "mc:10000"))
    fields = ["total", "aleatoric", "log_density"]
    for field in [*fields, "probs"] if found.log_probs is not None else [*fields, "mean", "variance"]:
        one, other = getattr(found, field), getattr(drawn, field)
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0.06, atol=0.02)
    elbo = ps.ELBO(modes[covariance]).loss(model, guide, x, y)
    shared = ps.ELBO("local", num_particles=300).loss(model, guide, x, y)
    assert elbo == pytest.approx(shared, rel=0.05)
    if name in ("categorical", "gaussian", "learnt", "random scale"):
        predict(model, guide, x, mode=f"{modes[covariance]}:closed")
    else:
        with pytest.raises(ValueError, match="has no closed reading of output moments"):
            predict(model, guide, x, mode=f"{modes[covariance]}:closed")


@pytest.mark.parametrize(
    "likelihood",
    [
        ps.likelihoods.Gaussian(0.4),
        *(
            pytest.param(one, marks=pytest.mark.xfail(strict=True, reason="an output of shape (B,) has no points"))
            for one in (ps.likelihoods.Bernoulli(), ps.likelihoods.StudentT(4.0))
        ),
    ],
    ids=str,
)
def test_an_output_without_a_second_axis_is_read(likelihood):
    model = bayes(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), likelihood)
    twin = bayes(nn.Sequential(model.net[0]), likelihood)
    guide, x = ps.guides.Additive(model, init_scale=0.3), torch.randn(4, 3)
    found, expected = (predict(one, guide, x, mode="moments").total for one in (model, twin))
    torch.testing.assert_close(found, expected.reshape(4))


def test_fit_and_compare_know_moments():
    x = torch.randn(30, 2)
    model = bayes(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), num_data=30)
    guide, data = ps.guides.Additive(model), (x, x[:, :1] - x[:, 1:])
    fits = ps.fit(
        model, guide, data, epochs=40, batch_size=30, lr=0.03, estimator="moments", compile=False, progress=False
    )
    print(fits)
    scores = ps.compare(model, guide, data, modes=("moments", "moments:full", "mc:200"))
    assert [row.mode for row in scores.rows] == ["moments", "moments:full", "mc:200"]
    assert scores["moments"].nll == pytest.approx(scores["mc:200"].nll, abs=0.1)
    assert scores["moments"].num_samples == 1 and "moments:full" in str(scores)


@COVARIANCES
def test_dropout_that_stays_on_has_its_exact_variance(covariance):
    net = nn.Sequential(nn.Linear(3, 4), MCDropout(0.3), nn.Linear(4, 2))
    model = bayes(net, prior={"2.weight": NORMAL})
    guide, x = ps.guides.Additive(model, init_scale=0.4), torch.randn(5, 3)
    found = predict(model, guide, x, mode="moments" if covariance == "diagonal" else "moments:full")
    law, squares = guide.site_law("2.weight").base_dist, net[0](x).square()
    exact = F.linear(squares / 0.7, law.variance) + F.linear(squares * 0.3 / 0.7, law.mean.square())
    torch.testing.assert_close(found.epistemic, exact.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mean, net(x).detach(), rtol=10, atol=10)


DROPPED = {
    "channels": (lambda: nn.Sequential(MCDropout2d(0.4), nn.Conv2d(2, 2, 2)), (2, 2, 3)),
    "residual link": (lambda: nn.Sequential(MCDropout(0.4), Residue(nn.Linear(3, 3))), (3,)),
}


class Residue(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@pytest.mark.parametrize("net", DROPPED)
def test_the_full_covariance_starts_at_dropout_of_the_input(net):
    make, shape = DROPPED[net]
    model = bayes(make(), prior=NORMAL)
    guide, x = ps.guides.Additive(model, init_scale=0.4), torch.randn(2, *shape)
    y, _ = output_of(model, guide, x, "full")
    assert_like(y, sampled(model, guide, x))


@pytest.mark.parametrize("estimator", MOMENTS)
def test_gradients_of_the_elbo_are_those_of_finite_differences(estimator):
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    model = bayes(net, ps.likelihoods.Categorical(), num_data=9)
    guide, x, y = ps.guides.Additive(model, init_scale=0.3), torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    elbo, step = ps.ELBO(estimator), 1e-5
    parameters = list(guide.parameters())
    gradients = torch.autograd.grad(elbo.differentiable_loss(model, guide, x, y), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        losses = []
        for sign in (1.0, -2.0):
            with torch.no_grad():
                parameter += sign * step * direction
            losses.append(elbo.loss(model, guide, x, y))
        with torch.no_grad():
            parameter += step * direction
        assert (gradient * direction).sum().item() == pytest.approx(
            (losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-6
        )

"""Bayesian last layers: the exact posterior, the evidence it has, and closed bounds of the mean log-likelihood."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Categorical, MultivariateNormal, Normal
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.moments import Moments, MomentSettings

NOISE = torch.tensor([0.3, 0.5], dtype=torch.float64)


def network(inputs: int = 3, outputs: int = 2, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs, bias=bias)).double()


def last(net: nn.Module, num_data: int, likelihood: Any = None, prior: Any = None) -> ps.BayesianModel:
    likelihood = ps.likelihoods.Gaussian(NOISE) if likelihood is None else likelihood
    rules = {"2.*": ps.priors.Normal(0.1, 0.7) if prior is None else prior}
    return ps.BayesianModel(net, prior=rules, likelihood=likelihood, num_data=num_data)


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3).double(), torch.randn(count, 2).double()


def features(net: Any, x: Tensor, bias: bool = True) -> Tensor:
    with torch.no_grad():
        found = net[:2](x)
    return torch.cat([found, torch.ones(len(x), 1).double()], 1) if bias else found


@pytest.mark.parametrize("bias", [True, False])
def test_the_posterior_is_the_closed_form(bias: bool) -> None:
    net, (x, y) = network(bias=bias), data()
    model = last(net, 40)
    guide = ps.guides.LastLayer(model)
    ps.fit_last_layer(model, guide, (x, y), batch_size=7)
    phi = features(net, x, bias)
    weight = guide.site_distribution("2.weight")
    for o, noise in enumerate(NOISE.tolist()):
        precision = torch.eye(phi.shape[1]).double() / 0.7**2 + phi.mT @ phi / noise**2
        shift = torch.full((phi.shape[1],), 0.1 / 0.7**2, dtype=torch.float64) + phi.mT @ y[:, o] / noise**2
        mean, covariance = torch.linalg.solve(precision, shift), torch.linalg.inv(precision)
        assert (weight.mean[o] - mean[:6]).abs().max() < 1e-8
        assert (weight.own[o] @ weight.own[o].mT - covariance[:6, :6]).abs().max() < 1e-8
        if bias:
            found = guide.site_distribution("2.bias")
            assert abs(found.mean[o] - mean[6]) < 1e-8 and abs(found.variance[o] - covariance[6, 6]) < 1e-8


def test_its_elbo_is_the_evidence() -> None:
    net, (x, y) = network(), data()
    model = last(net, 40)
    guide = ps.guides.LastLayer(model)
    ps.fit_last_layer(model, guide, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True))
    phi = features(net, x)
    evidence = 0.0
    for o, noise in enumerate(NOISE.tolist()):
        covariance = noise**2 * torch.eye(40).double() + 0.7**2 * phi @ phi.mT
        evidence += MultivariateNormal(0.1 * phi.sum(1), covariance).log_prob(y[:, o]).item()
    for estimator in ("moments", "moments:bound", "moments:full"):
        terms = ps.decompose(model, guide, (x, y), estimator=estimator)  # type: ignore[arg-type]
        assert terms.elbo == pytest.approx(evidence, abs=1e-6)
    # No other distribution of this kind has a larger one.
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    assert ps.decompose(model, guide, (x, y), estimator="moments").elbo < evidence


def test_training_by_the_closed_bound_finds_the_exact_posterior() -> None:
    net, (x, y) = network(), data()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    model = last(net, 40)
    exact, trained = ps.guides.LastLayer(model), ps.guides.LastLayer(model, init_scale=0.3)
    ps.fit_last_layer(model, exact, (x, y))
    settings = {"estimator": "moments:bound", "schedule": "cosine", "progress": False, "compile": False}
    ps.fit(model, trained, (x, y), epochs=600, batch_size=40, lr=0.1, **settings)  # type: ignore[arg-type]
    gap = [ps.decompose(model, guide, (x, y), estimator="moments").elbo for guide in (exact, trained)]
    assert 0.0 <= gap[0] - gap[1] < 0.05


def test_posterior_of_the_data_in_two_parts() -> None:
    x, y = data(60)
    net = network(bias=False)
    together = last(net, 60)
    at_once = ps.guides.LastLayer(together)
    ps.fit_last_layer(together, at_once, (x, y))
    first = last(net, 20)
    earlier = ps.guides.LastLayer(first)
    ps.fit_last_layer(first, earlier, (x[:20], y[:20]))
    second = last(net, 40, prior=ps.priors.from_guide(earlier))
    later = ps.guides.LastLayer(second)
    ps.fit_last_layer(second, later, (x[20:], y[20:]))
    one, other = at_once.site_distribution("2.weight"), later.site_distribution("2.weight")
    assert (one.mean - other.mean).abs().max() < 1e-6
    assert (one.covariance - other.covariance).abs().max() < 1e-6


def test_moments_of_the_output_are_exact() -> None:
    net, (x, y) = network(), data()
    model = last(net, 40)
    guide = ps.guides.LastLayer(model)
    ps.fit_last_layer(model, guide, (x, y))
    found = ps.predict(model, guide, x[:3], mode="moments")
    phi = features(net, x[:3])
    shared = poutine.trace(guide).get_trace().nodes["2.weight"]["fn"].shared
    variance = torch.einsum("ni,oij,okj,nk->no", phi, shared.weight.tril, shared.weight.tril, phi)
    assert torch.allclose(found.variance, variance + NOISE.square())


def gaussian_outputs(count: int, size: int) -> tuple[Moments, Tensor]:
    loc = torch.randn(count, size).double()
    root = 0.5 * torch.randn(count, size, size).double()
    covariance = root @ root.mT
    output = Moments(loc, covariance.diagonal(dim1=1, dim2=2), covariance, MomentSettings(full=True, bound=True))
    draws = loc.unsqueeze(1) + torch.einsum("nij,nkj->nki", root, torch.randn(count, 40_000, size).double())
    return output, draws


def test_the_bound_of_classes_is_below_the_mean_and_near_it() -> None:
    output, draws = gaussian_outputs(5, 3)
    labels = torch.tensor([0, 1, 2, 1, 0])
    bound = ps.likelihoods.Categorical()(output).expected_log_prob(labels)  # type: ignore[attr-defined]
    values = Categorical(logits=draws).log_prob(labels.unsqueeze(1).expand(5, draws.shape[1]))
    error = values.std(1) / math.sqrt(draws.shape[1])
    assert (bound <= values.mean(1) + 5.0 * error).all()
    small = Moments(output.loc, 1e-6 * output.var, None, output.settings)
    bound = ps.likelihoods.Categorical()(small).expected_log_prob(labels)  # type: ignore[attr-defined]
    assert torch.allclose(bound, Categorical(logits=output.loc).log_prob(labels), atol=1e-5)


def test_the_mean_under_noise_of_the_inputs_own_is_exact() -> None:
    output, draws = gaussian_outputs(5, 4)
    y = torch.randn(5, 2).double()
    likelihood = ps.likelihoods.HeteroscedasticGaussian(link="exp")
    found = likelihood(output).expected_log_prob(y)  # type: ignore[attr-defined]
    # A mean of exponentials of normal numbers: from a tilted distribution, which has no heavy tail.
    covariance = output.covariance()
    expected = torch.zeros(5).double()
    for k in range(2):
        mean, log_scale = output.loc[:, k], output.loc[:, 2 + k]
        var, cov = covariance[:, 2 + k, 2 + k], covariance[:, k, 2 + k]
        tilted = draws[..., k] - 2.0 * cov.unsqueeze(1)
        squares = (y[:, k : k + 1] - tilted).square().mean(1)
        exact = covariance[:, k, k] + (y[:, k] - mean + 2.0 * cov).square()
        assert torch.allclose(squares, exact, rtol=0.1)
        factor = (-2.0 * log_scale + 2.0 * var).exp()
        expected += -0.5 * math.log(2 * math.pi) - log_scale - 0.5 * factor * exact
    assert torch.allclose(found, expected)
    small = Moments(output.loc, 1e-4 * output.var, 1e-4 * covariance, output.settings)
    near = likelihood(small).expected_log_prob(y)  # type: ignore[attr-defined]
    shrunk = output.loc.unsqueeze(1) + 1e-2 * (draws - output.loc.unsqueeze(1))
    values = Normal(shrunk[..., :2], shrunk[..., 2:].exp()).log_prob(y.unsqueeze(1)).sum(2)
    assert ((near - values.mean(1)).abs() < 6.0 * values.std(1) / math.sqrt(draws.shape[1])).all()


def test_training_with_bounds_ends_below_the_sampled_elbo() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    for likelihood, y in (
        (ps.likelihoods.Categorical(), (x[:, 0] > 0).long()),
        (ps.likelihoods.HeteroscedasticGaussian(link="exp"), x[:, :1] * 0.5 + 0.1 * torch.randn(60, 1)),
    ):
        model = last(network().float(), 60, likelihood, ps.priors.Normal())
        guide = ps.guides.LastLayer(model)
        result = ps.fit(
            model, guide, (x, y), epochs=100, lr=0.02, estimator="moments:bound", progress=False, compile=False
        )
        losses = result.history["loss"]
        assert losses[-1] < losses[0]
        bound = ps.decompose(model, guide, (x, y), estimator="moments:bound")
        sampled = ps.decompose(model, guide, (x, y), num_samples=200)
        assert bound.elbo <= sampled.elbo + 6.0 * sampled.data_stderr + 0.05


class Wrapped(nn.Module):
    """An encoder of a user's own: features in a dictionary, the head on one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        hidden = {"pooled": torch.tanh(self.encoder(inputs * mask))}
        return self.head(hidden["pooled"])


def test_weights_and_bias_start_at_their_own_scales() -> None:
    model = last(network(), 40)
    scales = {"2.weight": torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), "2.bias": torch.tensor([3.0, 4.0])}
    by_function = ps.guides.LastLayer(model, init_scale=lambda site: scales[site.name])
    for guide in (by_function, ps.guides.LastLayer(model, init_scale=by_function)):
        for name, scale in scales.items():
            found = guide.site_distribution(name).variance.sqrt()
            assert torch.allclose(found, scale.double().expand(found.shape))
    assert torch.allclose(ps.guides.LastLayer(model).site_distribution("2.bias").variance, torch.tensor(1e-4).double())


def test_any_network_gives_the_features() -> None:
    net, (x, y) = Wrapped().double(), data()
    model = ps.BayesianModel(
        net, prior={"head.*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(0.3), num_data=40
    )
    guide = ps.guides.LastLayer(model)
    mask = torch.ones(40, 3).double()
    ps.fit_last_layer(model, guide, ({"inputs": x, "mask": mask}, y))
    with torch.no_grad():
        phi = torch.cat([torch.tanh(net.encoder(x)), torch.ones(40, 1).double()], 1)
    precision = torch.eye(6).double() + phi.mT @ phi / 0.3**2
    mean = torch.linalg.solve(precision, phi.mT @ y / 0.3**2).mT
    assert (guide.site_distribution("head.weight").mean - mean[:, :5]).abs().max() < 1e-8


class Squared(nn.Module):
    """A network whose output is not that of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).square()


def test_what_has_no_exact_posterior_is_refused_by_name() -> None:
    x, y = data()
    model = ps.BayesianModel(
        Squared().double(), prior={"*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(0.3), num_data=40
    )
    with pytest.raises(ValueError, match="output to be that of the layer of site 'head.weight'"):
        ps.fit_last_layer(model, ps.guides.LastLayer(model), (x, y))
    model = last(network(), 40, ps.likelihoods.StudentT(4.0, 0.3))
    with pytest.raises(ValueError, match=r"(?s)expected the likelihood Gaussian.*moments:bound"):
        ps.fit_last_layer(model, ps.guides.LastLayer(model), (x, y))
    model = last(network(), 40, prior=ps.priors.Laplace())
    with pytest.raises(ValueError, match="normal prior at site '2.weight', got Laplace"):
        ps.fit_last_layer(model, ps.guides.LastLayer(model), (x, y))
    model = last(network(), 40, prior=ps.priors.Hierarchical())
    with pytest.raises(ValueError, match="a random scale"):
        ps.fit_last_layer(model, ps.guides.LastLayer(model), (x, y))
    model = last(network(), 50)
    with pytest.raises(ValueError, match="num_data=50 examples, got 40"):
        ps.fit_last_layer(model, ps.guides.LastLayer(model), (x, y))
    with pytest.raises(TypeError, match="expected a guide LastLayer, got Additive"):
        ps.fit_last_layer(model, ps.guides.Additive(model), (x, y))  # type: ignore[arg-type]
    model = last(network(), 40, ps.likelihoods.StudentT(4.0, 0.3))
    with pytest.raises(ValueError, match="no closed lower bound"):
        ps.decompose(model, ps.guides.LastLayer(model), (x, y), estimator="moments:bound")

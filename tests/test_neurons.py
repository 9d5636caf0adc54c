"""Threshold neurons: draws, means and moments agree; the pseudogradient; gain and bias of homeostasis."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation, MomentPropagation
from pyrostoch.layers import ThresholdNeuron
from pyrostoch.moments import Moments, MomentSettings

F64 = {"dtype": torch.float64}
DRAWS = 40_000


def normal(shape, correlation):
    """Mean and covariance of Gaussian inputs that are correlated between neurons."""
    size = math.prod(shape)
    loc = torch.linspace(-1.0, 1.0, size, **F64).reshape(1, *shape)
    root = torch.eye(size, **F64) + correlation * torch.randn(size, size, **F64)
    return loc, root @ root.T


@pytest.mark.parametrize("common", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_moments_of_a_noisy_input_are_those_of_draws(shape, common):
    layer = ThresholdNeuron(0.7, threshold=0.2, correlation=common)
    layer.gain, layer.bias = torch.linspace(0.5, 2.0, shape[0], **F64), torch.linspace(-0.3, 0.3, shape[0], **F64)
    loc, cov = normal(shape, 0.4)
    inputs = torch.distributions.MultivariateNormal(loc.flatten(), cov).sample((DRAWS,)).reshape(DRAWS, *shape)
    states = layer(inputs).flatten(1)
    var = cov.diagonal().reshape(1, *shape)
    found = layer(Moments(loc, var, cov.unsqueeze(0), MomentSettings(full=True)))
    centered = states - found.loc.flatten()
    products = centered.unsqueeze(1) * centered.unsqueeze(2)
    assert ((states.mean(0) - found.loc.flatten()).abs() < 4.5 * states.std(0) / DRAWS**0.5).all()
    assert ((products.mean(0) - found.cov[0]).abs() < 4.5 * products.std(0) / DRAWS**0.5).all()
    alone = layer(Moments(loc, var))
    torch.testing.assert_close(alone.loc, found.loc)
    torch.testing.assert_close(alone.var, found.var)


def test_noise_has_the_given_correlation():
    states = ThresholdNeuron(1.0, correlation=0.5)(torch.zeros(DRAWS, 2, **F64))
    # Two thresholds at 0 agree with probability 1/2 + arcsin(c) / pi.
    agree = (states[:, 0] == states[:, 1]).double().mean().item()
    assert abs(agree - (0.5 + math.asin(0.5) / math.pi)) < 4.0 * 0.5 / DRAWS**0.5


def test_draws_are_new_for_each_example_and_call_in_either_mode():
    layer, x = ThresholdNeuron().eval(), torch.zeros(200, 1)
    first, second = layer(x), layer.train()(x)
    assert set(first.unique().tolist()) == {0.0, 1.0} and not torch.equal(first, second)


def test_the_backward_pass_of_a_draw_is_that_of_its_mean():
    layer = ThresholdNeuron(0.6, threshold=0.1)
    x = torch.linspace(-1, 1, 7, **F64).reshape(1, 7).requires_grad_()
    (drawn,) = torch.autograd.grad(layer(x).sum(), x)
    (mean,) = torch.autograd.grad(layer.expected(x).sum(), x)
    torch.testing.assert_close(drawn, mean)
    by_hand = torch.exp(-0.5 * ((x.detach() - 0.1) / 0.6) ** 2) / (0.6 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(mean, by_hand)


def test_interpretations_decide_what_the_layer_returns():
    layer, x = ThresholdNeuron(0.5), torch.full((4, 3), 0.2, **F64)
    with MeanPropagation():
        torch.testing.assert_close(layer(x), layer.expected(x))
    with MomentPropagation():
        found = layer(x)
    torch.testing.assert_close(found.loc, layer.expected(x))
    torch.testing.assert_close(found.var, found.loc * (1 - found.loc))


def test_a_binary_network_predicts_alike_by_moments_and_by_draws():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 60, **F64), ThresholdNeuron(0.5), nn.Linear(60, 3, **F64))
    model = ps.BayesianModel(net, prior={}, likelihood=ps.likelihoods.Categorical(), num_data=8)
    guide, x = ps.guides.Additive(model), torch.randn(8, 4, **F64)
    drawn = ps.predict(model, guide, x, mode="mc:2000").probs
    moments = ps.predict(model, guide, x, mode="moments").probs
    assert (drawn - moments).abs().max() < 0.01
    assert (ps.predict(model, guide, x, mode="mean").probs - drawn).abs().max() < 0.1


def test_training_by_moments_lowers_the_loss_of_draws():
    x = torch.randn(200, 5)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(5, 100), ThresholdNeuron(0.3), nn.Linear(100, 2))
    model = ps.BayesianModel(net, prior={}, likelihood=ps.likelihoods.Categorical(), num_data=200)
    guide = ps.guides.Additive(model)
    ps.fit(model, guide, (x, y), epochs=60, lr=0.02, estimator="moments", compile=False, progress=False, seed=0)
    assert ps.compare(model, guide, (x, y), modes=("mc:20",), seed=0)["mc:20"].accuracy > 0.9


def test_gains_of_each_neuron_are_kept_in_the_state():
    layer, other = ThresholdNeuron(), ThresholdNeuron()
    layer.gain, layer.bias = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5])
    other.load_state_dict(layer.state_dict())
    assert other.gain.tolist() == [1.0, 2.0] and copy.deepcopy(layer).bias.tolist() == [0.5, -0.5]


@pytest.mark.parametrize("settings", [{"noise": 0.0}, {"noise": -1.0}, {"correlation": 1.0}, {"correlation": -0.1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="ThresholdNeuron"):
        ThresholdNeuron(**settings)

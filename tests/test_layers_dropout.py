"""Dropout that interpretations control, not `train()` and `eval()`."""

from __future__ import annotations

import math

import pytest
import torch
from pyro import poutine
from torch import nn

import pyrostoch as ps
from pyrostoch.effects import Flipout, LocalReparameterization, MeanPropagation, SharedSample
from pyrostoch.layers import MCDropout, MCDropout2d


@pytest.mark.parametrize("interpretation", [SharedSample, LocalReparameterization, Flipout, poutine.trace])
@pytest.mark.parametrize("training", [True, False])
def test_drops_afresh_for_each_example_under_every_sampling_interpretation(interpretation, training):
    layer = MCDropout(0.3).train(training)
    x = torch.ones(200, 100)
    with interpretation():
        one, two = layer(x), layer(x)
    assert torch.allclose(one[one != 0], torch.tensor(1 / 0.7))
    kept = (one != 0).double()
    assert abs(kept.mean().item() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / kept.numel())
    assert not torch.equal(one[0], one[1]) and not torch.equal(one, two)


def test_training_mode_makes_no_difference():
    layer, x, outputs = MCDropout(0.5), torch.randn(20, 5), []
    for training in (True, False):
        torch.manual_seed(0)
        outputs.append(layer.train(training)(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("layer", [MCDropout(0.5), MCDropout2d(0.5)], ids=repr)
@pytest.mark.parametrize("training", [True, False])
def test_is_the_identity_under_mean_propagation(layer, training):
    x = torch.randn(4, 3, 2, 2)
    layer.train(training)
    with MeanPropagation():
        assert layer(x) is x
    with SharedSample(), MeanPropagation():
        assert layer(x) is x
    assert not torch.equal(layer(x), x)


def test_whole_channels():
    out = MCDropout2d(0.5)(torch.ones(50, 8, 3, 3)).flatten(2)
    assert (out == out[..., :1]).all() and sorted(out.unique().tolist()) == [0.0, 2.0]
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("p", [-0.1, 1.0, math.nan])
def test_bad_probability(p):
    with pytest.raises(ValueError, match="MCDropout: expected a probability"):
        MCDropout(p)


def test_the_dropout_baseline_with_an_empty_guide():
    """No weight is random: training, the mean and Monte Carlo work, and for a linear net they agree on average."""
    net = nn.Sequential(nn.Linear(3, 50), MCDropout(0.2), nn.Linear(50, 1)).double()
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(0.5), num_data=40)
    guide = ps.guides.Additive(model)
    assert not model.sites and not list(guide.parameters())
    x = torch.randn(40, 3, dtype=torch.float64)
    loss = ps.ELBO("local")(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    history = []
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(x, x.sum(1, keepdim=True))
        value.backward()
        optimizer.step()
        history.append(value.item())
    assert sum(history[-10:]) < 0.5 * sum(history[:10])
    with MeanPropagation(), torch.no_grad():
        mean = model.observation(x).mean
        assert torch.equal(mean, nn.Sequential(net[0], net[2])(x))
    with SharedSample(), torch.no_grad():
        draws = torch.stack([model.observation(x).mean for _ in range(400)])
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error > 0).all() and ((draws.mean(0) - mean).abs() < 5 * error).all()

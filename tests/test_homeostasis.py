"""Homeostasis: its targets, the rule that restores them, the exact solution, and the effect of noise without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.layers import ThresholdNeuron

SIGMA = 0.5


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(20, 40), ThresholdNeuron(SIGMA, threshold=0.1), nn.Linear(40, 30), ThresholdNeuron(SIGMA)
    )


def inputs(count=2000):
    return torch.randn(count, 20, generator=torch.Generator().manual_seed(1))


def test_statistics_are_those_of_the_mean_states():
    net, x = network(), inputs(4000)
    found = ps.Homeostasis(net).statistics(x, repeats=20, seed=0)["1"]
    with torch.no_grad():
        rates = net[1].expected(net[0](x))
    torch.testing.assert_close(found.rate, rates.mean(0), atol=0.01, rtol=0.0)
    # The variance across inputs, not r (1 - r), which a binary draw has whatever its input.
    torch.testing.assert_close(found.variance, rates.var(0), atol=0.006, rtol=0.0)
    assert (found.variance < 0.9 * found.rate * (1 - found.rate)).all()


def test_gain_and_bias_restore_the_transfer_function_and_bias_alone_does_not():
    net, x = network(), inputs()
    homeostasis = ps.Homeostasis(net)
    homeostasis.calibrate(x, seed=0)
    drive = net[0](x).detach()
    reference = net[1].expected(drive)
    errors = {}
    for way, rates in (("off", None), ("bias", (1.0, 0.0)), ("both", (1.0, 10.0)), ("oracle", None)):
        homeostasis.reset()
        with ps.noise_scaled(net, 4.0):
            if way == "oracle":
                homeostasis.oracle(4.0)
            elif rates is not None:
                homeostasis.learning_rate = rates
                homeostasis.adapt(x, epochs=30, seed=0)
            errors[way] = (net[1].expected(drive) - reference).abs().mean().item()
    assert errors["oracle"] < 1e-6 and errors["both"] < 0.1 * errors["off"] and errors["bias"] > 0.5 * errors["off"]


def test_the_oracle_gives_the_same_states_for_the_same_noise():
    net, x = network(), inputs(50)
    torch.manual_seed(5)
    before = net(x)
    ps.Homeostasis(net).oracle(3.0)
    torch.manual_seed(5)
    with ps.noise_scaled(net, 3.0):
        after = net(x)
    torch.testing.assert_close(before, after)


def test_targets_may_be_given():
    net, x = network(), inputs()
    homeostasis = ps.Homeostasis(net, rate=0.3)
    homeostasis.calibrate(x, seed=0)
    homeostasis.adapt(x, epochs=40, seed=0)
    found = homeostasis.statistics(x, repeats=10, seed=1)
    assert all((layer.rate - 0.3).abs().max() < 0.05 for layer in found.values())


def test_channels_of_a_convolution_adapt_one_by_one():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), ThresholdNeuron(0.3))
    x = torch.randn(300, 1, 6, 6)
    homeostasis = ps.Homeostasis(net)
    homeostasis.calibrate(x, seed=0)
    with ps.noise_scaled(net, 3.0):
        before = homeostasis.distance(x, seed=2)
        homeostasis.adapt(x, epochs=40, batch_size=100, seed=0)
        assert homeostasis.distance(x, seed=2) < 0.3 * before
    assert net[1].gain.shape == (3,)


def test_nothing_but_gains_and_biases_changes():
    net, x = network().train(), inputs(200)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    homeostasis = ps.Homeostasis(net)
    homeostasis.calibrate(x, seed=0)
    homeostasis.adapt(x, epochs=1, seed=0)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.gain", "1.bias", "3.gain", "3.bias"} and net.training
    assert torch.equal(random, torch.get_rng_state())


def test_noise_is_restored_after_an_error():
    net = network()
    with pytest.raises(RuntimeError, match="stop"), ps.noise_scaled(net, 2.0):
        raise RuntimeError("stop")
    assert net[1].noise == SIGMA


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ps.Homeostasis(nn.Linear(2, 2)), "no ThresholdNeuron"),
        (lambda: ps.Homeostasis(network(), rate=1.0), "rate"),
        (lambda: ps.Homeostasis(network(), variance=0.3), "variance"),
        (lambda: ps.Homeostasis(network(), momentum=1.0), "momentum"),
        (lambda: ps.Homeostasis(network()).adapt(inputs(10)), "calibrate"),
        (lambda: ps.Homeostasis(network()).oracle(0.0), "factor"),
        (lambda: ps.noise_scaled(network(), -1.0).__enter__(), "factor"),
    ],
)
def test_wrong_settings_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()

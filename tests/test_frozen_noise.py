"""Frozen noise: the same draws at every call, for weights, activations, masks and trajectories, in loss and fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.effects import frozen_noise
from pyrostoch.layers import MCDropout, RateNetwork, ThresholdNeuron

F64 = {"dtype": torch.float64}
X, Y = torch.linspace(-1, 1, 24, **F64).reshape(8, 3), torch.arange(8) % 2


class Noisy(nn.Sequential):
    """Random weights, dropout, and binary neurons in one network."""

    def __init__(self):
        super().__init__(
            nn.Linear(3, 6, **F64),
            MCDropout(0.3),
            nn.ReLU(),
            nn.Linear(6, 6, **F64),
            ThresholdNeuron(),
            nn.Linear(6, 2, **F64),
        )


def build(net=None):
    torch.manual_seed(1)
    net = Noisy() if net is None else net
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=8)
    return model, ps.guides.Additive(model, init_scale=0.3)


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])
def test_a_loss_is_the_same_at_every_call_and_leaves_the_generator(estimator):
    model, guide = build()
    loss = ps.ELBO(estimator)(model, guide)
    fresh = {loss(X, Y).item() for _ in range(3)}
    before = torch.get_rng_state()
    with frozen_noise(num=3, seed=5):
        frozen = {loss(X, Y).item() for _ in range(3)}
    assert len(fresh) == 3 and len(frozen) == 1 and torch.equal(before, torch.get_rng_state())


def test_a_loss_is_the_mean_over_the_members():
    model, guide = build()
    loss = ps.ELBO("shared")(model, guide)
    with frozen_noise(num=4, seed=2):
        whole = loss(X, Y).item()
    each = []
    for member in frozen_noise(num=4, seed=2):
        with member:
            each.append(loss(X, Y).item())
    assert len(set(each)) == 4 and whole == pytest.approx(sum(each) / 4, rel=1e-12)


def test_other_seeds_give_other_ensembles():
    model, guide = build()
    loss = ps.ELBO("shared")(model, guide)
    found = set()
    for seed in range(3):
        with frozen_noise(num=2, seed=seed):
            found.add(loss(X, Y).item())
    assert len(found) == 3


def test_gradients_are_those_of_finite_differences():
    model, guide = build(nn.Sequential(nn.Linear(3, 5, **F64), MCDropout(0.3), nn.Tanh(), nn.Linear(5, 2, **F64)))
    loss = ps.ELBO("shared")(model, guide)
    parameter = next(guide.parameters())
    with frozen_noise(num=2, seed=0):
        (gradient,) = torch.autograd.grad(loss(X, Y), parameter)
        with torch.no_grad():
            parameter[0, 0] += 1e-6
            up = loss(X, Y).item()
            parameter[0, 0] -= 2e-6
            down = loss(X, Y).item()
    assert gradient[0, 0].item() == pytest.approx((up - down) / 2e-6, rel=1e-5)


def test_fit_with_a_full_batch_is_deterministic_descent():
    model, guide = build(nn.Sequential(nn.Linear(3, 8, **F64), nn.Tanh(), nn.Linear(8, 2, **F64)))
    with frozen_noise(num=5, seed=0):
        run = ps.fit(
            model, guide, (X, Y), epochs=40, batch_size=8, lr=0.01, estimator="shared", compile=True, progress=False
        )
    losses = run.history["loss"]
    falls = [after < before for before, after in zip(losses, losses[1:], strict=False)]
    assert all(falls[1:]) and run.compile_seconds is None


def test_trajectories_repeat():
    network = RateNetwork(2)
    drive = torch.ones(3, 2)
    first, second = [], []
    for found in (first, second):
        for member in frozen_noise(num=2, seed=7):
            with member:
                found.append(network(drive, 20))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and not torch.equal(*first)


def test_a_compiled_step_runs_eagerly_inside():
    model, guide = build(nn.Sequential(nn.Linear(3, 4, **F64), nn.Linear(4, 2, **F64)))
    loss = ps.ELBO("shared")(model, guide)
    step = ps.compile_step(loss, torch.optim.SGD(loss.parameters(), lr=0.0))
    with frozen_noise(seed=3):
        values = {step(X, Y).item() for _ in range(4)}
    assert len(values) == 1 and step.stagings == 0 and step.reason is None


@pytest.mark.parametrize("num", [0, -1, 1.5, True])
def test_num_must_be_an_integer_of_at_least_one(num):
    with pytest.raises(ValueError, match="frozen_noise num"):
        frozen_noise(num=num)

"""Rate networks: trajectories, their moments without samples, and lagged covariances."""

from __future__ import annotations

import pytest
import torch

from pyrostoch.layers import RateNetwork

F64 = {"dtype": torch.float64}
RUNS = 6000


def network(weight=0.2, **settings):
    torch.manual_seed(0)
    made = RateNetwork(3, dt=4.0, **settings).double()
    with torch.no_grad():
        made.weight.copy_(-weight * torch.rand(3, 3, **F64))
        made.noise_root.copy_(torch.eye(3, **F64) * 0.8 + 0.3 * torch.randn(3, 3, **F64))
    return made


def test_without_recurrence_the_stationary_covariance_is_known():
    made = network(weight=0.0)
    state = made.moments(torch.zeros(1, 3, **F64), 500)
    step, keep = made.dt / made.tau, torch.exp(torch.tensor(-made.dt / made.tau_noise, **F64))
    # Two first-order filters in a row: the variance of v over that of the noise.
    cross = step * 1.0 / (1.0 - keep * (1.0 - step)) * keep
    factor = (step**2 + 2.0 * step * (1.0 - step) * cross) / (1.0 - (1.0 - step) ** 2)
    torch.testing.assert_close(state.covariance[0], factor * made.noise_root @ made.noise_root.T)
    torch.testing.assert_close(state.mean, torch.zeros(1, 3, **F64))


@pytest.mark.parametrize("power", [1, 2])
def test_moments_after_some_steps_are_those_of_trajectories(power):
    made = network(power=power)
    drive = torch.tensor([[1.0, 0.5, 2.0]], **F64)
    with torch.no_grad():
        drawn = made(drive.expand(RUNS, 3), 60)[-1]
        state = made.moments(drive, 60)
    error = drawn.std(0) / RUNS**0.5
    assert ((drawn.mean(0) - state.mean[0]).abs() < 5.0 * error + 0.01).all()
    torch.testing.assert_close(torch.cov(drawn.T), state.covariance[0], atol=0.05, rtol=0.05)


def test_one_step_from_a_gaussian_state_is_exact():
    made = network(weight=0.5)
    drive = torch.tensor([[0.3, -0.2, 1.0]], **F64)
    with torch.no_grad():
        start = made.moments(drive, 30)
        after = made.moments(drive, 1, start)
        z = torch.distributions.MultivariateNormal(start.loc[0], start.cov[0]).sample((400_000,))
        v, noise = z[:, :3], z[:, 3:]
        moved = v + made.dt / made.tau * (-v + made.rates(v) @ made.weight.T + drive + noise)
    assert ((moved.mean(0) - after.mean[0]).abs() < 4.5 * moved.std(0) / 400_000**0.5).all()
    torch.testing.assert_close(torch.cov(moved.T), after.covariance[0], atol=5e-3, rtol=5e-3)


def test_lagged_covariances_are_those_of_a_stationary_trajectory():
    made = network()
    drive = torch.tensor([[1.0, 0.5, 2.0]], **F64)
    with torch.no_grad():
        path = made(drive.expand(RUNS, 3), 80)
        later, now = path[-1] - path[-1].mean(0), path[-9] - path[-9].mean(0)
        found = made.lagged(made.moments(drive, 200), 8)[0]
    torch.testing.assert_close(later.T @ now / RUNS, found, atol=0.04, rtol=0.05)
    torch.testing.assert_close(made.lagged(made.moments(drive, 200), 0)[0], made.moments(drive, 200).covariance[0])


def test_moments_are_differentiable():
    made = network()
    drive = torch.tensor([[1.0, 0.5, 2.0]], **F64)

    def size(weight):
        with torch.no_grad():
            made.weight[0, 1] = weight
        return made.moments(drive, 15).covariance.sum()

    (gradient,) = torch.autograd.grad(size(-0.1), made.weight)
    with torch.no_grad():
        slope = (size(-0.1 + 1e-5) - size(-0.1 - 1e-5)).item() / 2e-5
    assert gradient[0, 1].item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RateNetwork(0), "num"),
        (lambda: RateNetwork(2, power=1.5), "power"),
        (lambda: RateNetwork(2, dt=30.0), "step below"),
        (lambda: RateNetwork(2)(torch.zeros(1, 3), 5), "shape"),
        (lambda: RateNetwork(2)(torch.zeros(1, 2), 0), "steps"),
        (lambda: RateNetwork(2)(torch.zeros(1, 2), 5, 5), "skip"),
    ],
)
def test_wrong_settings_and_inputs_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()

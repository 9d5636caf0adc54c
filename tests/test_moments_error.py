"""moments_error: zero where moments are exact, correct where they are not, with correct error bars."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.layers import ThresholdNeuron

F64 = {"dtype": torch.float64}


def build(*layers, scale=0.4):
    torch.manual_seed(0)
    net = nn.Sequential(*(layer() if isinstance(layer, type) else layer for layer in layers)).double()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=30)
    return model, ps.guides.Additive(model, init_scale=scale)


def test_layers_whose_moments_are_exact_show_no_error():
    model, guide = build(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 5))
    found = ps.moments_error(model, guide, torch.randn(30, 4, **F64), num_samples=400, seed=0)
    assert [row.module for row in found.layers] == ["0", "1", "2"]
    for row in found.layers[:2]:
        assert abs(row.mean) < 4 * row.mean_stderr + 1e-3 and abs(row.variance) < 4 * row.variance_stderr
        assert row.variance_stderr < 0.02


def test_neglected_correlations_show_and_a_full_covariance_has_them():
    # One random input weight drives all hidden units, so that their sum varies far more than if they were independent.
    model, guide = build(nn.Linear(1, 1), nn.Linear(1, 20, bias=False), nn.ReLU(), nn.Linear(20, 1))
    with torch.no_grad():
        for part in (model.net[1], model.net[3]):
            part.weight.copy_(part.weight.abs() + 0.1)
        model.net[0].bias.fill_(0.5)
    model = ps.BayesianModel(
        model.net, prior={"0.weight": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(), num_data=30
    )
    guide, x = ps.guides.Additive(model, init_scale=0.4), torch.ones(20, 1, **F64)
    rows = {
        mode: ps.moments_error(model, guide, x, mode=mode, num_samples=800, seed=0)["3"]
        for mode in ("moments", "moments:full")
    }
    assert abs(rows["moments"].variance) > 0.2
    assert abs(rows["moments:full"].variance) < 4 * rows["moments:full"].variance_stderr


def test_a_difference_of_equal_numbers_is_wrong_without_their_covariance():
    model, guide = build(
        nn.Linear(1, 1), nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False), ThresholdNeuron(0.1)
    )
    with torch.no_grad():
        model.net[1].weight.copy_(torch.tensor([[3.0], [3.0]]))
        model.net[3].weight.copy_(torch.tensor([[1.0, -0.9]]))
        model.net[0].bias.fill_(0.5)
    model = ps.BayesianModel(
        model.net, prior={"0.weight": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(), num_data=30
    )
    guide, x = ps.guides.Additive(model, init_scale=0.4), torch.ones(20, 1, **F64)
    found = ps.moments_error(model, guide, x, num_samples=400, seed=0)
    assert found["3"].variance > 10.0
    assert "Linear" in str(found) and found.num_samples == 400


def test_error_bars_cover_the_truth():
    model, guide = build(nn.Linear(3, 6))
    x = torch.randn(20, 3, **F64)
    rows = [ps.moments_error(model, guide, x, num_samples=80, seed=seed)["0"] for seed in range(20)]
    assert sum(abs(row.mean) < 2.5 * row.mean_stderr for row in rows) >= 15
    assert sum(abs(row.variance) < 2.5 * row.variance_stderr for row in rows) >= 15


def test_the_draws_are_seeded_and_the_generator_left_alone():
    model, guide = build(nn.Linear(3, 6))
    x, before = torch.randn(5, 3, **F64), torch.get_rng_state()
    one, other = (ps.moments_error(model, guide, x, num_samples=32, seed=1) for _ in range(2))
    assert one == other and torch.equal(before, torch.get_rng_state())


def test_a_module_called_twice_has_two_rows():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(2, 2), nn.ReLU()

        def forward(self, x):
            return self.act(self.act(self.fc(x)) - 0.1)

    model, guide = build(Twice())
    found = ps.moments_error(model, guide, torch.randn(10, 2, **F64), num_samples=32, seed=0)
    assert [row.module for row in found.layers] == ["0.fc", "0.act", "0.act#2"]
    with pytest.raises(KeyError, match=r"0\.act#2"):
        found["act"]


@pytest.mark.parametrize(("settings", "match"), [({"mode": "mc"}, "mode"), ({"num_samples": 10}, "num_samples")])
def test_wrong_settings_are_named(settings, match):
    model, guide = build(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=match):
        ps.moments_error(model, guide, torch.ones(2, 2, **F64), **settings)

"""Running statistics of batch normalization, estimated again for a network without noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.guides import refresh_batch_norm


def test_statistics_are_those_of_the_layers_present_inputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2)).double()
    x = torch.randn(400, 3, dtype=torch.float64)
    assert refresh_batch_norm(net, x, batch_size=400) == 2
    with torch.no_grad():
        first = net[0](x)
        second = net[3](net[2](net[1].train()(first)))
    for layer, seen in ((net[1], first), (net[4], second)):
        torch.testing.assert_close(layer.running_var, seen.var(0), rtol=1e-2, atol=0.0)
        torch.testing.assert_close(layer.running_mean, seen.mean(0), rtol=1e-2, atol=1e-3)


def test_means_are_over_batches_of_one_size_and_nothing_else_changes():
    net = nn.Sequential(
        nn.Dropout(0.5), nn.BatchNorm1d(1, momentum=0.3), nn.BatchNorm1d(1, track_running_stats=False)
    ).eval()
    x = torch.tensor([[0.0], [2.0], [4.0], [6.0], [100.0]])
    assert refresh_batch_norm(net, x, batch_size=2) == 1
    assert net[1].running_mean.tolist() == [3.0] and net[1].momentum == 0.3
    assert not any(module.training for module in net.modules())


def test_the_variance_added_by_drawn_weights_is_removed():
    data = ps.data.load("digits")
    x, y = data.x_train.flatten(1), data.y_train
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 10))
    model = ps.BayesianModel(
        net, prior={"0.weight": ps.priors.LogUniform()}, likelihood=ps.likelihoods.Categorical(), num_data=len(x)
    )
    guide = ps.guides.WeightwiseAlpha(model, init_log_alpha=2.0)
    ps.fit(model, guide, (x, y), epochs=15, lr=1e-2, progress=False, compile=False, seed=0)
    exported = ps.guides.prune(guide, threshold=20.0).export(model)

    noisy = exported[1].running_var.clone()
    refresh_batch_norm(exported, x)
    with torch.no_grad():
        torch.testing.assert_close(exported[1].running_var, exported[0](x).var(0), rtol=0.2, atol=0.0)
    assert (exported[1].running_var < 0.6 * noisy).float().mean() > 0.9


@pytest.mark.parametrize(("count", "batch", "match"), [(1, 5, "2 inputs"), (5, 0, "batch_size")])
def test_wrong_inputs_are_named(count, batch, match):
    with pytest.raises(ValueError, match=match):
        refresh_batch_norm(nn.BatchNorm1d(1), torch.ones(count, 1), batch_size=batch)

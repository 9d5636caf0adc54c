"""Networks of a guide's means, or of a draw, as ordinary modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_predictor import convolutions, made, mlp
from torch import nn

import pyrostoch as ps
from pyrostoch import guides, likelihoods, priors
from pyrostoch.prediction import draws, predict


def outputs_of(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x).softmax(-1).double()


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("net", [mlp, convolutions])
def test_means_and_draws(net: Any) -> None:
    torch.manual_seed(0)
    model, guide = made(net())
    x = torch.randn(7, 4)
    mean = guide.export(model)
    assert not mean.training and all(parameter.requires_grad for parameter in mean.parameters())
    assert_close(outputs_of(mean, x), predict(model, guide, x, mode="mean").probs)
    one, again, other = (guide.export(model, draw=seed) for seed in (3, 3, 4))
    assert_close(outputs_of(one, x), draws(model, guide, x, 1, seed=3).probs[0])
    assert torch.equal(outputs_of(one, x), outputs_of(again, x))
    assert (outputs_of(one, x) - outputs_of(other, x)).abs().max() > 1e-3
    before = torch.get_rng_state()
    guide.export(model, draw=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.export.export(mean, (x,))


def test_guides_per_site_and_sets() -> None:
    torch.manual_seed(1)
    model, _ = made(mlp())
    x = torch.randn(7, 4)
    mixed = guides.PerSite(model, {"*": guides.Additive, "0.*": guides.NeuronwiseAlpha})
    expected = predict(model, mixed, x, mode="mean").probs
    assert_close(outputs_of(mixed.export(model), x), expected)
    ensemble = guides.Ensemble([guides.Delta(made(mlp())[0]) for _ in range(3)])
    with pytest.raises(ValueError, match="draw="):
        ensemble.export(model)
    found = {float(outputs_of(ensemble.export(model, draw=seed), x)[0, 0]) for seed in range(20)}
    assert len(found) == 3


def test_constants_and_statistics_are_in_it() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))
    model, guide = made(net)
    for draw in (None, 0):
        assert guide.export(model, draw=draw)[0].weight[0].abs().sum() == 0
    model, _ = made(convolutions(), prior=lambda name, value: priors.Normal())
    ensemble = guides.Ensemble([guides.Additive(model) for _ in range(2)])
    data = torch.randn(50, 4), torch.randint(0, 3, (50,))
    ps.fit(model, ensemble, data, epochs=2, lr=0.05, progress=False, compile=False)
    x = torch.randn(7, 4)
    for seed in range(3):
        plain = ensemble.export(model, draw=seed)
        assert_close(outputs_of(plain, x), draws(model, ensemble, x, 1, seed=seed).probs[0])
        assert not torch.equal(plain[2].running_mean, model.net[2].running_mean)


def test_what_is_random_itself_is_refused() -> None:
    model, guide = made(nn.Sequential(nn.Linear(4, 8), ps.layers.MCDropout(0.5), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=r"layer\(s\) '1' are random"):
        guide.export(model)
    ternary = nn.Sequential(nn.Linear(4, 8), ps.layers.Ternary(noise=1.0), nn.Linear(8, 3))
    model, guide = made(ternary)
    with pytest.raises(ValueError, match="'1'"):
        guide.export(model, draw=0)
    with pytest.raises(TypeError, match="BayesianModel"):
        guides.plain_network(nn.Linear(1, 1), guide)


def test_scales_of_priors_and_likelihoods_are_no_weights() -> None:
    import pyro.distributions as dist

    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    model = ps.BayesianModel(
        net, prior=priors.Normal(), likelihood=likelihoods.Gaussian(dist.LogNormal(0.0, 1.0)), num_data=9
    )
    guide = guides.Additive(model)
    assert len(guide.export(model).state_dict()) == len(net.state_dict())

"""Branches chosen by the data: experts, and layers that are left out at random, under every estimator and mode."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps


class Experts(nn.Module):
    """Each example goes to one of two layers, by the sign of its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        out, second = x.new_zeros(len(x), 1), x[:, 0] > 0
        for index, expert in enumerate(self.experts):
            rows = second == bool(index)
            if rows.any():
                out[rows] = expert(x[rows])
        return out


class LayerDrop(nn.Module):
    """In training a layer is left out half of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if not self.training or torch.rand(()) < 0.5:
            h = h + torch.tanh(self.middle(h))
        return self.last(h)


def build(net: nn.Module, count: int) -> tuple[ps.BayesianModel, ps.guides.Guide]:
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=count)
    return model, ps.guides.Additive(model, init_scale=0.2)


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout", "marginal"])
@pytest.mark.parametrize("batch_size", [2, 25])
@pytest.mark.parametrize("make", [Experts, LayerDrop])
def test_they_train_whatever_a_batch_leaves_out(make, batch_size, estimator):
    x = torch.randn(50, 3)
    model, guide = build(make(), 50)
    fit = ps.fit(
        model,
        guide,
        (x, x.sum(1, keepdim=True)),
        epochs=3,
        batch_size=batch_size,
        estimator=estimator,
        seed=0,
        progress=False,
        compile=False,
    )
    assert fit.stopped == "finished" and model.unused_weights() == []


@pytest.mark.parametrize("mode", ["mean", "mc:3", "joint"])
def test_one_example_is_predicted_right_after_loading(mode, tmp_path: Path):
    model, guide = build(Experts(), 50)
    ps.save(tmp_path / "experts", model, guide)
    fresh, other = build(Experts(), 50)
    ps.load(tmp_path / "experts", fresh, other)
    options = {"mode": "mc:3", "joint": True} if mode == "joint" else {"mode": mode}
    for sign in (-1.0, 1.0):
        found = ps.predict(fresh, other, torch.full((1, 3), sign), **options)
        assert found.mean.shape == (1, 1) and torch.isfinite(found.mean).all()


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout", "marginal"])
def test_the_data_term_is_that_of_whole_networks(estimator):
    x = torch.randn(12, 3)
    model, guide = build(Experts(), 12)
    with torch.no_grad():
        draws = torch.stack([model.outputs(x, guide()) for _ in range(500)])
    y = draws.mean(0)
    terms = torch.distributions.Normal(draws, 0.3).log_prob(y).sum((1, 2))
    found = ps.decompose(model, guide, (x, y), num_samples=500, estimator=estimator)
    assert abs(found.data - terms.mean()) <= 5 * math.hypot(terms.std() / 500**0.5, found.data_stderr)
    assert all(row.treatment.startswith("shared") for row in found.sites)

"""Guides made of what IVON has found, beside the optimizer's own draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyrostoch as ps

ivon = pytest.importorskip("ivon")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def model_of(net: nn.Module, **settings: Any) -> ps.BayesianModel:
    options: dict[str, Any] = {"prior": {"*": ps.priors.Normal()}, **settings}
    return ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(0.3), num_data=50, **options)


def trained(net: nn.Module, steps: int = 30) -> Any:
    optimizer = ivon.IVON(
        [{"params": list(net.parameters())[:2]}, {"params": list(net.parameters())[2:], "weight_decay": 0.1}],
        lr=0.05, ess=50.0, hess_init=0.5, beta2=0.9, weight_decay=0.02,
    )  # fmt: skip
    x = torch.randn(50, 3).double()
    for _ in range(steps):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            (net(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
    return optimizer


def test_the_guide_draws_what_the_optimizer_draws() -> None:
    net = network()
    optimizer = trained(net)
    guide = ps.guides.from_ivon(model_of(net), optimizer)
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in guide.site_names}
    for _ in range(4000):
        with optimizer.sampled_params():
            for name, value in net.named_parameters():
                drawn[name].append(value.detach().clone())
    for name, values in drawn.items():
        found, expected = guide.site_distribution(name), torch.stack(values)
        ratio = expected.var(0) / found.variance
        assert 0.8 < ratio.min() and ratio.max() < 1.25
        assert ((expected.mean(0) - found.mean).abs() < 6 * found.stddev / 4000**0.5).all()


def test_the_guide_is_read_and_trained_as_any_other() -> None:
    net = network()
    optimizer = trained(net)
    model = model_of(net)
    guide = ps.guides.from_ivon(model, optimizer)
    x = torch.randn(50, 3).double()
    before = ps.decompose(model, guide, (x, x[:, :2]), num_samples=4).elbo
    ps.fit(model, guide, (x, x[:, :2]), epochs=60, batch_size=50, lr=1e-2, seed=0, progress=False, compile=False)
    assert ps.decompose(model, guide, (x, x[:, :2]), num_samples=4).elbo > before


def test_what_the_optimizer_has_not_trained_is_refused() -> None:
    net = network()
    optimizer = trained(net, 2)
    with pytest.raises(ValueError, match="'0.bias', '0.weight', '2.bias', '2.weight'|'0.weight', '0.bias'"):
        ps.guides.from_ivon(model_of(network()), optimizer)
    scales = model_of(net, prior=ps.priors.Hierarchical())
    with pytest.raises(ValueError, match="not among its parameters; make the model from the very network"):
        ps.guides.from_ivon(scales, optimizer)
    with pytest.raises(TypeError, match="expected an optimizer ivon.IVON"):
        ps.guides.from_ivon(model_of(network()), torch.optim.SGD(net.parameters(), lr=0.1))

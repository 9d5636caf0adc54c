"""The exact posterior of a last layer is refused where its output is not linear in it, or its data are wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrostoch as ps


def network(inputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def model_of(net: nn.Module, pattern: str = "2.*") -> ps.BayesianModel:
    prior = {pattern: ps.priors.Normal(0.1, 0.7)}
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(0.3), num_data=40)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(40, 3).double(), torch.randn(40, 2).double()


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class Normalized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.normalize(x))


class SquaredWeight(nn.Linear):
    """At weights of 0 and 1, as they are here, the same as its base class."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.square(), self.bias)


class Tied(nn.Module):
    """A head whose weight is the one of an embedding, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(6, 2), nn.Embedding(2, 6)
        self.table.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table((x[:, 0] > 0).long())))


class Reused(nn.Module):
    """A head whose weight is used before it, by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(h + F.linear(h, self.head.weight) @ self.head.weight)


class OwnLayer(nn.Module):
    """A layer without a bias, and without the attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def refused(net: nn.Module, site: str, message: str) -> None:
    x, y = data()
    model = model_of(net.double(), f"{site}.*")
    guide = ps.guides.LastLayer(model)
    before = [parameter.clone() for parameter in guide.parameters()]
    with pytest.raises(ValueError, match=message) as error:
        ps.fit_last_layer(model, guide, (x, y))
    assert "choose_guide" in str(error.value) and "moments:bound" in str(error.value)
    assert all(map(torch.equal, before, guide.parameters()))


@pytest.mark.parametrize("kind", [Doubled, Normalized, SquaredWeight])
def test_layers_that_are_not_linear_are_refused(kind: Any) -> None:
    layer = kind(6, 2)
    with torch.no_grad():
        layer.weight.copy_(layer.weight > 0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), layer)
    refused(net, "2", rf"layer of site '2.weight', but this {kind.__name__} computes another")


def test_hooks_that_change_the_output_are_refused() -> None:
    net = network()
    net[2].register_forward_hook(lambda module, args, output: 2.0 * output)
    refused(net, "2", "layer of site '2.weight', but this Linear computes another")
    # One that changes the features is as good as a layer before it.
    net, (x, y) = network(), data()
    net[2].register_forward_pre_hook(lambda module, args: (2.0 * args[0],))
    model = model_of(net)
    guide = ps.guides.LastLayer(model)
    ps.fit_last_layer(model, guide, (x, y))
    with torch.no_grad():
        phi = torch.cat([2.0 * net[:2](x), torch.ones(40, 1).double()], 1)
    precision = torch.eye(7).double() / 0.7**2 + phi.mT @ phi / 0.3**2
    exact = torch.linalg.solve(precision, 0.1 / 0.7**2 + phi.mT @ y[:, 0] / 0.3**2)
    assert (guide.site_distribution("2.weight").mean[0] - exact[:6]).abs().max() < 1e-8


@pytest.mark.parametrize("kind", [Tied, Reused])
def test_features_that_depend_on_the_random_weight_are_refused(kind: Any) -> None:
    refused(kind(), "head", "features that do not depend on the random weight 'head.weight'.*tied")


def test_a_layer_without_the_attribute_bias_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), OwnLayer())
    refused(net, "2", "a bias that may be None, at site '2.weight', got OwnLayer")


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=x)


def test_single_precision_and_features_by_keyword() -> None:
    x, y = data()
    means = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        net = ByKeyword().to(dtype)
        model = model_of(net, "*")
        guide = ps.guides.LastLayer(model)
        ps.fit_last_layer(model, guide, (x.to(dtype), y.to(dtype)), batch_size=9)
        means.append(guide.site_distribution("head.weight").mean.double())
    assert torch.allclose(means[0], means[1], atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_and_features_that_are_not_finite_are_refused(value: float) -> None:
    net, (x, y) = network(), data()
    model = model_of(net)
    guide = ps.guides.LastLayer(model)
    wrong = y.clone()
    wrong[23, 1] = value
    with pytest.raises(ValueError, match=r"1 target\(s\) are NaN or infinite"):
        ps.fit_last_layer(model, guide, (x, wrong), batch_size=10)
    with pytest.raises(ValueError, match=r"expected targets of shape \(40, 2\)"):
        ps.fit_last_layer(model, guide, (x, y[:, :1]))
    with torch.no_grad():
        net[0].bias[0] = value
    net[1] = nn.Identity()
    with pytest.raises(ValueError, match="expected finite features, but the layer of site '2.weight'"):
        ps.fit_last_layer(model, guide, (x, y))
    assert all(torch.isfinite(parameter).all() for parameter in guide.parameters())

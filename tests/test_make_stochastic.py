"""Layers of a network turned into stochastic ones: their means are the layers themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation
from pyrostoch.layers import make_stochastic

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(3, 4), (3,)),
    "without bias": (nn.Linear(3, 4, bias=False), (3,)),
    "conv1d": (nn.Conv1d(2, 4, 3, groups=2, padding="same", padding_mode="circular"), (2, 7)),
    "conv2d": (nn.Conv2d(2, 4, (2, 3), stride=(1, 2), dilation=2, bias=False), (2, 9, 9)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "transposed 1d": (nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2, output_padding=1), (4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(2, 3, 2), (2, 3, 3)),
    "transposed 3d": (nn.ConvTranspose3d(2, 1, 2), (2, 2, 2, 2)),
}


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
@pytest.mark.parametrize("name", LAYERS)
def test_means_are_the_layer(name: str, distribution: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(5, *shape, dtype=torch.float64)
    expected = layer.double()(x)
    net = make_stochastic(nn.Sequential(layer), ["0"], distribution=distribution, scale=0.3)
    with MeanPropagation():
        found: Tensor = net(x)
    assert torch.allclose(found, expected)
    q = net[0].activation_distribution(x)  # type: ignore[index, operator]
    assert torch.allclose(q.scale, torch.full_like(q.scale, 0.3))


def test_logits_of_discrete_activations_are_the_layer() -> None:
    layer = nn.Linear(3, 4)
    x = torch.randn(5, 3)
    expected = layer(x).sigmoid()
    with MeanPropagation():
        assert torch.allclose(make_stochastic(nn.Sequential(layer), "0", distribution="bernoulli")(x), expected)


def test_a_network_trains_with_converted_layers() -> None:
    net = make_stochastic(ps.models.MLP(4, (8,), 3), "fc1", prior="standard").double()
    x, y = torch.randn(60, 4, dtype=torch.float64), torch.randint(0, 3, (60,))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=60)
    guide = ps.guides.Additive(model)
    run = ps.fit(model, guide, (x, y), epochs=5, progress=False, compile=False, rate_weight=0.1, seed=0)
    assert run.history["rate"][-1] < run.history["rate"][0]
    assert ps.decompose(model, guide, (x, y)).rates[0].layer == "fc1"


def test_more_or_less_noise_is_positive() -> None:
    layer = ps.layers.StochasticLinear(2, 2, distribution="categorical")
    with pytest.raises(ValueError, match="StochasticLinear noise_factor: expected .*got -1"):
        layer.noise_factor = -1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"no module\(s\) 'conv1'; the network has '0'"):
        make_stochastic(nn.Sequential(nn.Linear(1, 1)), "conv1")
    with pytest.raises(TypeError, match="'0' is a ReLU"):
        make_stochastic(nn.Sequential(nn.ReLU()), "0")
    with pytest.raises(ValueError, match="scale"):
        make_stochastic(nn.Sequential(nn.Linear(1, 1)), "0", scale=0.0)

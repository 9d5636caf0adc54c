"""The trained cells of the bench `layers`: gradients with the noise held fixed; saved, loaded and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.bench.case import Case
from pyrostoch.bench.published import BENCHES
from pyrostoch.data import DataSplit
from pyrostoch.effects import MeanPropagation
from pyrostoch.layers import StochasticLayer

LAYERS = BENCHES["layers"]
CASES = {case.name: case for case in LAYERS.cases}
COUNT = 6


@pytest.fixture(scope="module")
def split() -> DataSplit:
    x, y = torch.rand(COUNT, 1, 28, 28), torch.arange(COUNT)
    return DataSplit("mnist", "images", "classification", x, y, x, y, 10, (1, 28, 28), "bundled")


def model_of(case: Case, split: DataSplit) -> ps.BayesianModel:
    assert case.network is not None
    net = case.network(split).double()
    return ps.BayesianModel(net, likelihood=case.likelihood(), num_data=COUNT)


def gradient_matters(net: nn.Module) -> bool:
    """Whether draws are differentiable functions of the parameters, once the noise is fixed."""
    layers = [part for part in net.modules() if isinstance(part, StochasticLayer)]
    assert layers
    # Gamma draws are found by rejection: their gradient is exact, but no derivative for fixed random numbers.
    return all(layer.gradient == "reparameterized" and layer.family.noise for layer in layers)


@pytest.mark.parametrize("name", CASES)
def test_gradients_with_the_noise_held_fixed(name: str, split: DataSplit) -> None:
    """The derivative in a random direction of all parameters; of the rate alone where draws are discrete."""
    model = model_of(CASES[name], split)
    guide, x, y = ps.guides.Additive(model), split.x_train.double(), split.y_train
    model.eval()
    differentiable = gradient_matters(model.net)

    def loss() -> Tensor:
        torch.manual_seed(5)
        terms = ps.ELBO().terms(model, guide, x, y)
        return torch.as_tensor(terms.loss() if differentiable else terms.rate)

    loss()  # analyzes the network
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    directions = [torch.randn_like(parameter) for parameter in parameters]
    # Short enough that few of the ReLUs change sign on the way.
    length = torch.stack([direction.square().sum() for direction in directions]).sum().sqrt()
    directions = [10.0 * direction / length for direction in directions]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    found = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
        values.append(loss().detach())
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=step)
    expected = (values[0] - values[1]) / 2e-6
    assert torch.allclose(torch.as_tensor(found), expected, rtol=2e-3, atol=1e-3), (found, expected)


# Torch's own recurrent networks give this warning, too.
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_saved_loaded_and_exported(name: str, split: DataSplit, tmp_path: Path) -> None:
    model, other = model_of(CASES[name], split), model_of(CASES[name], split)
    x: Any = split.x_train.double()
    ps.save(tmp_path / "a.safetensors", model, ps.guides.Additive(model))
    ps.load(tmp_path / "a.safetensors", other, ps.guides.Additive(other))
    net, loaded = model.net.eval(), other.net.eval()
    with torch.no_grad(), MeanPropagation():
        expected = net(x)
        assert torch.equal(loaded(x), expected)
        batch: Any = ({0: torch.export.Dim("batch", min=2)},)
        mean = torch.export.export(net, (x,), dynamic_shapes=batch).module()
    assert torch.allclose(mean(x), expected) and torch.allclose(mean(x[:2]), expected[:2])
    with torch.no_grad():
        sizes = None if "binomial" in name else batch  # torch 2.13 has no rule for the sizes of binomial draws
        drawing = torch.export.export(net, (x,), dynamic_shapes=sizes).module()
        first, second = drawing(x), drawing(x)
    assert first.shape == expected.shape and not torch.equal(first, second)

"""What every layer does, by the registry."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from common import COPIES, assert_documented, kinds, public, same_state
from registry import LAYERS
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import layers
from pyrostoch.effects import MeanPropagation

DRAWS = 600
each_layer = pytest.mark.parametrize("name", LAYERS)


def inputs(name: str, count: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (count, *LAYERS[name].shape)
    return torch.randint(0, 6, shape) if LAYERS[name].whole_numbers else torch.randn(shape, dtype=dtype)


def call(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    return LAYERS[name].call(layer, x)


def test_every_public_layer_is_registered() -> None:
    # Selections give no activations; they are parts of a Conditional layer. An exposure is one more input of a network.
    without = ("RandomWeights", "SoftSelection", "GatedSelection", "SelectedAt", "WithExposure")
    assert public(layers, nn.Module, without=without) == kinds(LAYERS)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype(name: str, dtype: torch.dtype) -> None:
    layer = LAYERS[name].make().to(dtype)
    output = call(name, layer, inputs(name, dtype=dtype))
    assert output.shape[0] == 5 and output.dtype == dtype and torch.isfinite(output).all()


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_draws_are_fresh_in_either_mode_and_seeds_repeat_them(name: str, training: bool) -> None:
    layer, x = LAYERS[name].make().train(training), inputs(name, 40)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(call(name, layer, x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@each_layer
def test_examples_share_a_draw_where_weights_are_random_and_not_where_activations_are(name: str) -> None:
    layer, x = LAYERS[name].make(), inputs(name, 1)
    output = call(name, layer, x.expand(30, *x.shape[1:]))
    assert bool(torch.allclose(output, output[:1], atol=1e-6)) != LAYERS[name].by_example


@each_layer
def test_the_mean_of_draws_is_the_output_under_mean_propagation(name: str) -> None:
    if not LAYERS[name].keeps_mean:
        return
    layer, x = LAYERS[name].make().double(), inputs(name, 3, torch.float64)
    with torch.no_grad():
        with MeanPropagation():
            mean = call(name, layer, x)
        draws = torch.stack([call(name, layer, x) for _ in range(DRAWS)])
    # A state that no draw is in may still have a chance of ten in so many draws.
    rare = 10.0 / DRAWS if LAYERS[name].by_example else 1e-9
    assert ((draws.mean(0) - mean).abs() <= 5.5 * draws.std(0) / math.sqrt(DRAWS) + rare).all()


@each_layer
def test_gradients_are_finite_by_inputs_and_parameters(name: str) -> None:
    layer, x = LAYERS[name].make(), inputs(name)
    x = x if LAYERS[name].whole_numbers else x.requires_grad_()
    read = [p for p in layer.parameters() if p.requires_grad] + ([] if LAYERS[name].whole_numbers else [x])
    if not read:
        return  # an embedding whose one parameter is random, and a guide's
    call(name, layer, x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in read)


@each_layer
def test_it_is_part_of_a_model_under_every_estimator(name: str) -> None:
    layer, x = LAYERS[name].make(), inputs(name)
    if isinstance(layer, layers.PyroNetwork):
        return  # a model itself

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return call(name, self.layer, x)

    model = ps.BayesianModel(Net(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=10)
    y = torch.zeros_like(call(name, layer, x))
    guide = ps.guides.Additive(model)
    for estimator in ("shared", "local", "flipout"):
        loss = ps.ELBO(estimator)(model, guide)(x, y)
        assert torch.isfinite(loss)
    assert set(model.sites) == {f"layer.{parameter}" for parameter in getattr(layer, "priors", {})}


@each_layer
def test_its_state_comes_back(name: str) -> None:
    layer, other = LAYERS[name].make(), LAYERS[name].make()
    with torch.no_grad():
        for value in layer.state_dict().values():
            value.add_(0.1)
    other.load_state_dict(layer.state_dict())
    assert same_state(layer, other)


@each_layer
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_independent(name: str, way: str) -> None:
    layer, x = LAYERS[name].make(), inputs(name)
    twin: Any = COPIES[way](layer)
    outputs = []
    for each in (layer, twin):
        torch.manual_seed(0)
        outputs.append(call(name, each, x))
    assert type(twin) is type(layer) and same_state(layer, twin) and torch.equal(*outputs)
    assert getattr(twin, "sites", {}).keys() == getattr(layer, "sites", {}).keys()


@pytest.mark.gpu
@each_layer
def test_device_is_changed_by_to(name: str) -> None:
    layer = LAYERS[name].make().to("cuda")
    assert call(name, layer, inputs(name).cuda()).device.type == "cuda"


@each_layer
def test_nothing_goes_to_pyros_parameter_store(name: str) -> None:
    call(name, LAYERS[name].make(), inputs(name))
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("kind", sorted(kinds(LAYERS)))
def test_documentation(kind: str) -> None:
    thing = getattr(layers, kind)
    own = not issubclass(thing, (layers.RandomWeights, layers.PyroNetwork))
    assert_documented(thing, source=kind in {"KState", "MCDropout", "RateNetwork", "ThresholdNeuron"}, shapes=own)

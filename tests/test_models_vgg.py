"""VGG: its published shapes, its patterns of random layers, its dropout, and its outputs and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch import models
from pyrostoch.effects import MeanPropagation
from pyrostoch.layers import MCDropout
from pyrostoch.models import VGG

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
ENDS = (2, 4, 7, 10, 13)
RANDOM = ["conv11.weight", "conv12.weight", "conv13.weight", "dense1.weight"]
PUBLISHED = {1: 0.3, 3: 0.4, 5: 0.4, 6: 0.4, 8: 0.4, 9: 0.4, 13: 0.5, 14: 0.5}


def tiny(**options) -> VGG:
    return VGG(width=1 / 16, **options)


def bayesian(net: nn.Module) -> ps.BayesianModel:
    return ps.BayesianModel(
        net,
        prior=dict.fromkeys(VGG.VARIATIONAL, ps.priors.LogUniform()),
        likelihood=ps.likelihoods.Categorical(),
        num_data=60,
    )


@pytest.mark.parametrize("width", [1.0, 0.25])
@pytest.mark.parametrize(("channels", "classes", "size", "pixels"), [(3, 10, 32, 1), (1, 20, (64, 107), 6)])
def test_widths_and_number_of_parameters(width, channels, classes, size, pixels):
    with torch.device("meta"):
        net = VGG(channels, classes, size, width)
    widths = [int(width * full) for full in WIDTHS]
    before = [channels, *widths[:-1]]
    for index, (inputs, outputs) in enumerate(zip(before, widths, strict=True), 1):
        conv = getattr(net, f"conv{index}")
        assert conv.weight.shape == (outputs, inputs, 3, 3) and conv.bias is None and conv.padding == (1, 1)
        assert getattr(net, f"bn{index}").num_features == outputs
    dense = int(width * 512)
    assert net.dense1.weight.shape == (dense, pixels * widths[-1]) and net.dense1.bias is None
    assert net.bn14.num_features == dense
    assert net.dense2.weight.shape == (classes, dense) and net.dense2.bias.shape == (classes,)
    convolutions = sum(9 * inputs * outputs for inputs, outputs in zip(before, widths, strict=True))
    expected = convolutions + 2 * sum(widths) + pixels * widths[-1] * dense + 2 * dense + (dense + 1) * classes
    assert sum(parameter.numel() for parameter in net.parameters()) == expected
    if (channels, classes, size) == (3, 10, 32):
        count = {1.0: ("14,987,210", "7,340,032"), 0.25: ("939,770", "458,752")}[width]
        random = sum(net.get_parameter(name).numel() for name in RANDOM)
        assert (f"{expected:,}", f"{random:,}") == count
        assert all(f"| {number} |" in VGG.__doc__ for number in count)


def test_weights_start_uniform_in_one_over_the_root_of_the_fan_in():
    net = VGG(width=0.25)
    for layer in (net.conv5, net.conv13, net.dense1, net.dense2):
        bound = layer.weight[0].numel() ** -0.5
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound
        assert abs(layer.weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.05


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (2, 33, 95)])
def test_outputs(shape):
    net, x = tiny(in_channels=shape[0], num_classes=7, image_size=shape[1:]), torch.randn(4, *shape)
    assert net(x).shape == (4, 7)
    assert net.eval()(x[:1]).shape == (1, 7)


def test_equals_a_sequence_of_its_layers_in_value_and_gradient():
    """The reference applies ReLU before it pools; the two commute, so only rounding errors differ."""
    net, x = tiny(num_classes=5).double(), torch.randn(6, 3, 32, 32, dtype=torch.float64)
    layers: list[nn.Module] = []
    for index in range(1, 14):
        layers += [getattr(net, f"conv{index}"), getattr(net, f"bn{index}"), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if index in ENDS else []
    reference = nn.Sequential(*layers, nn.Flatten(), net.dense1, net.bn14, nn.ReLU(), net.dense2)
    results = []
    for network in (net, reference):
        net.zero_grad()
        x = x.detach().requires_grad_()
        with MeanPropagation():
            out = network(x)
        out.logsumexp(1).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad.clone() for p in net.parameters())])
    assert all(grad.any() for grad in results[0])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def dropout_of(net: nn.Module) -> dict[int, float]:
    assert all(name.startswith("drop") for name, part in net.named_modules() if isinstance(part, MCDropout))
    return {int(name[4:]): part.p for name, part in net.named_children() if isinstance(part, MCDropout)}


def test_dropout_is_where_the_publication_has_it():
    assert dropout_of(tiny()) == PUBLISHED
    assert dropout_of(tiny(dropout_in_last_block=True)) == PUBLISHED | {11: 0.4, 12: 0.4}
    assert dropout_of(tiny(dropout=False)) == dropout_of(tiny(dropout=False, dropout_in_last_block=True)) == {}
    names = [name for name, _ in tiny().named_children()]
    for index in PUBLISHED:
        at = names.index(f"drop{index}")
        assert names[at - 1] == f"act{index}"
        following = {13: ["flatten", "dense1"], 14: ["dense2"]}.get(index, [f"conv{index + 1}"])
        assert names[at + 1 : at + 1 + len(following)] == following


def test_dropout_is_off_under_mean_propagation_alone():
    net, x = tiny().eval(), torch.randn(3, 3, 32, 32)
    plain = tiny(dropout=False).eval()
    plain.load_state_dict(net.state_dict())
    with MeanPropagation():
        assert torch.equal(net(x), net(x)) and torch.equal(net(x), plain(x))
    assert not torch.equal(net(x), net(x)) and torch.equal(plain(x), plain(x))


def test_patterns_choose_the_published_random_layers():
    assert list(bayesian(tiny()).sites) == RANDOM
    chosen = ps.BayesianModel(
        tiny(),
        prior={"conv1[123].weight": ps.priors.LogUniform(), "dense1.weight": ps.priors.Normal()},
        likelihood=ps.likelihoods.Categorical(),
        num_data=60,
    )
    assert list(chosen.sites) == RANDOM
    distributions = {name: type(chosen.prior(name)).__name__ for name in chosen.sites}
    assert distributions == {**dict.fromkeys(RANDOM[:3], "LogUniform"), "dense1.weight": "Normal"}


@pytest.mark.parametrize("family", ["gaussian", "bernoulli", "uniform"])
@pytest.mark.parametrize("dropout", [True, False])
def test_a_training_step_as_a_variance_network_changes_every_layer(family, dropout):
    net = tiny(dropout=dropout)
    model = bayesian(net)
    guide = ps.guides.VarianceOnly(model, family=family)
    x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    terms = ps.ELBO("local").terms(model, guide, x, y)
    assert sorted(terms.treatments) == RANDOM and all(
        treatment.startswith("local") for treatment in terms.treatments.values()
    )
    loss = ps.ELBO("local")(model, guide)
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    optimizer = torch.optim.Adam([*guide.parameters(), *model.parameters()], 1e-2)
    loss(x, y).backward()
    assert len(before) == len(RANDOM)
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in guide.parameters())
    rest = {name: p for name, p in net.named_parameters() if name not in RANDOM}
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in rest.values())
    optimizer.step()
    assert all(not torch.equal(*pair) for pair in zip(before, guide.parameters(), strict=True))


def test_state_dicts_can_be_loaded_and_contain_no_dropout():
    net, other = tiny(), tiny(dropout_in_last_block=True)
    net(torch.randn(4, 3, 32, 32))  # moves the running statistics
    assert not any(name.startswith(("drop", "act", "pool", "flatten")) for name in net.state_dict())
    assert list(net.state_dict()) == list(other.state_dict()) == list(tiny(dropout=False).state_dict())
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with MeanPropagation():
        assert torch.equal(net.eval()(x), other.eval()(x)) and not torch.equal(net(x), tiny().eval()(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG(image_size=28), "VGG: expected images of at least 32 x 32 pixels.*got 28 x 28.*LeNet5"),
        (lambda: VGG(image_size=(31, 64)), "got 31 x 64"),
        (lambda: VGG(in_channels=0), "in_channels=0"),
        (lambda: VGG(num_classes=0), "num_classes=0"),
        (lambda: VGG(width=0.0), "VGG width: expected a positive finite number, got 0.0"),
        (lambda: VGG(width=math.inf), "VGG width"),
        (lambda: tiny()(torch.zeros(2, 1, 32, 32)), r"\(batch, 3, 32, 32\), got \(2, 1, 32, 32\)"),
        (lambda: models.build("vgg", input_shape=(1, 28, 28), num_outputs=2), "at least 32 x 32 pixels"),
        (lambda: models.build("vgg-narrow", input_shape=(13,), num_outputs=2), r"'vgg-narrow'.*\(13,\); use 'mlp'"),
        (lambda: models.build("vgg16", input_shape=(3, 32, 32), num_outputs=2), "did you mean 'vgg'"),
    ],
)
def test_wrong_sizes_and_names_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_smallest_width_is_one():
    assert VGG(width=1e-3, num_classes=2)(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_networks_by_name():
    with torch.device("meta"):
        full, narrow = (models.build(name, input_shape=(3, 32, 40), num_outputs=4) for name in ("vgg", "vgg-narrow"))
    assert full.dense1.weight.shape == (512, 512) and narrow.dense1.weight.shape == (128, 128)
    assert full.dense2.out_features == narrow.dense2.out_features == 4
    assert dropout_of(full) == dropout_of(narrow) == PUBLISHED

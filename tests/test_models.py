"""The networks that come with the package: shapes, names, initialization, and errors that name the sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch import models
from pyrostoch.effects import MeanPropagation
from pyrostoch.layers import MCDropout

NETWORKS = {
    "mlp": (lambda: models.MLP(12), (3, 2, 2), 10),
    "mlp, one number": (lambda: models.MLP(1, (5,), 2, "tanh"), (), 2),
    "mlp, linear": (lambda: models.MLP(4, (), 3), (4,), 3),
    "mlp, all options": (lambda: models.MLP(6, (5, 4), 2, nn.SiLU, batch_norm=True, dropout=0.1), (2, 3), 2),
    "lenet5, 28": (lambda: models.LeNet5(widths=(2, 3, 4)), (1, 28, 28), 10),
    "lenet5, 32": (lambda: models.LeNet5(3, 7, 32, (2, 3, 4), batch_norm=False), (3, 32, 32), 7),
    "lenet5, smallest": (lambda: models.LeNet5(1, 2, (16, 21), (2, 3, 4)), (1, 16, 21), 2),
    "lenet5, dropout": (lambda: models.LeNet5(widths=(2, 3, 4), dropout=0.5), (1, 28, 28), 10),
    "vgg": (lambda: models.VGG(width=1 / 16), (3, 32, 32), 10),
    "built mlp": (lambda: models.build("mlp", input_shape=(1, 8, 8), num_outputs=10), (1, 8, 8), 10),
    "built lenet5": (lambda: models.build("lenet5", input_shape=[2, 18, 20], num_outputs=4), (2, 18, 20), 4),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_shapes_and_training(network):
    make, shape, outputs = NETWORKS[network]
    net, x = make(), torch.randn(6, *shape)
    assert net(x).shape == (6, outputs)
    assert net.eval()(x[:1]).shape == (1, outputs)
    model = ps.BayesianModel(
        net.train(), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=60
    )
    guide = ps.guides.Additive(model)
    labels = torch.randint(0, outputs, (6,))
    terms = ps.ELBO("local").terms(model, guide, x, labels)
    assert all(treatment.startswith("local") for treatment in terms.treatments.values()) and terms.treatments
    terms.data.backward()
    assert all(parameter.grad.any() for parameter in guide.parameters())


def test_lenet5_has_the_published_shapes():
    net = models.LeNet5()
    shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters() if "bn" not in name}
    assert shapes == {
        "conv1.weight": (20, 1, 5, 5),
        "conv2.weight": (50, 20, 5, 5),
        "dense1.weight": (500, 800),
        "dense2.weight": (10, 500),
    }
    assert [name for name, _ in net.named_children()] == ["conv1", "bn1", "conv2", "bn2", "dense1", "bn3", "dense2"]
    assert models.LeNet5(image_size=32).dense1.in_features == 1250
    for layer in (net.conv1, net.conv2, net.dense1, net.dense2):
        bound = layer.weight[0].numel() ** -0.5
        largest = layer.weight.abs().max().item()
        assert 0.9 * bound < largest <= bound
        assert abs(layer.weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.1


def test_lenet5_pools_before_relu_with_the_same_gradients():
    net, x = models.LeNet5(widths=(4, 6, 20)).double(), torch.randn(5, 1, 28, 28, dtype=torch.float64)
    pool = nn.MaxPool2d(2)
    reference = nn.Sequential(
        *(net.conv1, net.bn1, nn.ReLU(), pool, net.conv2, net.bn2, nn.ReLU(), pool),
        *(nn.Flatten(), net.dense1, net.bn3, nn.ReLU(), net.dense2),
    )
    results = []
    for network in (net, reference):
        net.zero_grad()
        x = x.detach().requires_grad_()
        out = network(x)
        out.logsumexp(1).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad.clone() for p in net.parameters())])
    assert all(grad.any() for grad in results[0])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-13)


def test_lenet5_drops_the_inputs_of_its_hidden_dense_layer():
    plain, net = models.LeNet5(widths=(4, 6, 20)).eval(), models.LeNet5(widths=(4, 6, 20), dropout=0.4).eval()
    assert isinstance(net.drop2, MCDropout) and net.drop2.p == 0.4
    assert list(net.state_dict()) == list(plain.state_dict())
    net.load_state_dict(plain.state_dict())
    seen = []
    for network in (plain, net):
        network.dense1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(50, 1, 28, 28)
    assert torch.equal(plain(x), plain(x)) and not torch.equal(net(x), net(x))
    inputs, dropped = seen[0], seen[-1]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], inputs[kept] / 0.6)
    assert abs(kept.sum().item() / (inputs != 0).sum().item() - 0.6) < 0.03
    with MeanPropagation():
        assert torch.equal(net(x), plain(x))


def test_lenet5_equals_a_sequence_of_its_layers():
    net, x = models.LeNet5(widths=(4, 6, 20)).double().eval(), torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        for bn in (net.bn1, net.bn2, net.bn3):
            bn.running_mean.normal_(0.0, 0.1)
            bn.running_var.uniform_(0.5, 1.5)
        pool = nn.MaxPool2d(2)
        reference = nn.Sequential(
            *(net.conv1, net.bn1, nn.ReLU(), pool, net.conv2, net.bn2, nn.ReLU(), pool),
            *(nn.Flatten(), net.dense1, net.bn3, nn.ReLU(), net.dense2),
        )
        assert torch.equal(net(x), reference(x)) and (net(x)[0] != net(x)[1]).all()


def test_mlp_names_and_parts():
    net = models.MLP(6, (5, 4), 2, batch_norm=True, dropout=0.5)
    names = ["fc1", "bn1", "act1", "drop1", "fc2", "bn2", "act2", "drop2", "fc3"]
    assert [name for name, _ in net.named_children()] == names
    assert net.fc1.bias is None and net.fc3.bias is not None
    assert isinstance(net.drop1, MCDropout) and isinstance(net.act1, nn.ReLU)
    x = torch.randn(30, 6)
    net.eval()
    with MeanPropagation():
        assert torch.equal(net(x), net(x))
    assert not torch.equal(net(x), net(x))
    assert [name for name, _ in models.MLP(6, (5,)).named_children()] == ["fc1", "act1", "fc2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.MLP(4)(torch.zeros(2, 5)), r"MLP: expected 4 values per example, got .*\(2, 5\), 5 per"),
        (lambda: models.MLP(4, (3, 0)), r"MLP: expected positive whole numbers.*\[4, 3, 0, 10\]"),
        (lambda: models.MLP(4, activation="rleu"), "activation: expected one of.*did you mean 'relu'"),
        (lambda: models.LeNet5(image_size=8), "LeNet5: expected images of at least 16 x 16 pixels, got 8 x 8.*MLP"),
        (lambda: models.LeNet5(image_size=(28, 15)), "at least 16 x 16 pixels, got 28 x 15"),
        (lambda: models.LeNet5(widths=(2, 3)), r"three positive widths.*widths=\(2, 3\)"),
        (lambda: models.LeNet5(num_classes=0), "num_classes=0"),
        (lambda: models.LeNet5(dropout=1.0), r"MCDropout: expected a probability p in \[0, 1\), got 1.0"),
        (lambda: models.LeNet5(dropout=-0.1), "got -0.1"),
        (lambda: models.LeNet5()(torch.zeros(2, 28, 28)), r"\(batch, 1, 28, 28\), got \(2, 28, 28\)"),
        (lambda: models.build("lenet", input_shape=(1, 28, 28), num_outputs=2), "did you mean 'lenet5'"),
        (lambda: models.build("lenet5", input_shape=(13,), num_outputs=2), r"'lenet5'.*\(13,\); use 'mlp'"),
    ],
)
def test_wrong_sizes_and_names_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_name_can_be_built():
    for name in models.NAMES:
        assert models.build(name, input_shape=(1, 32, 32), num_outputs=3)(torch.zeros(2, 1, 32, 32)).shape == (2, 3)

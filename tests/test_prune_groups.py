"""Structured pruning: the smaller network is the masked one, by every criterion."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
import torch.nn.functional as F
from cut_networks import bayes, cut, outputs
from torch import nn

import pyrostoch as ps
from pyrostoch import priors
from pyrostoch.guides import load_smaller, prune_groups


def masked_by_hand(net, pruning, silent=()):
    """The network with zeros: rows of weights, and where named the bias or batch normalization's shift too."""
    net = copy.deepcopy(net).eval()
    modules = dict(net.named_modules())
    with torch.no_grad():
        for name, keep in pruning.masks.items():
            for unit in torch.nonzero(~keep)[:, 0].tolist():
                modules[name].weight[unit] = 0
        for name, layer in silent:
            gone = ~pruning.masks[layer]
            for part in ("bias", "weight", "running_mean")[: 1 if name == layer else 3]:
                if getattr(modules[name], part) is not None:
                    getattr(modules[name], part)[gone] = 0
    return net


class Flat(nn.Module):
    """A user's network with functional operations, and a concatenation."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(1, 5, 3), nn.Conv2d(1, 4, 3)
        self.bn, self.prelu = nn.BatchNorm2d(9), nn.PReLU(9)
        self.one, self.two = nn.Linear(9 * 9 + 2, 7), nn.Linear(7, 3)

    def forward(self, x):
        h = torch.cat([torch.sigmoid(self.conv(x)), self.other(x).tanh()], 1)
        h = F.max_pool2d(self.prelu(self.bn(h)), 2).movedim(1, -1).reshape(len(x), -1)  # channels last
        return self.two(F.gelu(self.one(torch.cat([h, x.mean((1, 2, 3))[:, None], x.amax((1, 2, 3))[:, None]], 1))))


def padded():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding="same"), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(),
        nn.Linear(20, 4),
    )  # fmt: skip


def circular():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Sigmoid(),
        nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular", bias=False), nn.BatchNorm2d(5, affine=False), nn.PReLU(),
        nn.Flatten(), nn.Linear(5 * 64, 4, bias=False),
    )  # fmt: skip


IMAGE = (6, 1, 8, 8)
# The network, its input, the layers cut, and those whose shift goes with the weights.
NETS = {
    "MLP": (lambda: ps.models.MLP(9, (8, 7), 3), (6, 9), ["fc1", "fc2"], []),
    "MLP, batch norm, sigmoid": (
        lambda: ps.models.MLP(9, (8, 7), 3, batch_norm=True, dropout=0.3, activation="sigmoid"),
        (6, 9),
        ["fc1", "fc2"],
        [],
    ),
    "LeNet5": (
        lambda: ps.models.LeNet5(image_size=16, widths=(4, 5, 9), dropout=0.3),
        (6, 1, 16, 16),
        ["conv1", "conv2", "dense1"],
        [],
    ),
    "padded": (padded, IMAGE, ["0", "4"], [("0", "0"), ("1", "0")]),
    "circular": (circular, IMAGE, ["0", "2"], []),
    "a user's": (Flat, IMAGE, ["conv", "other", "one"], []),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)),
        (6, 3, 4),
        ["0", "2"],
        [],
    ),
    "one axis": (
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ELU(), nn.Flatten(), nn.Linear(36, 2)),
        (6, 2, 8),
        ["0"],
        [],
    ),
}


@pytest.mark.parametrize("case", NETS)
def test_the_smaller_network_is_the_masked_one(case):
    make, shape, layers, silent = NETS[case]
    net, x = make(), torch.randn(shape)
    pruning = cut(net, x)
    assert list(pruning.masks) == layers
    small = pruning.export()
    fresh = torch.randn(shape)
    expected = outputs(masked_by_hand(net, pruning, silent), fresh)
    torch.testing.assert_close(outputs(pruning.masked, fresh), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs(small, fresh), expected, rtol=1e-5, atol=1e-5)
    assert (outputs(copy.deepcopy(net).eval(), fresh) - expected).abs().max() > 1e-3  # something was removed
    assert type(small) is type(net) and not small.training and all(p.requires_grad for p in small.parameters())
    for row in pruning.layers:
        removed = round(0.4 * row.units) if row.layer in layers else 0
        weight = small.get_submodule(row.layer).weight
        assert row.kept == row.units - removed == len(weight) and row.left == weight.numel() < row.weights
    assert pruning.left == sum(p.numel() for p in small.parameters()) < pruning.parameters
    assert f"{pruning.left} of {pruning.parameters}" in str(pruning)
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    buffer.seek(0)
    loaded = load_smaller(make(), torch.load(buffer, weights_only=True))
    assert torch.equal(outputs(loaded, fresh), outputs(small, fresh))
    outputs(small, fresh[:1])  # another number of examples


def test_a_vgg_in_a_few_channels():
    net = ps.models.VGG(num_classes=3, width=0.04, dropout=True)
    x = torch.rand(4, 3, 32, 32)
    pruning = cut(net, x)
    fresh = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(outputs(pruning.export(), fresh), outputs(pruning.masked, fresh), rtol=1e-4, atol=1e-5)
    assert len(pruning.masks) == 14 and list(pruning.kept_whole) == ["dense2"]
    assert ps.guides.refresh_batch_norm(pruning.export(), torch.rand(20, 3, 32, 32)) == 14


def test_what_each_criterion_compares():
    prior = {
        "fc1.weight": priors.Horseshoe(slab=0.8),
        "fc2.weight": priors.GroupScale("in"),
        "fc3.weight": priors.EmpiricalBayes(groups="in"),
    }
    model = bayes(ps.models.MLP(5, (6, 4), 3), prior)
    guide = ps.guides.Additive(model, init_scale=lambda site: torch.rand_like(site.init) + 0.1)
    with torch.no_grad():
        for site in ("fc1.weight_prior_scale", "fc1.weight_prior_local", "fc2.weight_prior_scale"):
            guide.parameters_for(site)["loc"].normal_()
        model.prior("fc3.weight").log_scale.normal_()
    x = torch.randn(6, 5)
    medians = {n: guide.parameters_for(n)["loc"].detach().double().exp() for n in guide.site_names if "_prior_" in n}
    scale = medians["fc1.weight_prior_scale"] * medians["fc1.weight_prior_local"][:, 0]
    scale = 1 / (scale**-2 + 0.8**-2).sqrt() * medians["fc2.weight_prior_scale"][0]
    limit = scale.sort().values[2:4].mean().item()
    found = prune_groups(model, guide, x, by="scale", threshold=limit)
    torch.testing.assert_close(found.scores["fc1"], scale)
    torch.testing.assert_close(found.scores["fc2"], model.prior("fc3.weight").log_scale.detach().double().exp()[0])
    assert torch.equal(found.masks["fc1"], scale > limit) and "scale >" in found.criterion
    for by in ("norm", "log_alpha"):
        found = prune_groups(model, guide, x, by=by, amount=0.5)
        for unit in range(6):
            weight = guide.site_distribution("fc1.weight").base_dist
            mean, variance = weight.mean[unit].detach().double(), weight.variance[unit].detach().double()
            expected = mean.norm() if by == "norm" else (variance.sum() / mean.square().sum()).log()
            torch.testing.assert_close(found.scores["fc1"][unit], expected)
        order = found.scores["fc1"].argsort(descending=by == "norm")
        assert sorted(order[:3].tolist()) == torch.nonzero(found.masks["fc1"])[:, 0].tolist()
    plain = bayes(ps.models.MLP(5, (6, 4), 3))
    with pytest.raises(ValueError, match="can lose units by scale: .*'fc1': its prior gives no scale of its units"):
        prune_groups(plain, ps.guides.Additive(plain), x, by="scale", amount=0.5)
    with pytest.raises(ValueError, match="no scale of the units of layer 'fc1'.*groups='out'"):
        prune_groups(plain, ps.guides.Additive(plain), x, by="scale", amount=0.5, layers="fc1")
    part = ps.guides.Additive(model, sites=["fc1.weight", "fc2.weight", "fc3.weight"])
    with pytest.raises(
        ValueError, match="does not cover 'fc1.weight_prior_scale', a scale of the prior of 'fc1.weight'"
    ):
        prune_groups(model, part, x, by="scale", amount=0.5)


def test_a_horseshoe_finds_the_neurons_that_are_needed():
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    y = torch.tanh(2 * x[:, :1]) - torch.tanh(2 * x[:, 1:2])
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1))
    model = ps.BayesianModel(
        net,
        prior={"0.weight": priors.Normal(), "2.weight": priors.Horseshoe(groups="in")},
        likelihood=ps.likelihoods.Gaussian(0.1),
        num_data=200,
    )
    guide = ps.guides.Additive(model, init_scale=0.05)
    loss = ps.ELBO("local")(model, guide)
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
    pruning = prune_groups(model, guide, x, by="scale", threshold=0.2, layers=["0"])
    assert 2 <= pruning.layers[0].kept <= 8
    whole = prune_groups(model, guide, x, by="norm", amount=0.0).export()
    errors = [(outputs(each, x) - y).square().mean().sqrt().item() for each in (whole, pruning.export())]
    assert errors[1] < errors[0] + 0.1


def test_one_unit_is_left_with_a_warning():
    model = bayes(ps.models.MLP(5, (6, 4), 3))
    with pytest.warns(UserWarning, match="no unit of layer 'fc[12]' passes norm > 1000; one is kept"):
        pruning = prune_groups(model, ps.guides.Additive(model), torch.randn(6, 5), by="norm", threshold=1000.0)
    assert [row.kept for row in pruning.layers] == [1, 1, 3]


def test_nothing_of_the_users_is_changed_or_drawn():
    net = NETS["padded"][0]()
    model = bayes(net)
    guide = ps.guides.Additive(model)
    x = torch.rand(IMAGE)
    state, before, kept = copy.deepcopy(model.state_dict()), torch.get_rng_state(), x.clone()
    first, second = (prune_groups(model, guide, x, by="norm", amount=0.4) for _ in range(2))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, kept) and model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in first.network.modules())
    assert first.to_dict() == second.to_dict() and "masks" not in first.to_dict()
    first.export()[0].weight.data.zero_()
    assert torch.equal(first.export()[0].weight, second.export()[0].weight)


def instance_normalized():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.InstanceNorm2d(5), nn.ReLU(),
        nn.Flatten(2), nn.Conv1d(5, 4, 3), nn.InstanceNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14, 3),
    )  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_instance_normalization_without_weights_has_the_size_of_its_input():
    x = torch.randn(IMAGE)
    pruning = cut(instance_normalized(), x)
    small = pruning.export()
    assert len(pruning.masks) == 3
    sizes = [small[place].out_channels for place in (0, 3, 7)]
    assert [small[place].num_features for place in (1, 4, 8)] == sizes and sizes == [4, 3, 2]
    torch.testing.assert_close(outputs(small, x), outputs(pruning.masked, x), rtol=1e-4, atol=1e-5)
    loaded = load_smaller(instance_normalized(), small.state_dict())
    for net in (copy.deepcopy(loaded), loaded):
        torch.testing.assert_close(outputs(net, x), outputs(small, x))
        assert [net[place].num_features for place in (1, 4, 8)] == sizes
        assert not any(module._forward_pre_hooks for module in net.modules())
    assert not any(module._forward_pre_hooks for module in small.modules())


def test_what_is_refused():
    model = bayes(ps.models.MLP(5, (6, 4), 3))
    guide, x = ps.guides.Additive(model), torch.randn(6, 5)
    call = functools.partial(prune_groups, model, guide, x)
    with pytest.raises(ValueError, match="by='norm' needs a threshold"):
        call(by="norm")
    with pytest.raises(ValueError, match="threshold or amount, got both"):
        call(threshold=1.0, amount=0.5)
    for bad in (1.0, -0.1, True, float("nan")):
        with pytest.raises(ValueError, match="prune_groups amount: expected"):
            call(amount=bad)
    with pytest.raises(ValueError, match="expected names of linear layers.*got 'fc9'.*'fc1'"):
        call(amount=0.5, layers=["fc9"])
    with pytest.raises(ValueError, match="layer 'fc3' cannot lose units: its outputs reach the network's output"):
        call(amount=0.5, layers=["fc3"])
    for same in (torch.zeros(6, 5), x[:1]):
        with pytest.raises(ValueError, match="at least two different examples"):
            prune_groups(model, guide, same, amount=0.5)
    with pytest.raises(TypeError, match="expected a BayesianModel, got MLP"):
        prune_groups(model.net, guide, x)
    with pytest.raises(ValueError, match="prune_groups: the distribution at site 'fc1.weight' has mean zero"):
        prune_groups(model, ps.guides.VarianceOnly(model), x)
    with pytest.raises(ValueError, match=r"no value is given for random weight\(s\) 'fc1.weight'"):
        prune_groups(model, ps.guides.Additive(model, sites=["fc2.weight", "fc3.weight"]), x)
    with pytest.raises(ValueError, match="load_smaller: the state dict is that of another architecture"):
        load_smaller(nn.Linear(4, 3), ps.models.MLP(5, (6, 4), 3).state_dict())
    with pytest.raises(TypeError, match="load_smaller: expected a network and the state dict"):
        load_smaller(nn.Linear(4, 3), [])

    class Drawing(nn.Sequential):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5)

    with pytest.raises(ValueError, match="two calls of the network on the same inputs differ"):
        cut(Drawing(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 30)), x)

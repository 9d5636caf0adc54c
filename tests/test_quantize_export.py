"""Networks of integers: their states, distribution of draws, costs and state dicts, and networks that are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyrostoch as ps
from pyrostoch.effects import NoiseFree
from pyrostoch.layers import KState, Ternary, ThresholdNeuron
from pyrostoch.models import TriDeNT, TriDeNTConv
from pyrostoch.quantize import TernaryGradient, export_integer
from pyrostoch.quantize.export import as_int8


def on_grid(net, x, scale=0.05):
    """Give a network weights of -s, 0 and s and fitted batch normalization, some of its weights negative or 0."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.copy_(scale * torch.randint(-1, 2, module.weight.shape))
        net.train()
        for _ in range(60):
            net(x)
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.3)
                module.weight[::3] *= -1.0
                module.weight[1] = 0.0
            if isinstance(module, KState):  # learned parameters: other values, and different ones for each neuron
                for parameter in module.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return net.eval()


def pixels(count=32, size=28):
    return torch.randint(0, 256, (count, 1, size, size)) / 255


NETS = {
    "dense": lambda: TriDeNT(784, (60, 40), 10, gradient=TernaryGradient),
    "learned": lambda: TriDeNT(784, 60, 10, neurons=lambda: Ternary(learn=("thresholds", "noise"))),
    "per neuron": lambda: TriDeNT(784, 60, 10, neurons=lambda: Ternary(learn=("thresholds", "noise"), num=60)),
    "conv": lambda: TriDeNTConv(widths=(4, 6, 20)),
    "four states": lambda: TriDeNT(
        784, 60, 10, neurons=lambda: KState((-1.5, -0.5, 0.5, 1.5), (-1.0, 0.0, 1.0), noise_distribution="logistic")
    ),
    "binary": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 50), ThresholdNeuron(0.5), nn.Linear(50, 10)),
}
EVERY = pytest.mark.parametrize("kind", NETS)


@EVERY
@pytest.mark.parametrize("step", [None, 1 / 255])
def test_states_and_scores_are_those_of_the_network(kind, step):
    torch.manual_seed(0)
    net = on_grid(NETS[kind](), pixels())
    exported = export_integer(net, pixels(), input_step=step)
    x = pixels()  # other examples than those of the comparison
    expected = []
    for module in net.modules():
        if isinstance(module, KState):
            module.register_forward_hook(lambda *args: expected.append(args[2]))
    with NoiseFree(), torch.no_grad():
        scores = net.double()(x.double())
    unit = 0.5 if kind == "four states" else 1.0
    for (name, states), real in zip(exported.states(x).items(), expected, strict=True):
        assert states.dtype == torch.int8, name
        assert torch.equal(states, (real - real.min()).div(unit).round() + states.min())
        assert len(states.unique()) > 1
    torch.testing.assert_close(exported(x), scores.float(), rtol=1e-5, atol=1e-5)
    assert all(
        buffer.dtype == torch.int8 for name, buffer in exported.named_buffers() if name.endswith(("weight", "states"))
    )


@pytest.mark.parametrize("kind", ["dense", "conv", "four states", "binary", "per neuron"])
def test_draws_have_the_distribution_of_the_network(kind):
    torch.manual_seed(0)
    net = on_grid(NETS[kind](), pixels())
    x = pixels(6)
    exported = export_integer(net, x, input_step=1 / 255)
    with torch.no_grad():
        actual = torch.stack([exported(x, draw=True) for _ in range(1500)])
        expected = torch.stack([net(x) for _ in range(1500)])
    error = ((actual.var(0) + expected.var(0)) / 1500).sqrt()
    assert ((actual.mean(0) - expected.mean(0)).abs() <= 4.5 * error + 1e-6).all()
    assert ((actual.var(0) / expected.var(0)).log().abs().mean()) < 0.1


def test_gain_and_bias_of_homeostasis_become_part_of_thresholds():
    torch.manual_seed(0)
    net = on_grid(NETS["binary"](), pixels())
    net[2].gain, net[2].bias = torch.rand(50) + 0.5, torch.randn(50)
    export_integer(net, pixels(), input_step=1 / 255)  # compares the states
    net[2].correlation = 0.2
    with pytest.raises(ValueError, match="the noise of the neurons after layer '1' is correlated"):
        export_integer(net, pixels())


def test_costs_equal_counts_by_hand():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), Ternary(), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 1.0, 0.0]).reshape(2, 1, 2, 2))
        net[3].weight.copy_(torch.randint(-3, 4, (3, 8)))
    x = torch.randint(-2, 3, (5, 1, 3, 3)).float()
    exported = export_integer(net, x, input_step=1.0)
    conv, scores = exported.costs(x)
    assert (conv.name, conv.weights, conv.weight_bits, conv.float_bits) == ("0", 8, 16, 256)
    assert (conv.additions, conv.multiplications, conv.comparisons) == (4 * 4, 0, 8 * 2)
    patches = F.unfold(x, 2)  # (5, 4, positions)
    active = sum(
        (patches[:, pixel] != 0).sum().item()
        for row in (0, 1)
        for pixel in range(4)
        if net[0].weight[row].flatten()[pixel] != 0
    )
    assert conv.active == pytest.approx(active / 5)
    states = exported.states(x)["0"].flatten(1)
    nonzero = net[3].weight != 0
    assert (scores.weights, scores.weight_bits) == (24, 24 * 3)  # seven levels
    assert scores.additions == nonzero.sum()
    assert scores.active == pytest.approx(((states != 0).double() @ nonzero.T.double()).sum().item() / 5)
    # With inputs of -1, 0 and 1, products are changes of sign; only the scale of the scores is a multiplication.
    assert (scores.multiplications, scores.comparisons) == (3, 0)
    costs = exported.costs(x)
    assert (costs.total.additions, costs.total.weights) == (conv.additions + scores.additions, 32)
    assert [line.split()[0] for line in str(costs).splitlines()] == ["layer", "0", "3", "total"]
    assert costs.to_dict()["layers"][1]["weight_bits"] == 72


def test_weights_from_a_guide_are_its_most_probable_levels():
    torch.manual_seed(0)
    net = TriDeNT(20, 15, 3)
    model = ps.BayesianModel(
        net, prior={"*.weight": None, "fc1.weight": ps.priors.Grid(), "scores.weight": ps.priors.Grid()},
        likelihood=ps.likelihoods.Categorical(), num_data=10,
    )  # fmt: skip
    guide = ps.guides.CategoricalWeights(model)
    plain = guide.export(model)
    for name in ("fc1.weight", "scores.weight"):
        distribution = guide.site_distribution(name).base_dist
        expected = distribution.scale * torch.tensor(guide.levels)[distribution.states().long()]
        assert torch.equal(plain.get_parameter(name), expected)
    exported = export_integer(plain, torch.randn(7, 20))
    assert exported.layers["/fc1"].weight.unique().tolist() == [-1, 0, 1]


def test_state_dicts_can_be_saved_and_loaded(tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    net, x = on_grid(NETS["conv"](), pixels()), pixels()
    exported = export_integer(net, x, input_step=1 / 255)
    save_file(exported.state_dict(), tmp_path / "net.safetensors")
    other = export_integer(on_grid(NETS["conv"](), pixels()), x, input_step=1 / 255)
    assert not torch.equal(other(x), exported(x))
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(other(x), exported(x))


def test_as_int8_finds_the_largest_unit():
    integers, unit = as_int8(torch.tensor([0.3, -0.6, 0.0, 0.9]))
    assert integers.tolist() == [1, -2, 0, 3] and unit.item() == pytest.approx(0.3, rel=1e-6)
    assert as_int8(torch.zeros(2))[0].tolist() == [0, 0]
    assert as_int8(torch.linspace(0.0, 1.0, 300)) is None
    assert as_int8(torch.tensor([1.0, 2.0**0.5])) is None


def net_of(*modules):
    torch.manual_seed(0)
    return nn.Sequential(*modules).eval()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: net_of(nn.Linear(4, 3), Ternary(), nn.Linear(3, 2)), "weights of layer '0' are not on a grid of int8"),
        (lambda: net_of(Ternary(), nn.Linear(4, 3)), "expected a Linear or a Conv2d first, got a Ternary"),
        (lambda: net_of(nn.Identity()), "Sequential has no linear layer"),
        (lambda: on_grid(net_of(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(9, 4)), "got also a ReLU"),
        (
            lambda: on_grid(net_of(nn.Linear(4, 3), KState((0.0, 1.0, 2**0.5), (0.0, 1.0))), torch.randn(9, 4)),
            "states .* are not on a grid",
        ),
        (
            lambda: on_grid(net_of(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)), torch.randn(9, 4)),
            "depends on its batch",
        ),
        (
            lambda: on_grid(net_of(nn.Linear(4, 3), nn.Linear(3, 3), Ternary()), torch.randn(9, 4)),
            "expected neurons with states after layer '0', got none",
        ),
    ],
)  # fmt: skip
def test_unsupported_modules_are_refused_by_name(net, message):
    with pytest.raises(ValueError, match=message):
        export_integer(net(), torch.randn(9, 4))


def test_other_orders_and_inputs_are_refused():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.neurons, self.first = nn.Linear(4, 4), Ternary(), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.neurons(self.first(x)))

    torch.manual_seed(0)
    x = torch.randn(50, 4)
    with pytest.raises(ValueError, match=r"states after layer 'last' differ .* one after the other"):
        export_integer(on_grid(Backwards(), x, scale=1.0), x)
    with pytest.raises(ValueError, match=r"not integer multiples of input_step=0.5"):
        export_integer(on_grid(nn.Sequential(nn.Linear(4, 2)), x), x, input_step=0.5)
    same = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), Ternary())
    with pytest.raises(ValueError, match="layer '0': expected padding with zeros, got 'reflect'"):
        export_integer(on_grid(same, pixels(4, 6)), pixels(4, 6))


def test_ties_are_counted_and_do_not_affect_the_layers_after_them():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 50), Ternary(), nn.Linear(50, 50, bias=False), Ternary(), nn.Linear(50, 10))
    x = torch.randn(500, 20)
    net = on_grid(net, x, scale=0.1)  # sums of multiples of 0.1 often equal the threshold 0.5
    exported = export_integer(net, x)
    assert 0 < exported.ties < 0.05 * 500 * 100
    hidden = nn.Sequential(nn.Linear(3, 1, bias=False), KState((-1.0, 1.0), (0.0,)), nn.Linear(1, 1)).eval()
    with torch.no_grad():
        hidden[0].weight.copy_(torch.tensor([[1.0, 1.0, -1.0]]))
        hidden[2].weight.fill_(1.0)
    assert export_integer(hidden, torch.tensor([[10.0, 20.0, 30.0]]) / 255, input_step=1 / 255).ties <= 1
    wrong = export_integer(net, x)
    wrong.layers["/2"].thresholds.add_(1)
    assert not torch.equal(wrong(x), exported(x))


def test_one_layer_of_neurons_in_two_places_and_other_precisions():
    torch.manual_seed(0)
    shared = Ternary()
    net = nn.Sequential(nn.Linear(8, 6), shared, nn.Linear(6, 6), shared, nn.Linear(6, 2))
    x = torch.randn(40, 8)
    assert list(export_integer(on_grid(net, x), x).states(x)) == ["0", "2"]
    exported = export_integer(on_grid(nn.Linear(4, 3), torch.randn(2, 4)), torch.randn(5, 4))
    assert exported(torch.randn(5, 4)).shape == (5, 3)
    deep = torch.randint(0, 4096, (30, 1, 4, 2)) / 4095
    flat = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), Ternary(), nn.Linear(6, 2))
    export_integer(on_grid(flat, deep, scale=1.0), deep, input_step=1 / 4095)
    half = on_grid(nn.Sequential(nn.Linear(8, 6), Ternary(), nn.Linear(6, 2)), x, scale=0.25).bfloat16()
    assert export_integer(half, x.bfloat16()).layers["/0"].weight.unique().tolist() == [-1, 0, 1]


def test_inputs_and_state_dicts_of_another_kind_are_refused():
    torch.manual_seed(0)
    net = on_grid(NETS["binary"](), pixels())
    exported = export_integer(net, pixels(), input_step=1 / 255)
    with pytest.raises(ValueError, match="expected inputs of at most 255 steps .* got 255"):
        exported(pixels() * 255)
    with pytest.raises(ValueError, match="not integer multiples of input_step=0.0039"):
        exported(pixels() + 0.4 / 255)
    with pytest.raises(ValueError, match=r"in steps of nan, this network for steps of 0.0039.*nan: real inputs"):
        exported.load_state_dict(export_integer(net, pixels()).state_dict())
    with pytest.raises(ValueError, match="expected examples to compare states on, got none"):
        export_integer(net, pixels(0))
    with pytest.raises(ValueError, match="export_integer input_step"):
        export_integer(net, pixels(), input_step=-1.0)
    with pytest.raises(ValueError, match="expected examples to count active additions on, got none"):
        exported.costs(pixels(0))
    logistic = on_grid(NETS["binary"](), pixels())
    logistic[2].noise_distribution = "logistic"
    with pytest.raises(ValueError, match="for logistic noise and inputs up to 255, this layer for gaussian noise"):
        exported.load_state_dict(export_integer(logistic, pixels(), input_step=1 / 255).state_dict())


def test_sums_stay_exact_when_larger_weights_are_loaded():
    def with_weight(value):
        net = nn.Sequential(nn.Linear(700, 1, bias=False), KState((-1.0, 1.0), (0.0,)), nn.Linear(1, 1)).eval()
        with torch.no_grad():
            net[0].weight.fill_(value)[0, 0] = 1.0
            net[2].weight.fill_(1.0)
        return export_integer(net, torch.ones(2, 700), input_step=1 / 255)

    small, large = with_weight(1.0), with_weight(127.0)
    small.load_state_dict(large.state_dict())
    assert small.layers["/0"].dtype == large.layers["/0"].dtype == torch.float64


def test_inputs_of_other_sizes_are_refused():
    net = on_grid(nn.Sequential(nn.Linear(4, 3), Ternary(), nn.Linear(3, 2)), torch.randn(9, 4))
    with pytest.raises(
        ValueError, match=r"IntegerLayer: expected 4 values per example, got inputs of shape \(2, 5, 4\)"
    ):
        export_integer(net, torch.randn(2, 4))(torch.randn(2, 5, 4))

"""Saving and loading of exported networks, and errors and warnings of pruning."""

from __future__ import annotations

import copy
import io
import math
import runpy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.guides import Pruning, PruningRow, SparseConv2d, SparseLinear, load_pruned, magnitude_masks, prune

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "prune_and_convert.py"


def model_of(net, prior=None):
    prior = ps.priors.LogUniform() if prior is None else prior
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=9)


def random_log_alpha(site):
    return torch.randn(site.init.shape) * 2 + 5


def alpha_guide(model, log_alpha=random_log_alpha):
    return ps.guides.WeightwiseAlpha(model, init_log_alpha=log_alpha)


def masked_at_random(net, density=0.2):
    chosen = {name: value.detach().clone() for name, value in net.named_parameters() if value.dim() > 1}
    # So many exactly: a few more of a small layer, and it would be smaller dense.
    order = {name: torch.randperm(value.numel()).view(value.shape) for name, value in chosen.items()}
    masks = {name: ranks < max(1, round(density * ranks.numel())) for name, ranks in order.items()}
    rows = tuple(PruningRow(name, mask.numel(), int(mask.sum())) for name, mask in masks.items())
    return Pruning("at random", rows, masks, chosen)


def through_torch(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def through_safetensors(state):
    return safetensors.torch.load(safetensors.torch.save(state))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()))


def twice():
    shared = nn.Linear(9, 9)
    return nn.Sequential(shared, nn.Tanh(), shared)


def mixed():
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 20, bias=False), nn.BatchNorm1d(20)
    )


# How a network is made, the shape of an input, and how many of its layers are sparse.
NETS = {
    "single layer": (lambda: nn.Linear(20, 10), (5, 20), 1),
    "mixed": (mixed, (3, 2, 5, 5), 2),
    "nested": (lambda: nn.Sequential(mixed(), nn.Sequential(nn.Tanh(), nn.Linear(20, 9))), (3, 2, 5, 5), 3),
    "mlp": (lambda: ps.models.MLP(12, hidden=(10,), out_features=3), (4, 12), 2),
    "tied": (Tied, (3, 9), 3),
    "one layer twice": (twice, (3, 9), 1),
}


@pytest.mark.parametrize("save_and_load", [through_torch, through_safetensors])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("case", NETS)
def test_an_exported_network_is_loaded_into_a_plain_one(case, dense, save_and_load):
    make, shape, count = NETS[case]
    net = make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
    exported = masked_at_random(net).export(net, dense=dense)
    state = exported.state_dict()
    if save_and_load is through_safetensors:  # which does not save shared tensors
        state = {name: value.clone() for name, value in state.items()}
    plain = make()
    before = copy.deepcopy(plain.state_dict())
    loaded = load_pruned(plain.train(), save_and_load(state))
    x = torch.randn(shape)
    assert torch.equal(loaded(x), exported(x))
    assert [type(module) for module in loaded.modules()] == [type(module) for module in exported.modules()]
    assert sum(isinstance(m, (SparseLinear, SparseConv2d)) for m in loaded.modules()) == (0 if dense else count)
    assert not any(module.training for module in loaded.modules())
    assert {name: p.shape for name, p in loaded.named_parameters()} == {
        name: p.shape
        for name, p in exported.named_parameters()  # ties stay ties
    }
    assert plain.training and all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_models_and_networks_of_random_layers_can_be_loaded_into():
    def make():
        return nn.Sequential(ps.layers.Linear(12, 20, prior=ps.priors.LogUniform()), nn.ReLU(), nn.Linear(20, 3))

    model = model_of(make(), {})
    exported = prune(alpha_guide(model)).export(model)
    x = torch.randn(4, 12)
    for other in (make(), model_of(make(), {})):
        loaded = load_pruned(other, exported.state_dict())
        assert isinstance(loaded[0], SparseLinear) and torch.equal(loaded(x), exported(x))
        assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_sparse_layers_take_the_sizes_of_a_loaded_state_dict():
    net = mixed()
    few, many = masked_at_random(net, 0.05).export(net), masked_at_random(net, 0.4).export(net)
    x = torch.randn(3, 2, 5, 5)
    optimizer = torch.optim.SGD(few.parameters(), lr=0.1)
    few(x).sum().backward()
    parameter = few[3].values
    few.load_state_dict(many.state_dict())
    assert torch.equal(few(x), many(x)) and few[3].values is parameter and parameter.grad is None
    few(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(few(x), many(x))
    kept = many[3].values.grad = torch.ones_like(many[3].values)
    many.load_state_dict(many.state_dict())
    assert many[3].values.grad is kept  # nothing was resized
    other = masked_at_random(net, 0.1).export(net)
    other.load_state_dict(many.state_dict(), assign=True)
    assert torch.equal(other(x), many(x))


def test_a_loaded_network_can_be_trained():
    net = nn.Linear(20, 10)
    loaded = load_pruned(nn.Linear(20, 10), masked_at_random(net).export(net).state_dict())
    zeros = loaded.weight == 0
    loaded(torch.randn(6, 20)).square().sum().backward()
    with torch.no_grad():
        loaded.values.sub_(loaded.values.grad)
    assert torch.equal(loaded.weight == 0, zeros) and zeros.sum() > 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(20, 10)), "a sparse layer '1', but the network has no such layer; it has '0'"),
        (lambda: nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 8)), r"SparseLinear '0': expected 12 rows.*\(13,\)"),
        (lambda: nn.Sequential(nn.Linear(9, 10), nn.Linear(10, 8)), "SparseLinear '0': expected 9 columns in a row"),
        (
            lambda: nn.Sequential(nn.Embedding(20, 10), nn.Linear(10, 8)),
            "at '0', .* sparse layer, got Embedding",
        ),
        (lambda: nn.Sequential(nn.Linear(20, 10, bias=False), nn.Linear(10, 8)), 'Unexpected key.*: "0.bias"'),
        (
            lambda: nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 8), nn.Linear(8, 2)),
            'Missing key.*: "2.weight", "2.bias"',
        ),
    ],
)
def test_another_architecture_is_refused_by_its_layer(make, message):
    net = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 8))
    state = masked_at_random(net).export(net).state_dict()
    with pytest.raises(ValueError, match=f"load_pruned: .*{message}"):
        load_pruned(make(), state)


def test_a_dense_state_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match="load_pruned: the state dict is that of another architecture: size mismatch for"
    ):
        load_pruned(nn.Linear(3, 2), nn.Linear(4, 2).state_dict())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("crow_indices", lambda t: t.index_fill(0, torch.tensor([1]), 99), "crow_indices decrease"),
        ("crow_indices", lambda t: t + 1, "as many values and col_indices"),
        ("values", lambda t: t[:-1], "as many values and col_indices"),
        ("col_indices", lambda t: t + 20, "expected 18 columns in a row, got col_indices outside"),
        ("col_indices", lambda t: t.flip(0).clone(), "(outside of them|not strictly increasing)"),
        ("col_indices", lambda t: torch.cat((t[:1], t[:1], t[2:])), "not strictly increasing"),
    ],
)
def test_damaged_indices_are_refused(part, change, message):
    """The product reads memory at these indices without checks."""
    layer = nn.Conv2d(4, 4, 3, groups=2)
    with torch.no_grad():
        layer.weight[:, :, 1:] = 0  # six entries a row
    sparse = SparseConv2d(layer)
    state = sparse.state_dict()
    state[part] = change(state[part])
    with pytest.raises(RuntimeError, match=f"SparseConv2d '': .*{message}"):
        sparse.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        load_pruned(nn.Conv2d(4, 4, 3, groups=2), state)


def test_other_types_than_networks_and_state_dicts_are_refused():
    with pytest.raises(TypeError, match="load_pruned: expected a network .* got OrderedDict"):
        load_pruned(nn.Linear(2, 2).state_dict(), nn.Linear(2, 2))
    with pytest.raises(TypeError, match="load_pruned: expected the state dict .*, got str; pass what"):
        load_pruned(nn.Linear(2, 2), "pruned.safetensors")


@pytest.mark.parametrize("threshold", ["3", None, True, [3.0]])
def test_a_threshold_is_a_number(threshold):
    with pytest.raises(TypeError, match="prune: expected a number for threshold, got"):
        prune(alpha_guide(model_of(nn.Linear(4, 3))), threshold)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
def test_a_threshold_is_finite(threshold):
    with pytest.raises(ValueError, match="prune: expected a finite threshold, got -?(nan|inf)"):
        prune(alpha_guide(model_of(nn.Linear(4, 3))), threshold=threshold)


def test_an_emptied_site_gives_a_warning():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    guide = alpha_guide(model_of(net), lambda site: torch.full_like(site.init, 9.0 if site.name != "1.weight" else 0.0))
    with pytest.warns(UserWarning, match="prune: nothing is kept of '0.weight', '2.weight': every log alpha") as caught:
        pruning = prune(guide)
    assert caught[0].filename == __file__
    assert str(pruning).startswith("Pruning, kept log alpha <= 3: 3.667x of the weights listed\n")
    with pytest.warns(UserWarning, match="nothing is kept of '0.weight', '1.weight', '2.weight'"):
        nothing = prune(guide, -5)
    assert str(nothing).startswith("Pruning, kept log alpha <= -5: nothing kept of the weights listed\n")
    assert "inf" not in str(nothing) and nothing.to_dict()["compression"] == math.inf


@pytest.mark.parametrize("family", ["gaussian", "bernoulli", "uniform"])
def test_variance_networks_have_nothing_to_prune(family):
    with pytest.raises(ValueError, match="prune: the distribution at site 'weight' has mean zero by construction"):
        prune(ps.guides.VarianceOnly(model_of(nn.Linear(4, 3)), family=family))


def test_magnitude_of_random_weights_is_refused():
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    model = model_of(net, {"0.weight": ps.priors.LogUniform()})
    like = prune(alpha_guide(model), 5.0)
    with pytest.raises(
        ValueError, match="'0.weight' of the model are random, .* pass a trained plain network, such as"
    ):
        magnitude_masks(model, like)
    # The network that the message suggests: the means of the guide.
    guide = ps.guides.WeightwiseAlpha(model, init_loc=lambda s: torch.randn_like(s.init), init_log_alpha=9.0)
    found = magnitude_masks(prune(guide, threshold=100).export(model, dense=True), like)
    assert torch.equal(found.values["0.weight"], guide.site_distribution("0.weight").mean)
    assert found.kept == like.kept
    # Weights of the model that are not random are trained ones.
    other = masked_at_random(net[1])
    rows = (PruningRow("1.weight", 20, other.kept),)
    trained = magnitude_masks(model, Pruning("", rows, {"1.weight": other.masks["weight"]}, {}))
    assert torch.equal(trained.values["1.weight"], net[1].weight) and trained.kept == other.kept


def test_magnitude_needs_a_pruning():
    net = nn.Linear(4, 3)
    like = prune(alpha_guide(model_of(net), lambda site: 0 * site.init))
    with pytest.raises(TypeError, match=r"magnitude_masks: expected a Pruning \(.*\) for like, got dict"):
        magnitude_masks(net, like.masks)


def test_the_example_runs_from_top_to_bottom(monkeypatch, capsys, tmp_path):
    """With two epochs only: the example must run; how well it prunes is not tested."""
    fit = ps.fit
    monkeypatch.setattr(ps, "fit", lambda *args, **kwargs: fit(*args, **{**kwargs, "epochs": 2, "progress": False}))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE))
    output = capsys.readouterr().out
    for part in (
        "The cost of zeroing the means",
        "fc2 with all means zero",
        "Pruning, kept log alpha <= 3",
        "before pruning: ",
    ):
        assert part in output
    assert "the same outputs: True" in output and (tmp_path / "runs" / "pruned.safetensors").is_file()

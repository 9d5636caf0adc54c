"""Pruning by alpha and by magnitude against loops, and the exported sparse networks."""

from __future__ import annotations

import copy
import functools
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.guides import Guide, Pruning, PruningRow, SparseConv2d, SparseLinear, magnitude_masks, prune

F64 = {"dtype": torch.float64}


def model_of(net, prior=None):
    prior = ps.priors.LogUniform() if prior is None else prior
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=9)


def random_log_alpha(site):
    return torch.randn(site.init.shape, dtype=site.init.dtype) * 2 + 5


GUIDES = {
    "additive": functools.partial(ps.guides.Additive, init_scale=lambda site: site.init.abs() * 2 + 0.3),
    "weightwise": functools.partial(ps.guides.WeightwiseAlpha, init_log_alpha=random_log_alpha),
    "neuronwise": functools.partial(ps.guides.NeuronwiseAlpha, init_log_alpha=lambda site: 5.0 * (len(site.init) == 4)),
    "layerwise": functools.partial(ps.guides.LayerwiseAlpha, init_log_alpha=3.0),
}


def masked_at_random(net, density=0.2, bias=False):
    """A pruning of a network's own weights (and biases) with random masks."""
    chosen = {n: p.detach().clone() for n, p in net.named_parameters() if bias or p.dim() > 1}
    masks = {name: torch.rand(value.shape) < density for name, value in chosen.items()}
    rows = tuple(PruningRow(name, mask.numel(), int(mask.sum())) for name, mask in masks.items())
    return Pruning("at random", rows, masks, chosen)


@pytest.mark.filterwarnings("ignore:prune. nothing is kept:UserWarning")
@pytest.mark.parametrize("case", GUIDES)
@pytest.mark.parametrize("threshold", [3.0, 5.5])
def test_masks_are_those_of_a_loop(case, threshold):
    model = model_of(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double())
    guide = GUIDES[case](model)
    pruning = prune(guide, threshold)
    kept_in_all = 0
    for row in pruning.sites:
        distribution = guide.site_distribution(row.site).base_dist
        means, deviations = distribution.mean.flatten().tolist(), distribution.stddev.flatten().tolist()
        kept = [2 * math.log(s / abs(m)) <= threshold + 1e-9 for m, s in zip(means, deviations, strict=True)]
        assert pruning.masks[row.site].flatten().tolist() == kept
        assert (row.weights, row.kept) == (len(kept), sum(kept))
        assert row.sparsity == pytest.approx(1 - sum(kept) / len(kept))
        assert torch.equal(pruning.values[row.site], distribution.mean) and not pruning.values[row.site].requires_grad
        kept_in_all += sum(kept)
    assert [row.site for row in pruning.sites] == ["0.weight", "2.weight"]
    assert pruning.compression == (pytest.approx(120 / kept_in_all) if kept_in_all else math.inf)


def test_means_of_zero_are_removed_whatever_their_variance():
    guide = ps.guides.Additive(model_of(nn.Linear(3, 1, bias=False)), init_loc=torch.tensor([0.0, 1.0, -1.0]))
    assert prune(guide).masks["weight"].tolist() == [[False, True, True]]
    alpha = ps.guides.LayerwiseAlpha(model_of(nn.Linear(3, 1, bias=False)))
    with torch.no_grad():
        alpha.parameters_for("weight")["loc"][0, 1] = 0
    assert prune(alpha).masks["weight"].tolist() == [[True, False, True]]


def test_the_record_as_text_and_as_plain_data():
    guide = ps.guides.PerSite(
        model_of(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), ps.priors.Hierarchical()),
        {
            "*": ps.guides.Additive,
            "0.weight": functools.partial(ps.guides.WeightwiseAlpha, init_log_alpha=torch.tensor([0, 1, 9, 9.0])),
        },
    )
    pruning = prune(guide)
    assert [(row.site, row.weights, row.kept) for row in pruning.sites] == [("0.weight", 8, 4), ("1.weight", 6, 6)]
    found = pruning.to_dict()
    assert found["compression"] == 1.4 and found["sites"][0]["sparsity"] == 0.5 and "masks" not in found
    assert "50.00%" in str(pruning) and "log alpha <= 3" in str(pruning) and "1.4x" in str(pruning)


def test_what_cannot_be_pruned_is_named():
    class LaplaceGuide(Guide):
        def initial_parameters(self, site):
            return {"loc": site.init}

        def distribution(self, site, loc):
            return dist.Laplace(loc, 1.0)

    model = model_of(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(TypeError, match="prune: expected a normal distribution at site '0.weight', got Laplace"):
        prune(LaplaceGuide(model))
    with pytest.raises(ValueError, match="prune: the distribution at site '0.weight' has mean zero by construction"):
        prune(ps.guides.VarianceOnly(model))
    # With validation on, the distribution itself refuses.
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match="parameters at site '0.weight' are not finite"),
    ):
        prune(ps.guides.Additive(model, init_loc=math.nan))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_magnitude_keeps_the_largest_as_a_loop_finds_them(scope):
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    with torch.no_grad():  # few values: ties, which the first in memory win
        for parameter in net.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    like = masked_at_random(net, 0.4)
    found = magnitude_masks(net, like, scope=scope)
    entries = [
        (-abs(value), place, site, index)
        for place, site in enumerate(like.masks)
        for index, value in enumerate(net.get_parameter(site).flatten().tolist())
    ]
    if scope == "layer":
        kept = {entry[2:] for row in like.sites for entry in sorted(e for e in entries if e[2] == row.site)[: row.kept]}
        assert [row.kept for row in found.sites] == [row.kept for row in like.sites]
    else:
        kept = {entry[2:] for entry in sorted(entries)[: like.kept]}
    assert found.kept == like.kept and found.compression == like.compression
    for site, mask in found.masks.items():
        assert mask.flatten().tolist() == [(site, index) in kept for index in range(mask.numel())]
        assert torch.equal(found.values[site], net.get_parameter(site))


def test_magnitude_of_another_network():
    net = nn.Linear(4, 3)
    like = prune(ps.guides.WeightwiseAlpha(model_of(net), init_log_alpha=random_log_alpha), 6.0)
    with pytest.raises(ValueError, match=r"expected a parameter 'weight' of shape \(3, 4\) in the network, got"):
        magnitude_masks(nn.Linear(3, 3), like)
    with pytest.raises(ValueError, match="did you mean 'global'"):
        magnitude_masks(net, like, scope="globl")
    with torch.no_grad():
        net.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="parameter 'weight' is not finite"):
        magnitude_masks(net, like)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)

    def forward(self, x):
        return self.body(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(7, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 7)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


class Tied(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.first = nn.Embedding(9, 9) if embedding else nn.Linear(9, 9)
        self.second, self.last = nn.Linear(9, 9), nn.Linear(9, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(x).tanh()))


class Reader(nn.Module):
    """Reads its layer's weight instead of calling it, and views a layer's output."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(54, 9)

    def forward(self, x):
        h = self.conv(x)
        return self.fc(h.view(len(h), -1)).view(-1) @ self.fc.weight.sum(1).repeat(len(h))


# The network, its input and the types of its sparse layers, in order.
NETS = {
    "linear": (lambda: nn.Linear(20, 10), (5, 20), ["SparseLinear"]),
    "linear, no bias": (lambda: nn.Sequential(nn.Linear(20, 10, bias=False)), (5, 20), ["SparseLinear"]),
    "linear, axes": (lambda: nn.Linear(20, 10), (5, 3, 20), ["SparseLinear"]),
    "linear, no axis": (lambda: nn.Linear(20, 10), (20,), ["SparseLinear"]),
    "linear, no examples": (lambda: nn.Linear(20, 10), (0, 20), ["SparseLinear"]),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3), (2, 3, 7, 6), ["SparseConv2d"]),
    "conv2d, unbatched": (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 7, 6), ["SparseConv2d"]),
    "conv2d, all": (
        lambda: nn.Conv2d(4, 8, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2), groups=2, bias=False),
        (2, 4, 9, 8),
        ["SparseConv2d"],
    ),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 5, groups=4), (2, 4, 9, 8), ["SparseConv2d"]),
    "conv2d, circular": (
        lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
        (2, 3, 5, 5),
        ["SparseConv2d"],
    ),
    "conv2d, reflect": (
        lambda: nn.Conv2d(3, 8, 3, padding=(2, 0), padding_mode="reflect"),
        (2, 3, 5, 5),
        ["SparseConv2d"],
    ),
    "conv2d, replicate": (
        lambda: nn.Conv2d(3, 8, 4, padding="same", padding_mode="replicate"),
        (2, 3, 5, 6),
        ["SparseConv2d"],
    ),
    "conv2d, same": (lambda: nn.Conv2d(3, 8, (4, 2), padding="same", dilation=(1, 3)), (2, 3, 5, 6), ["SparseConv2d"]),
    "conv2d, valid": (lambda: nn.Conv2d(3, 8, 3, padding="valid"), (2, 3, 5, 6), ["SparseConv2d"]),
    "reader": (Reader, (2, 2, 5, 5), ["SparseConv2d", "SparseLinear"]),
    "tied": (lambda: Tied(False), (3, 9), ["SparseLinear"] * 3),
    "tied embedding": (lambda: Tied(True), "tokens", ["SparseLinear"]),
    "recurrent": (Recurrent, "tokens", ["SparseLinear"]),
    "transformer": (Attending, (2, 3, 8), ["SparseLinear"] * 2),
    "other convolutions": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, 2, 3)), (2, 3, 9), []),
}


def input_of(shape, dtype):
    return torch.randint(0, 7, (3, 4)) if shape == "tokens" else torch.randn(shape, dtype=dtype)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch, of its dense layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", NETS)
def test_sparse_equals_dense_equals_the_masked_original(case, dtype):
    make, shape, kinds = NETS[case]
    net = make().to(dtype)
    x = input_of(shape, dtype)
    pruning = masked_at_random(net, 0.15, bias=True)
    sparse, dense = pruning.export(net), pruning.export(net, dense=True)
    assert [type(m).__name__ for m in sparse.modules() if isinstance(m, (SparseLinear, SparseConv2d))] == kinds
    assert not any(isinstance(m, (SparseLinear, SparseConv2d)) for m in dense.modules())
    assert not sparse.training and not dense.training
    masked = copy.deepcopy(net).eval()
    with torch.no_grad():
        for name, mask in pruning.masks.items():
            masked.get_parameter(name).mul_(mask)
    expected = masked(x)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    for exported in (dense, sparse):
        out = exported(x)
        assert out.dtype == dtype and out.is_contiguous()
        torch.testing.assert_close(out, expected, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), expected, **tolerance)
    assert not {p.data_ptr() for p in sparse.parameters() if p.numel()} & {p.data_ptr() for p in net.parameters()}


@pytest.mark.parametrize("case", ["linear", "conv2d, all", "conv2d, circular"])
def test_gradients_of_the_kept_values_are_those_of_the_dense_layer(case):
    make, shape, _ = NETS[case]
    net = make().double()
    pruning = masked_at_random(net)
    sparse, dense = pruning.export(net), pruning.export(net, dense=True)
    inputs = [torch.randn(shape, **F64).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    for layer, x in zip((sparse, dense), inputs, strict=True):
        layer(x).square().sum().backward()
    assert torch.equal(sparse.weight, dense.weight)
    mask = pruning.masks["weight"]
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad[mask])
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


def saved(net):
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    return buffer


def test_what_is_saved_is_small_and_loads():
    net = nn.Sequential(nn.Conv2d(1, 40, 5), nn.ReLU(), nn.Flatten(), nn.Linear(640, 100), nn.BatchNorm1d(100))
    pruning = masked_at_random(net, 0.01)
    sparse, dense = pruning.export(net), pruning.export(net, dense=True)
    assert saved(sparse).tell() < saved(dense).tell() / 10
    sizes = {name: value.numel() * value.element_size() for name, value in sparse.state_dict().items()}
    assert sum(sizes[f"3.{part}"] for part in ("values", "col_indices", "crow_indices")) == 8 * 640 + 4 * 101 + 8 * (
        pruning.sites[1].kept - 640
    )
    x = torch.randn(3, 1, 8, 8)
    before = sparse(x)
    buffer = saved(sparse)
    other = pruning.export(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert torch.equal(other(x), before)
    assert sparse.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [250, 480, 520, 600, 720, 900])
def test_a_layer_is_sparse_where_that_is_smaller(kept, dtype):
    net = nn.Linear(100, 10, bias=False, dtype=dtype)
    mask = (torch.arange(1000) < kept).view(10, 100)
    pruning = Pruning("", (PruningRow("weight", 1000, kept),), {"weight": mask}, {"weight": net.weight.detach()})
    width = 4 if dtype == torch.float32 else 8
    smaller = kept * (width + 4) + 11 * 4 < 1000 * width
    assert isinstance(pruning.export(net), SparseLinear) == smaller


def test_ties_stay_ties():
    net = Tied(False)
    sparse = masked_at_random(net).export(net)
    assert sparse.first.values is sparse.second.values and sparse.first.values is not sparse.last.values
    shared = nn.Linear(9, 9)
    twice = nn.Sequential(shared, nn.Tanh(), shared)
    sparse = masked_at_random(twice).export(twice)
    assert sparse[0] is sparse[2] and isinstance(sparse[0], SparseLinear)


def test_a_layer_with_hooks_keeps_them():
    net = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10))
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    sparse = masked_at_random(net).export(net)
    assert type(sparse[0]) is nn.Linear and isinstance(sparse[1], SparseLinear)


def test_export_of_a_model_is_a_plain_network_of_its_means():
    net = nn.Sequential(ps.layers.Linear(6, 20, prior=ps.priors.Normal()), nn.BatchNorm1d(20), nn.Linear(20, 3))
    model = model_of(net, {"0.*": ps.priors.LogUniform(), "2.weight": ps.priors.LogUniform()})
    guide = ps.guides.WeightwiseAlpha(
        model, init_loc=lambda s: torch.randn_like(s.init), init_log_alpha=random_log_alpha
    )
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[2].bias.normal_()
    pruning = prune(guide)
    state = copy.deepcopy(model.state_dict())
    for dense in (False, True):
        exported = pruning.export(model, dense=dense)
        assert all(parameter.requires_grad for parameter in exported.parameters())
        assert exported.training is False and model.training is True
        x = torch.randn(4, 6)
        weights = {name: guide.site_distribution(name).mean * pruning.masks[name] for name in guide.site_names}
        model.eval()
        expected = model.outputs(x, weights)
        model.train()
        torch.testing.assert_close(exported(x), expected)
        assert torch.equal(exported(x), exported(x))  # nothing random is left
        assert type(ps.BayesianModel(exported, prior=ps.priors.Normal(), likelihood=model.likelihood, num_data=9).sites)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert net[0].priors and not net[0].weight.requires_grad  # the model is not changed


def test_export_refuses_another_network():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model = model_of(net)
    part = prune(ps.guides.Additive(model, sites=["0.weight"]))
    with pytest.raises(ValueError, match=r"no value is given for random weight\(s\) '1.weight' of the model"):
        part.export(model)
    with pytest.raises(ValueError, match="the network has no parameter '0.weight'"):
        part.export(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"expected parameter '0.weight' of shape \(3, 4\).*got \(3, 5\)"):
        part.export(nn.Sequential(nn.Linear(5, 3)))


def test_sparse_layers_refuse_other_inputs():
    linear, conv = SparseLinear(nn.Linear(4, 3)), SparseConv2d(nn.Conv2d(2, 3, 3))
    with pytest.raises(ValueError, match=r"SparseLinear: expected inputs of 4 features, got shape \(2, 6\)"):
        linear(torch.ones(2, 6))
    with pytest.raises(ValueError, match=r"SparseConv2d: expected an input of shape \(batch, 2, height, width\)"):
        conv(torch.ones(2, 3, 5, 5))
    assert "kept=12 of 12" in repr(linear)


def test_a_layer_without_weights_gives_its_bias():
    layer = nn.Linear(4, 3)
    rows = (PruningRow("weight", 12, 0),)
    nothing = Pruning("", rows, {"weight": torch.zeros(3, 4, dtype=torch.bool)}, {"weight": layer.weight.detach()})
    assert nothing.compression == math.inf
    assert torch.equal(nothing.export(layer)(torch.randn(2, 4)), layer.bias.detach().expand(2, 3))


def test_under_autocast_as_the_dense_layer():
    net = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    pruning = masked_at_random(net)
    sparse, dense = pruning.export(net), pruning.export(net, dense=True)
    x = torch.randn(4, 20)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(sparse(x), dense(x), rtol=0.03, atol=0.03)
        assert sparse(x).dtype == dense(x).dtype == torch.bfloat16

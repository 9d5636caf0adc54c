"""Batches that must stay whole: graphs, inputs that belong to all examples, examples that meet, axes of examples."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch._inputs import count_examples, example_axes, take_examples
from pyrostoch.effects.meeting import examples_meet
from pyrostoch.infer.data_sets import as_batches
from pyrostoch.infer.parallel import Ranks
from pyrostoch.training.batch_checks import check_batches

NODES = 30


class FixedGraph(nn.Module):
    """A graph convolution that holds its graph, so it runs on all nodes only."""

    def __init__(self, mixing):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)
        self.register_buffer("mixing", mixing)

    def forward(self, x):
        return self.mixing @ self.linear(x)


class Graph(nn.Module):
    """A graph convolution that is given its graph and, perhaps, the nodes that have labels."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)

    def forward(self, x, mixing, labeled=None):
        out = mixing @ self.linear(x)
        return out if labeled is None else out[labeled]


class BatchAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        h = self.linear(x)
        return (torch.softmax(h @ h.T, 1) @ h)[:, :1]


@pytest.fixture
def graph():
    mixing = ((torch.rand(NODES, NODES) < 0.1) | torch.eye(NODES, dtype=torch.bool)).float()
    mixing /= mixing.sum(1, keepdim=True)
    x = torch.randn(NODES, 4)
    return x, mixing, mixing @ x @ torch.tensor([[1.0, -1, 2, 0.5]]).T


def regression(net, num_data=NODES, scale=0.1, **options):
    likelihood = ps.likelihoods.Gaussian(scale)
    return ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=num_data, **options)


def cases(x, mixing, y):
    """Networks, inputs, their axes of examples, and targets: the same graph handed over in four ways."""
    labeled = torch.arange(NODES) % 3 == 0
    return {
        "held": (FixedGraph(mixing), x, 0, y),
        "given": (Graph(), (x, mixing), (0, None), y),
        "mask of labels": (Graph(), (x, mixing, labeled), None, y[labeled]),
        "labeled nodes": (Graph(), (x, mixing, labeled.nonzero()[:, 0]), (None, None, 0), y[labeled]),
    }


CASES = ["held", "given", "mask of labels", "labeled nodes"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_epistemic_variance_of_a_graph_is_that_of_whole_networks(graph, case, batch_size):
    net, inputs, in_dims, y = cases(*graph)[case]
    model = regression(net, len(y), in_dims=in_dims)
    guide = ps.guides.Additive(model, init_scale=0.5)
    found = ps.predict(model, guide, inputs, mode="mc:2000", batch_size=batch_size)
    exact = 0.25 * (graph[1] @ graph[0]).square().sum(1, keepdim=True)
    labeled = torch.arange(NODES) % 3 == 0
    exact = exact if len(y) == NODES else exact[labeled]
    # The squares of centered Gaussian draws have a relative spread of sqrt(2).
    torch.testing.assert_close(found.epistemic, exact.double(), rtol=5 * math.sqrt(2 / 2000), atol=0)
    assert found.treatments["linear.weight"].startswith("shared (")


@pytest.mark.parametrize("case", CASES)
def test_every_verb_takes_a_graph_whole(graph, case):
    net, inputs, in_dims, y = cases(*graph)[case]
    model = regression(net, len(y), in_dims=in_dims)
    guide = ps.guides.Additive(model)
    data = (inputs, y)
    ps.fit(model, guide, data, epochs=1, batch_size=NODES, validation=data, progress=False, compile=False)
    whole = ps.predict(model, guide, inputs, y=y, mode="mean")
    cut = ps.predict(model, guide, inputs, y=y, mode="mean", batch_size=4)
    assert torch.equal(whole.mean, cut.mean) and torch.equal(whole.log_density, cut.log_density)
    assert ps.decompose(model, guide, data, batch_size=4).num_data == len(y)
    assert ps.compare(model, guide, data, modes=("mean",), batch_size=4).num_examples == len(y)
    with pytest.raises(ValueError, match=r"examples meet|an input belongs to all examples"):
        ps.predict(model, guide, inputs, mode="moments")


@pytest.mark.parametrize("estimator", ["shared", "local"])
def test_posterior_of_a_graph_network_is_the_exact_one(graph, estimator):
    x, mixing, y = graph
    model = regression(FixedGraph(mixing), scale=0.5)
    guide = ps.guides.Additive(model)
    # fit keeps the order of the nodes where they are one batch.
    options = {"num_particles": 4, "estimator": estimator, "progress": False, "compile": False}
    ps.fit(model, guide, (x, y), epochs=300, batch_size=NODES, lr=5e-2, **options)
    rows = (mixing @ x).double()
    precision = rows.T @ rows / 0.25 + torch.eye(4)
    found = guide.site_distribution("linear.weight").base_dist
    torch.testing.assert_close(found.stddev.detach().double()[0], precision.diagonal().rsqrt(), rtol=0.2, atol=0)
    residual = rows @ found.mean.detach().double()[0] - y.double()[:, 0]
    assert residual.square().mean().sqrt() < 0.3 * y.std()  # nodes in another order would be noise


def test_random_batches_of_examples_that_meet_are_refused(graph):
    x, mixing, y = graph
    model = regression(FixedGraph(mixing))
    guide = ps.guides.Additive(model)
    with pytest.raises(ValueError, match=r"FixedGraph: .*batch_size=30.*shuffle=False.*DataLoader.*in_dims"):
        ps.fit(model, guide, (x, y), epochs=1, batch_size=10, progress=False)
    attention = regression(BatchAttention())
    guide = ps.guides.Additive(attention)
    with pytest.raises(ValueError, match=r"BatchAttention: .*random batches of 10"):
        ps.fit(attention, guide, TensorDataset(x, y), epochs=1, batch_size=10, progress=False)
    ps.fit(attention, guide, (x, y), epochs=1, batch_size=10, shuffle=False, progress=False, compile=False)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
    ps.fit(attention, guide, loader, epochs=1, progress=False, compile=False)
    with pytest.raises(ValueError, match="cannot be divided among 2 processes"):
        check_batches(attention, as_batches((x, y), NODES), True, Ranks(0, 2))


def test_order_is_kept_with_one_batch_and_without_shuffling():
    x, y = torch.randn(12, 2), torch.arange(12)
    for batches in (as_batches((x, y), 12), as_batches((x, y), 5, shuffle=False)):
        assert torch.cat([part for _, part in batches.epoch(3, 1)]).tolist() == list(range(12))
    assert torch.cat([part for _, part in as_batches((x, y), 5).epoch(3, 1)]).tolist() != list(range(12))
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match="shuffle=False contradicts the DataLoader"):
        as_batches(loader, 4, shuffle=False)
    with pytest.raises(ValueError, match="items of a Dataset"):
        as_batches(_Items(), 4, in_dims=(0, None))


class _Items(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(2), torch.zeros(1)


class _Mixup(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return self.linear(x + 0.1 * x[torch.randperm(len(x))] if self.training else x)


class _Embedded(nn.Module):
    """Integer inputs; with `centered`, tokens of other examples are subtracted."""

    def __init__(self, centered):
        super().__init__()
        self.table, self.linear, self.centered = nn.Embedding(9, 4), nn.Linear(4, 1), centered

    def forward(self, tokens):
        h = self.table(tokens)
        return self.linear(h - h.mean(0) if self.centered else h)


class _Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        out = self.linear(x)
        return {"logits": out, "balance": out.mean()}


APART = {
    "multilayer": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 1)), torch.float32),
    "batch normalization": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.float32),
    "mixup in training": (_Mixup, torch.float32),
    "tokens": (lambda: _Embedded(False), torch.int64),
    "auxiliary loss": (_Auxiliary, torch.float32),
}
MEETING = {
    "attention": (BatchAttention, torch.float32),
    "batch statistics in evaluation": (lambda: nn.BatchNorm1d(4, track_running_stats=False), torch.float32),
    "tokens": (lambda: _Embedded(True), torch.int64),
    "cumulative sum": (lambda: _Function(lambda x: x.cumsum(0)), torch.float32),
    "rank": (lambda: _Function(lambda x: x.argsort(0).argsort(0).float()), torch.float32),
    "wrong axis of attention": (lambda: _SelfAttention(), torch.float32),
    "sum over all": (lambda: _Function(lambda x: x.sum()), torch.float32),
}


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class _SelfAttention(nn.Module):
    """torch's default puts the examples on the second axis, which is easily overlooked."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("name", [*(f"apart: {name}" for name in APART), *(f"meet: {name}" for name in MEETING)])
@pytest.mark.parametrize("count", [2, 16, 40])
def test_whether_examples_meet_is_found_and_leaves_no_trace(name, count):
    kind, _, name = name.partition(": ")
    make, dtype = (APART if kind == "apart" else MEETING)[name]
    net = make()
    if dtype == torch.int64:
        x = torch.arange(count) % 9
    else:
        x = torch.randn(count, 4) if "wrong axis" not in name else torch.randn(count, 3, 4)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes, random = [part.training for part in net.modules()], torch.get_rng_state()
    assert examples_meet(net, (x,)) == (kind == "meet")
    assert torch.equal(random, torch.get_rng_state()) and modes == [part.training for part in net.modules()]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


class _Centered(ps.likelihoods.Likelihood):
    def distribution(self, output, **quantities):
        return dist.Normal(output - output.mean(0), 1.0).to_event(1)


LIKELIHOODS = {
    "apart, normal": lambda out: dist.Normal(out, 1.0).to_event(1),
    "apart, counts": lambda out: dist.Poisson(out.exp()).to_event(1),
    "apart, classes": lambda out: dist.Categorical(logits=out),
    "meet, centered": lambda out: dist.Normal(out - out.mean(0), 1.0).to_event(1),
    "meet, a class of one's own": _Centered(),
    "meet, scale": lambda out: dist.Normal(out, out.std(0)).to_event(1),
    "meet, random walk": lambda out: dist.Normal(out.cumsum(0), 1.0).to_event(1),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_of_ones_own_may_bring_examples_together(name):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=LIKELIHOODS[name], num_data=40)
    x, guide = torch.randn(40, 3), ps.guides.Additive(model)
    expected = "shared (examples meet)" if name.startswith("meet") else "local (exact)"
    assert set(ps.predict(model, guide, x, mode="mc:2").treatments.values()) == {expected}
    assert model.examples_meet(x) == name.startswith("meet")


def test_a_network_that_raises_is_cut_as_asked():
    def broken(x):
        raise RuntimeError("no")

    assert not examples_meet(_Function(broken), (torch.randn(20, 2),))


@pytest.mark.parametrize("in_dims", [1, -2])
def test_another_axis_may_count_the_examples(in_dims):
    """A recurrent network takes (time, examples, features) and returns (examples, outputs)."""

    class Forecaster(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(2, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0][-1])

    x, y = torch.randn(5, 12, 2), torch.randn(12, 1)
    model = regression(Forecaster(), 12, in_dims=in_dims)
    guide = ps.guides.Additive(model, init_scale=0.3)
    ps.fit(model, guide, (x, y), epochs=1, batch_size=4, progress=False, compile=False)
    whole, cut = (ps.predict(model, guide, x, mode="mean", batch_size=size) for size in (12, 5))
    torch.testing.assert_close(whole.mean, cut.mean)
    assert len(cut) == 12 and not model.examples_meet(x)
    found = ps.predict(model, guide, x, mode="mc:1000")
    draws = torch.stack([model.outputs(x, guide()) for _ in range(1000)]).detach().double()
    assert (found.mean - draws.mean(0)).abs().max() < 6 * (2 * draws.var(0) / 1000).sqrt().max()
    assert found.epistemic.sum() == pytest.approx(draws.var(0).sum().item(), rel=0.35)
    assert found.treatments["head.weight"] == "local (exact)"


def test_inputs_that_do_not_fit_their_declaration_are_named():
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"expected 2, as many as entries of in_dims=\(0, None\), got 1"):
        example_axes(x, (0, None))
    with pytest.raises(ValueError, match=r"axis 2 of in_dims=2 does not exist in shape \(5, 2\)"):
        example_axes(x, 2)
    with pytest.raises(TypeError, match="whose axis 1 counts the examples, got bool"):
        example_axes((x, True), (0, 1))
    with pytest.raises(ValueError, match=r"as many examples in each input, got 5, 3; .*in_dims=\(0, None\)"):
        count_examples((x, torch.zeros(3, 9)))
    with pytest.raises(TypeError, match=r"in_dims: .*got 1\.5"):
        regression(nn.Linear(2, 1), in_dims=1.5)
    with pytest.raises(TypeError, match="in_dims"):
        regression(nn.Linear(2, 1), in_dims=())
    assert count_examples((x, x), None) is None
    rows = take_examples((x, x.T), torch.tensor([3, 1]), (0, 1))
    assert [tuple(part.shape) for part in rows] == [(2, 2), (2, 2)]


def test_several_processes_cannot_divide_a_single_batch(graph):
    x, mixing, y = graph
    batches = as_batches(((x, mixing), y), 10, in_dims=None)
    assert len(batches) == 1
    with pytest.raises(ValueError, match="cannot be divided among processes"):
        next(iter(batches.shares(0, 1, Ranks(0, 2))))


def test_decompose_runs_no_network_for_its_kls(graph):
    x, mixing, y = graph
    passes = []

    class Counted(FixedGraph):
        def forward(self, x):
            passes.append(len(x))
            return super().forward(x)

    model = regression(Counted(mixing))
    guide = ps.guides.Additive(model)
    first = ps.decompose(model, guide, (x, y), estimator="shared")
    passes.clear()
    second = ps.decompose(model, guide, (x, y), estimator="shared", num_samples=3)
    assert passes == [NODES] * 3 and first.kl == pytest.approx(second.kl)
    exact = torch.distributions.kl_divergence(
        guide.site_distribution("linear.weight").base_dist, torch.distributions.Normal(0.0, 1.0)
    ).sum()
    assert second.kl == pytest.approx(exact.item(), rel=1e-5)

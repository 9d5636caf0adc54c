"""Networks, data and likelihoods with which a search for examples that meet could go wrong, and leave traces."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import pyrostoch as ps
from pyrostoch.infer.data_sets import as_batches

COUNT = 100


def bayes(net, likelihood=None, num_data=COUNT, **options):
    likelihood = ps.likelihoods.Gaussian(0.1) if likelihood is None else likelihood
    return ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=num_data, **options)


@pytest.fixture
def data():
    return torch.randn(COUNT, 4), torch.randn(COUNT, 1)


def treatments(model, x, scale=0.1):
    return set(ps.predict(model, ps.guides.Additive(model, init_scale=scale), x, mode="mc:2").treatments.values())


class Merging(nn.Module):
    """Evaluation mode merges an adapter into the weight, as loralib does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4), requires_grad=False)
        self.adapter, self.merged = nn.Parameter(torch.randn(1, 4), requires_grad=False), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.adapter if mode else self.adapter
            self.merged = not mode
        return self

    def forward(self, x):
        return F.linear(x, self.weight if self.merged else self.weight + self.adapter)


def test_a_network_that_changes_its_weights_in_eval_keeps_them(data):
    net = nn.Sequential(Merging(), nn.Tanh(), nn.Linear(1, 1))
    weight, output = net[0].weight.clone(), net(data[0])
    model = ps.BayesianModel(
        net, prior={"*": None, "2.weight": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(), num_data=COUNT
    )
    assert not model.examples_meet(data[0])
    assert torch.equal(net[0].weight, weight) and torch.equal(net(data[0]), output)


class Lag(nn.Linear):
    def __init__(self):
        super().__init__(4, 1, bias=False)

    def forward(self, x):
        h = super().forward(x)
        return h - torch.cat([torch.zeros_like(h[:40]), h])[: len(h)]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 4), nn.Linear(4, 1)

    def forward(self, tokens):
        h = self.table(tokens)
        return self.linear(torch.softmax(h @ h.T, 1) @ h)


class Sometimes(nn.Linear):
    def forward(self, x):
        h = super().forward(x)
        return h + h.mean(0) if torch.rand(()) < 0.5 else h


class NeighborLists(nn.Linear):
    def forward(self, neighbors):
        return super().forward(neighbors.float())[neighbors].mean(1)


def test_couplings_that_a_glance_at_the_first_rows_misses_are_found(data):
    assert bayes(Lag()).examples_meet(data[0])
    assert bayes(Tokens()).examples_meet(torch.arange(10).repeat_interleave(20))
    assert bayes(Sometimes(4, 1)).examples_meet(data[0])
    isolated = torch.arange(COUNT)[:, None].repeat(1, 2)
    isolated[60:] = torch.randint(COUNT, (40, 2))
    assert bayes(NeighborLists(2, 1)).examples_meet(isolated)


class GroupMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)

    def forward(self, x, group):
        h, same = self.linear(x), (group[:, None] == group[None]).to(x.dtype)
        return same @ h / same.sum(1, keepdim=True)


def test_inputs_that_tell_who_meets_whom_do_not_decide_for_later_ones(data):
    x = data[0][:60]
    model = bayes(GroupMean(), num_data=60)
    apart, together = torch.arange(60), torch.arange(60) // 6
    assert treatments(model, (x, apart)) == {"shared (examples meet)"}
    guide = ps.guides.Additive(model, init_scale=0.5)
    found = ps.predict(model, guide, (x, together), mode="mc:2000")
    draws = torch.stack([model.outputs((x, together), guide()) for _ in range(2000)]).detach()
    assert found.epistemic.sum() == pytest.approx(draws.var(0).sum().item(), rel=0.3)
    given = bayes(_Adjacency(), in_dims=(0, None))
    assert treatments(given, (data[0], torch.eye(COUNT))) == {"shared (an input belongs to all examples)"}
    assert not given.examples_meet((data[0], torch.eye(COUNT)))
    assert given.examples_meet((data[0], torch.ones(COUNT, COUNT)))
    # Sparse, too.
    assert treatments(given, (data[0], torch.eye(COUNT).to_sparse())) == {"shared (an input belongs to all examples)"}


class _Adjacency(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x, adjacency):
        return adjacency @ self.linear(x)


class NormalizedOutput(ps.likelihoods.Likelihood):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def distribution(self, output, **quantities):
        return dist.Normal(self.norm(output), 0.1).to_event(1)


def test_the_likelihood_keeps_its_state(data):
    model = bayes(nn.Linear(4, 1), NormalizedOutput())
    ps.ELBO()(model, ps.guides.Additive(model))(*data)
    assert model.likelihood.norm.num_batches_tracked == 1 and not model.examples_meet(data[0])
    assert model.likelihood.norm.num_batches_tracked == 1 and model.likelihood.training


class Keeping(nn.Linear):
    """Nested containers, a generator of its own, a counter that matters, an expanded tensor."""

    def __init__(self):
        super().__init__(4, 1)
        self.history, self.generator, self.calls = {"all": []}, torch.Generator(), 0
        self.scale = torch.ones(1).expand(4)

    def forward(self, x):
        self.history["all"].append(len(x))
        self.calls += 1
        return super().forward(x * self.scale) / self.calls + torch.randn(len(x), 1, generator=self.generator)


def test_what_a_network_keeps_is_restored_and_does_not_confuse(data):
    net = Keeping()
    state = net.generator.get_state()
    model = bayes(net)
    assert not model.examples_meet(data[0])
    assert net.history == {"all": []} and net.calls == 0 and torch.equal(state, net.generator.get_state())
    assert treatments(model, data[0]) == {"local (exact)"}


def test_two_losses_may_share_a_backward_pass(data):
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.held = nn.Linear(4, 4), nn.Linear(4, 1), torch.randn(4)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x) * self.held))

    model = bayes(Held())
    loss = ps.ELBO()(model, ps.guides.Additive(model))
    (loss(data[0][:20], data[1][:20]) + loss(data[0][20:], data[1][20:])).backward()


class Huber(dist.TorchDistribution):
    """Has a density and nothing else."""

    arg_constraints = {}
    support = dist.constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=False)

    def log_prob(self, value):
        return -F.huber_loss(self.loc, value, reduction="none").sum(-1)


APART = {
    "density only": lambda out: Huber(out),
    "support that depends on the output": lambda out: dist.Pareto(out.exp(), 1.0).to_event(1),
    "scales": lambda out: dist.Normal(out - 50.0, out.exp()).to_event(1),
}


@pytest.mark.parametrize("name", APART)
def test_unusual_likelihoods_raise_no_false_alarm(data, name):
    model = bayes(nn.Linear(4, 1), APART[name])
    assert not model.examples_meet(data[0])
    distribution = {row.treatment for row in ps.decompose(model, ps.guides.Additive(model), _positive(data)).sites}
    assert distribution == {"local (exact)"}


def _positive(data):
    return data[0], data[1].exp() + 1e6  # within every support above


def test_auxiliary_outputs_that_the_likelihood_does_not_read_may_mix(data):
    class Auxiliary(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            return h, h.square().mean(), h @ h.T

    model = bayes(Auxiliary(4, 1), lambda out: dist.Normal(out[0], 0.1).to_event(1))
    assert treatments(model, data[0]) == {"local (exact)"} and not model.examples_meet(data[0])


def test_an_analysis_in_inference_mode_is_as_good(data):
    model = bayes(nn.Linear(4, 1))
    with torch.inference_mode():
        assert treatments(model, data[0]) == {"local (exact)"}
    assert ps.predict(model, ps.guides.Additive(model), data[0], mode="moments").treatments == {"weight": "moments"}


def test_sites_of_networks_and_likelihoods_stay_in_the_decomposition(data):
    class Factor(nn.Linear):
        def forward(self, x):
            pyro.factor("reg", torch.tensor(-3.0))
            return super().forward(x)

    model = bayes(Factor(4, 1))
    found = ps.decompose(model, ps.guides.Additive(model), data)
    assert found.penalty == {"penalty": 3.0} and found.elbo == pytest.approx(found.data - found.kl - 3.0)
    model = bayes(
        nn.Linear(4, 1), lambda out: dist.Normal(out, pyro.sample("sigma", dist.LogNormal(0.0, 1.0))).to_event(1)
    )
    guide = AutoNormal(model)
    guide(*data)
    assert {"weight", "sigma"} <= {row.site for row in ps.decompose(model, guide, data).sites}


class Clusters(torch.utils.data.Dataset):
    """Five parts of a graph, each a batch of its own with its edges."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.randn(20, 4), torch.eye(20), torch.randn(20, 1)


def test_a_loader_of_whole_batches_is_counted_by_examples():
    loader = DataLoader(Clusters(), batch_size=None, shuffle=True)
    model = bayes(_Adjacency(), in_dims=(0, None))
    guide = ps.guides.Additive(model)
    found = ps.fit(model, guide, loader, epochs=2, progress=False, compile=False)
    assert found.stopped == "finished" and ps.decompose(model, guide, loader).num_data == COUNT
    wrong = bayes(_Adjacency(), in_dims=(0, None), num_data=80)
    with pytest.raises(ValueError, match="expected num_data=80 .* 100 in all; build it with num_data=100"):
        ps.fit(wrong, ps.guides.Additive(wrong), loader, epochs=1, progress=False, compile=False)


def test_inputs_that_are_no_tensors_and_loaders_that_shuffle(data):
    class Option(nn.Linear):
        def forward(self, x, flag):
            return super().forward(x) if flag else x

    model = bayes(Option(4, 1), in_dims=(0, None))
    guide = ps.guides.Additive(model)
    assert len(ps.predict(model, guide, (data[0], True), mode="mean", batch_size=30)) == COUNT
    ps.fit(model, guide, ((data[0], True), data[1]), epochs=1, batch_size=50, progress=False, compile=False)
    sampler = BatchSampler(RandomSampler(range(COUNT)), 10, False)
    with pytest.raises(ValueError, match="whose RandomSampler decides about the order"):
        as_batches(DataLoader(TensorDataset(*data), batch_sampler=sampler), 10, shuffle=False)
    graph = bayes(_Adjacency(), in_dims=(0, None))
    groups = ps.to_arviz(graph, ps.guides.Additive(graph), ((data[0], torch.eye(COUNT)), data[1]), draws=3)
    assert groups["posterior"]["linear.weight"].shape == (1, 3, 1, 4)

"""Vectorized draws: same distribution as one by one, shared activations computed once, in a fixed amount of memory."""

from __future__ import annotations

import math
import random

import pyro
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.prediction import activation_sizes, batched_sampling
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.prediction.draw_chunk import DrawChunk
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import evaluating

F64 = {"dtype": torch.float64}


class Residual(nn.Module):
    """A random layer between fixed ones, with a skip connection."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 4, **F64), nn.Linear(4, 4, **F64), nn.Linear(4, 3, **F64)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.last(h + self.middle(h))


class Images(nn.Module):
    def __init__(self, how="flatten"):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3, **F64), nn.BatchNorm2d(3, **F64), nn.Linear(27, 3, **F64)
        self.how = how

    def forward(self, x):
        h = torch.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.head(h.flatten(1) if self.how == "flatten" else h.view(len(h), -1))


class Reads(Residual):
    def forward(self, x):
        out = super().forward(x)
        return out if out.sum().item() < math.inf else -out


class Dropped(Residual):
    def forward(self, x):
        return super().forward(torch.dropout(x, 0.5, True))


def build(net, prior, guide=ps.guides.Additive, **start):
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=10)
    return model, guide(model, **(start or {"init_scale": 0.3}))


def rows(sampler, x, statistics=lambda distribution: {"logits": distribution.logits}):
    with evaluating(sampler.model, sampler.guide):
        found = [
            torch.stack([row["logits"] for chunk in sampler.draw_chunks(part) for row in chunk.run(part, statistics)])
            for part, _ in sampler.split_batch(x)
        ]
    return torch.cat(found, 1)


def one_by_one(monkeypatch):
    monkeypatch.setattr(PosteriorSampler, "_try_vectorized", lambda self, plan, examples: None)


CASES = {
    "local": (Residual, {"middle.weight": ps.priors.Normal()}, (3,), True),
    "all layers": (Residual, {"*.weight": ps.priors.Normal()}, (3,), True),
    "no random layer": (Residual, None, (3,), True),
    "dense layer of images": (Images, {"head.weight": ps.priors.Normal()}, (2, 8, 8), True),
    "kernels": (Images, {"conv.weight": ps.priors.Normal()}, (2, 8, 8), False),
    "both": (Images, {"*.weight": ps.priors.Normal(), "norm.*": None}, (2, 8, 8), False),
    "reads a value": (Reads, {"middle.weight": ps.priors.Normal()}, (3,), False),
    "own noise": (Dropped, {"middle.weight": ps.priors.Normal()}, (3,), True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("joint", [False, True])
def test_vectorized_draws_have_the_distribution_of_single_ones(monkeypatch, name, joint):
    make, prior, shape, vectorizes = CASES[name]
    model, guide = build(make(), prior)
    x = torch.randn(5, *shape, **F64)
    draws = 2000 if len(shape) == 1 else 1000
    many = PosteriorSampler(model, guide, "mc", draws, joint=joint)
    found = rows(many, x)
    assert many.plan.vectorized == vectorizes and many.plan.sampled_sites == tuple(
        model.sites if joint else many.plan.sampled_sites
    )
    one_by_one(monkeypatch)
    single = PosteriorSampler(model, guide, "mc", draws // 4, joint=joint)
    expected = rows(single, x)
    assert not single.plan.vectorized
    assert found.shape == (draws, 5, 3) and expected.shape == (draws // 4, 5, 3)
    error = (found.var(0) / draws + expected.var(0) / len(expected)).sqrt() + 1e-12
    assert ((found.mean(0) - expected.mean(0)) / error).abs().max() < 4.5
    ratio = (found.std(0) + 1e-12) / (expected.std(0) + 1e-12)
    assert (ratio - 1).abs().max() < 9 / math.sqrt(2 * len(expected))
    # Draws differ from each other.
    if prior is not None:
        assert (found[0] != found[1]).all()


def test_a_local_layer_has_its_exact_distribution():
    model, guide = build(nn.Linear(3, 2, bias=False, **F64), ps.priors.Normal())
    x = torch.randn(4, 3, **F64)
    found = rows(PosteriorSampler(model, guide, "mc", 20_000), x)
    # Logits of a Categorical are normalized, but their difference is that of the network's outputs.
    difference = found[..., 0] - found[..., 1]
    distribution = guide.site_distribution("weight")
    mean = x @ (distribution.mean[0] - distribution.mean[1])
    deviation = (x.square() @ distribution.variance.sum(0)).sqrt()
    assert ((difference.mean(0) - mean) / deviation).abs().max() < 4.5 / math.sqrt(20_000)
    assert (difference.std(0) / deviation - 1).abs().max() < 0.03


@pytest.mark.parametrize(("joint", "equal"), [(False, False), (True, True)])
def test_a_joint_draw_is_used_for_all_examples_and_pieces(monkeypatch, joint, equal):
    monkeypatch.setattr(batched_sampling, "_MAX_BYTES", {"cpu": 2 * 3 * 8, "cuda": 1})  # two examples per piece
    model, guide = build(nn.Linear(3, 2, bias=False, **F64), ps.priors.Normal())
    x = torch.randn(1, 3, **F64).expand(6, 3).contiguous()
    prediction = predict(model, guide, x, mode="mc:7", joint=joint)
    same = (prediction.probs - prediction.probs[:1]).abs().max() < 1e-12
    assert bool(same) == equal and prediction.num_samples == 7


def test_activations_shared_by_all_draws_are_computed_once():
    net = Residual()
    model, guide = build(net, {"middle.weight": ps.priors.Normal()})
    seen = []
    tanh = torch.Tensor.tanh

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is tanh:
                seen.append(activation_sizes._differs_between_draws(args[0]))
            return func(*args, **(kwargs or {}))

    sampler = PosteriorSampler(model, guide, "mc", 50)
    with Count():
        rows(sampler, torch.randn(6, 3, **F64))
    # Several times for the plan and the analysis of weight usage, then once for all fifty draws.
    assert seen == [False] * len(seen)
    analyzed, seen[:] = len(seen), []
    with Count():
        rows(sampler, torch.randn(6, 3, **F64))
    assert analyzed < 50 and seen == [False]


def test_chunks_and_pieces_are_within_the_limit_of_memory(monkeypatch):
    model, guide = build(Residual(), {"middle.weight": ps.priors.Normal()})
    x = torch.randn(12, 3, **F64)
    widest = 4 * 8  # bytes of four activations
    monkeypatch.setattr(batched_sampling, "_MIN_EXAMPLES", 4)
    # All draws of some examples; some draws of the smallest number of examples; even fewer examples.
    for budget, examples, draws in (
        (6 * widest * 10 * 2, 6, 10),
        (4 * widest * 5 * 2, 4, 5),
        (2 * widest, 2, 1),
        (1, 1, 1),
    ):
        monkeypatch.setattr(batched_sampling, "_MAX_BYTES", {"cpu": budget, "cuda": 1})
        sampler = PosteriorSampler(model, guide, "mc", 10)
        with evaluating(model, guide):
            pieces = [part for part, _ in sampler.split_batch(x)]
            sizes = [len(chunk.values) for chunk in sampler.draw_chunks(pieces[0])]
        assert [len(piece) for piece in pieces] == [examples] * (12 // examples)
        assert max(sizes) == draws and sum(sizes) == 10


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_chunk_and_continues(monkeypatch, error):
    model, guide = build(Residual(), {"middle.weight": ps.priors.Normal()})
    run_vectorized, tried = DrawChunk.run_vectorized, []

    def little(self, x, statistics):
        tried.append(len(self.values))
        if len(self.values) > 3:
            raise error
        return run_vectorized(self, x, statistics)

    monkeypatch.setattr(DrawChunk, "run_vectorized", little)
    sampler = PosteriorSampler(model, guide, "mc", 16)
    x = torch.randn(4, 3, **F64)
    found = rows(sampler, x)
    assert found.shape == (16, 4, 3) and len({float(row.sum()) for row in found}) == 16
    assert tried == [2, 2, 16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2] and sampler.max_chunk_size == 2
    tried.clear()
    rows(sampler, x)
    assert tried == [2] * 8 and sampler.plan.vectorized


def test_channels_last_is_used_where_the_network_accepts_it():
    x = torch.randn(6, 2, 8, 8, **F64)
    results = {}
    for how in ("flatten", "view"):
        torch.manual_seed(0)
        model, guide = build(Images(how), {"head.weight": ps.priors.Normal()})
        sampler = PosteriorSampler(model, guide, "mean", 1)
        results[how] = rows(sampler, x)
        assert sampler.plan.channels_last == (how == "flatten")
    torch.testing.assert_close(results["flatten"], results["view"])


def test_making_a_plan_changes_nothing():
    model, guide = build(Images(), {"head.weight": ps.priors.Normal()})
    state = torch.get_rng_state()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    sampler = PosteriorSampler(model, guide, "mc", 9)
    with evaluating(model, guide):
        next(sampler.split_batch(torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0), **F64)))
    assert sampler.plan.vectorized and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_errors_of_the_model_are_passed_on():
    model, guide = build(nn.Linear(3, 2, **F64), ps.priors.Normal())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(model, guide, torch.randn(4, 5, **F64), mode="mc:3")


def test_targets_are_checked_in_vectorized_draws():
    model, guide = build(nn.Linear(3, 2, **F64), ps.priors.Normal())
    x = torch.randn(4, 3, **F64)
    with pytest.raises(ValueError, match="labels from 0 to 1"):
        predict(model, guide, x, y=torch.tensor([0, 1, 2, 0]), mode="mc:3")
    found = predict(model, guide, x, y=torch.tensor([0, 1, 1, 0]), mode="mc:3")
    torch.testing.assert_close(found.log_density, found.log_prob(torch.tensor([0, 1, 1, 0])))


def test_draws_of_a_users_own_model_are_vectorized():
    class Own:
        """Two sites, one of which the other depends on."""

        def observation(self, x):
            scale = pyro.sample("scale", pyro.distributions.LogNormal(0.0, 1.0))
            weight = pyro.sample("weight", pyro.distributions.Normal(torch.zeros(3, **F64), scale).to_event(1))
            return pyro.distributions.Normal(x @ weight, 1.0)

    def guide(x):
        scale = pyro.sample("scale", pyro.distributions.LogNormal(torch.tensor(0.0, **F64), 0.1))
        pyro.sample("weight", pyro.distributions.Normal(torch.ones(3, **F64), scale).to_event(1))

    x = torch.randn(4, 3, **F64)
    sampler = PosteriorSampler(Own(), guide, "mc", 8000)
    average = DrawAverage(sampler.model)
    with torch.no_grad():
        for part, _ in sampler.split_batch(x):
            for chunk in sampler.draw_chunks(part):
                for row in chunk.run(part, average.statistics):
                    average.add(row)
    found = average.results()
    assert sampler.plan.vectorized and sampler.plan.sampled_sites == ("scale", "weight")
    torch.testing.assert_close(found["mean"], x.sum(1), atol=0.15, rtol=0)
    spread = x.square().sum(1) * math.exp(2 * 0.1**2)
    torch.testing.assert_close(found["epistemic"], spread, rtol=0.1, atol=0)


class Kept(Residual):
    """Keeps an activation, initializes itself from its first batch, counts calls, or uses Python's random numbers."""

    def __init__(self, how):
        super().__init__()
        self.how, self.count, self.latest = how, 0, None
        self.register_buffer("filled", torch.zeros((), **F64))
        self.register_buffer("start", torch.zeros((), **F64))

    def forward(self, x):
        out = super().forward(x)
        if self.how == "keeps":
            self.latest = out
        elif self.how == "fills" and not self.filled:
            self.start.copy_(x.mean())
            self.filled.fill_(1)
        elif self.how == "counts":
            self.count += 1
            out = out * (self.count % 2)
        elif self.how == "dice":
            out = out * random.random()
        return out - self.start


@pytest.mark.parametrize("how", ["keeps", "fills", "counts", "dice"])
def test_making_a_plan_restores_the_state_of_a_network(how):
    net = Kept(how)
    model, guide = build(net, {"middle.weight": ps.priors.Normal()})
    x = torch.randn(6, 3, **F64)
    dice = random.getstate()
    sampler = PosteriorSampler(model, guide, "mc", 4)
    with evaluating(model, guide):
        pieces = [part for part, _ in sampler.split_batch(x)]
    assert (net.count, net.latest, float(net.filled)) == (0, None, 0.0) and random.getstate() == dice
    # The initialization uses the whole batch, also if draws are vectorized.
    assert sampler.plan.vectorized == (how == "fills") and len(pieces) == 1
    predict(model, guide, x, mode="mc:4")
    assert net.latest is None or net.latest.sum().isfinite()
    assert net.count in (0, 4)  # the analysis of weight usage leaves no trace
    assert float(net.start) == pytest.approx(float(x.mean()) if how == "fills" else 0.0)


def test_a_guide_of_several_members_runs_for_each_draw():
    model, low = build(nn.Linear(1, 1, bias=False, **F64), ps.priors.Normal())
    high = ps.guides.Additive(model, init_loc=2.0, init_scale=0.01)
    low = ps.guides.Additive(model, init_loc=-2.0, init_scale=0.01)
    model.likelihood = ps.likelihoods.Gaussian(1.0)
    found = predict(model, Members([low, high]), torch.ones(3, 1, **F64), mode="mc:400")
    torch.testing.assert_close(found.epistemic, torch.full((3, 1), 4.0, **F64), rtol=0.1, atol=0)


class Members(nn.ModuleList):
    def forward(self, *args):
        return self[int(torch.randint(2, ()))](*args)


def test_joint_draws_of_a_guide_that_depends_on_the_data_use_the_whole_batch(monkeypatch):
    monkeypatch.setattr(batched_sampling, "_MAX_BYTES", {"cpu": 1, "cuda": 1})

    class Own:
        def observation(self, x):
            with pyro.plate("each", len(x)):
                z = pyro.sample("z", pyro.distributions.Normal(torch.zeros((), **F64), 1.0))
            return pyro.distributions.Normal(z, 1.0)

    def guide(x):
        with pyro.plate("each", len(x)):
            pyro.sample("z", pyro.distributions.Normal(x[:, 0], 1e-3))

    x = torch.randn(7, 2, **F64)
    found = predict(Own(), guide, x, mode="mc:5", joint=True)
    torch.testing.assert_close(found.mean, x[:, 0], atol=0.01, rtol=0)


def test_arguments_out_of_range_are_named_in_vectorized_draws():
    model, guide = build(nn.Linear(3, 2, **F64), ps.priors.Normal())
    model.likelihood = ps.likelihoods.FromOutput(lambda out: pyro.distributions.Normal(out[:, 0], out[:, 1]))
    with torch.no_grad():
        model.net.bias.copy_(torch.tensor([0.0, 100.0]))
    x = torch.zeros(9, 3, **F64)
    x[6, 0], x[7, 0] = 1e4, -1e4
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="scale"):
        predict(model, guide, x, mode="mc:20")


def test_a_joint_draw_is_unchanged_by_a_network_that_writes_into_its_weights(monkeypatch):
    class Writes(Residual):
        def forward(self, x):
            out = super().forward(x)
            self.middle.weight.mul_(0.5)
            return out

    monkeypatch.setattr(batched_sampling, "_MAX_BYTES", {"cpu": 1, "cuda": 1})
    model, guide = build(Writes(), {"middle.weight": ps.priors.Normal()})
    one_by_one(monkeypatch)
    x = torch.randn(1, 3, **F64).expand(5, 3).contiguous()
    probs = predict(model, guide, x, mode="mc:3", joint=True).probs
    torch.testing.assert_close(probs, probs[:1].expand(5, 3))


@pytest.mark.parametrize("mode", ["mean", "mc", "moments"])
def test_the_size_of_a_piece_depends_on_activations_and_not_on_weights(mode):
    net = nn.Sequential(
        nn.Linear(3, 50, **F64), nn.ReLU(), nn.Linear(50, 200, **F64), nn.ReLU(), nn.Linear(200, 3, **F64)
    )
    model, guide = build(net, {"2.weight": ps.priors.Normal()})
    sampler = PosteriorSampler(model, guide, mode, 1)
    with evaluating(model, guide):
        list(sampler.split_batch(torch.zeros(4, 3, **F64)))
    # The widest layer, with mean and variance if moments are propagated; the weight has 80,000 bytes.
    assert sampler.plan.shared_bytes == (3200 if mode == "moments" else 1600)


def test_expensive_weights_are_drawn_for_few_pieces(monkeypatch):
    model = ps.BayesianModel(
        nn.Linear(1000, 1000), prior=ps.priors.Grid(), likelihood=ps.likelihoods.Gaussian(), num_data=10
    )
    guide, drawn = ps.guides.CategoricalWeights(model), []
    own = ps.distributions.Levels.rsample
    monkeypatch.setattr(
        ps.distributions.Levels,
        "rsample",
        lambda distribution, shape=(): drawn.append(distribution.batch_shape) or own(distribution, shape),
    )
    ps.predict(model, guide, torch.randn(1000, 1000), mode="mc:1")
    for_plan = len(drawn) - 1
    drawn.clear()
    ps.predict(model, guide, torch.randn(1000, 1000), mode="mc:5")
    # One piece; if its size depended on the activations of five draws alone, there would be five.
    assert len(drawn) <= 5 + for_plan + 4

"""Draws side by side: distributed as one by one, what no draw changes computed once, in a fixed amount of memory."""

from __future__ import annotations

import math
import random

import pyro
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.prediction import activation_sizes as survey
from pyrostoch.prediction import batched_sampling
from pyrostoch.prediction.batched_sampling import Chunk, Drawing
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import DrawAverage, evaluating

F64 = {"dtype": torch.float64}


class Residual(nn.Module):
    """A random layer between fixed ones, with a way around it."""

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


def rows(drawing, x, statistics=lambda distribution: {"logits": distribution.logits}):
    with evaluating(drawing.model, drawing.guide):
        found = [
            torch.stack([row["logits"] for chunk in drawing.chunks(part) for row in chunk.on(part, statistics)])
            for part, _ in drawing.parts(x)
        ]
    return torch.cat(found, 1)


def one_by_one(monkeypatch):
    monkeypatch.setattr(Drawing, "_look_side_by_side", lambda self, plan, some: None)


CASES = {
    "local": (Residual, {"middle.weight": ps.priors.Normal()}, (3,), True),
    "all layers": (Residual, {"*.weight": ps.priors.Normal()}, (3,), True),
    "no random layer": (Residual, None, (3,), True),
    "dense layer of images": (Images, {"head.weight": ps.priors.Normal()}, (2, 8, 8), True),
    "kernels": (Images, {"conv.weight": ps.priors.Normal()}, (2, 8, 8), False),
    "both": (Images, {"*.weight": ps.priors.Normal(), "norm.*": None}, (2, 8, 8), False),
    "reads a value": (Reads, {"middle.weight": ps.priors.Normal()}, (3,), False),
    "noise of its own": (Dropped, {"middle.weight": ps.priors.Normal()}, (3,), True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("joint", [False, True])
def test_side_by_side_has_the_distribution_of_one_by_one(monkeypatch, name, joint):
    make, prior, shape, folds = CASES[name]
    model, guide = build(make(), prior)
    x = torch.randn(5, *shape, **F64)
    draws = 4000 if len(shape) == 1 else 1000
    many = Drawing(model, guide, "mc", draws, joint=joint)
    found = rows(many, x)
    assert many.plan.folded == folds and many.plan.shared == tuple(model.sites if joint else many.plan.shared)
    one_by_one(monkeypatch)
    single = Drawing(model, guide, "mc", draws // 4, joint=joint)
    expected = rows(single, x)
    assert not single.plan.folded
    assert found.shape == (draws, 5, 3) and expected.shape == (draws // 4, 5, 3)
    error = (found.var(0) / draws + expected.var(0) / len(expected)).sqrt() + 1e-12
    assert ((found.mean(0) - expected.mean(0)) / error).abs().max() < 4.5
    ratio = (found.std(0) + 1e-12) / (expected.std(0) + 1e-12)
    assert (ratio - 1).abs().max() < 6 / math.sqrt(2 * len(expected))
    # Every draw is another one, and joint draws tie the examples together while marginal ones of the last layer do not.
    if prior is not None:
        assert (found[0] != found[1]).all()


def test_a_local_layer_has_its_exact_distribution():
    model, guide = build(nn.Linear(3, 2, bias=False, **F64), ps.priors.Normal())
    x = torch.randn(4, 3, **F64)
    found = rows(Drawing(model, guide, "mc", 20_000), x)
    # Logits of a Categorical are normalized: their difference is what the weights say.
    difference = found[..., 0] - found[..., 1]
    distribution = guide.site_distribution("weight")
    mean = x @ (distribution.mean[0] - distribution.mean[1])
    deviation = (x.square() @ distribution.variance.sum(0)).sqrt()
    assert ((difference.mean(0) - mean) / deviation).abs().max() < 4.5 / math.sqrt(20_000)
    assert (difference.std(0) / deviation - 1).abs().max() < 0.03


@pytest.mark.parametrize(("joint", "tied"), [(False, False), (True, True)])
def test_a_joint_draw_serves_all_examples_and_pieces(monkeypatch, joint, tied):
    monkeypatch.setattr(batched_sampling, "_BUDGET", {"cpu": 2 * 3 * 8, "cuda": 1})  # two examples a piece
    model, guide = build(nn.Linear(3, 2, bias=False, **F64), ps.priors.Normal())
    x = torch.randn(1, 3, **F64).expand(6, 3).contiguous()
    prediction = predict(model, guide, x, mode="mc:7", joint=joint)
    same = (prediction.probs - prediction.probs[:1]).abs().max() < 1e-12
    assert bool(same) == tied and prediction.num_samples == 7


def test_what_no_draw_changes_is_computed_once():
    net = Residual()
    model, guide = build(net, {"middle.weight": ps.priors.Normal()})
    seen = []
    tanh = torch.Tensor.tanh

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is tanh:
                seen.append(survey._differs(args[0]))
            return func(*args, **(kwargs or {}))

    drawing = Drawing(model, guide, "mc", 50)
    with Count():
        rows(drawing, torch.randn(6, 3, **F64))
    # A few times to look and to count uses, once for all fifty draws, and never on a batch of draws.
    assert seen == [False] * len(seen) and len(seen) <= 8


def test_chunks_and_pieces_fit_the_memory_set_aside(monkeypatch):
    model, guide = build(Residual(), {"middle.weight": ps.priors.Normal()})
    x = torch.randn(12, 3, **F64)
    widest = 4 * 8  # bytes of four activations
    monkeypatch.setattr(batched_sampling, "_FEWEST", 4)
    # All draws of few examples; of the fewest examples, some draws; no more examples than fit before the draws.
    for budget, examples, draws in (
        (6 * widest * 10 * 2, 6, 10),
        (4 * widest * 5 * 2, 4, 5),
        (2 * widest, 2, 1),
        (1, 1, 1),
    ):
        monkeypatch.setattr(batched_sampling, "_BUDGET", {"cpu": budget, "cuda": 1})
        drawing = Drawing(model, guide, "mc", 10)
        with evaluating(model, guide):
            pieces = [part for part, _ in drawing.parts(x)]
            sizes = [len(chunk.values) for chunk in drawing.chunks(pieces[0])]
        assert [len(piece) for piece in pieces] == [examples] * (12 // examples)
        assert max(sizes) == draws and sum(sizes) == 10


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch, error):
    model, guide = build(Residual(), {"middle.weight": ps.priors.Normal()})
    folded, tried = Chunk._folded, []

    def little(self, x, statistics):
        tried.append(len(self.values))
        if len(self.values) > 3:
            raise error
        return folded(self, x, statistics)

    monkeypatch.setattr(Chunk, "_folded", little)
    drawing = Drawing(model, guide, "mc", 16)
    x = torch.randn(4, 3, **F64)
    found = rows(drawing, x)
    assert found.shape == (16, 4, 3) and len({float(row.sum()) for row in found}) == 16
    assert tried == [2, 2, 16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2] and drawing.most == 2
    tried.clear()
    rows(drawing, x)
    assert tried == [2] * 8 and drawing.plan.folded


def test_channels_last_is_used_where_the_network_takes_it():
    x = torch.randn(6, 2, 8, 8, **F64)
    results = {}
    for how in ("flatten", "view"):
        torch.manual_seed(0)
        model, guide = build(Images(how), {"head.weight": ps.priors.Normal()})
        drawing = Drawing(model, guide, "mean", 1)
        results[how] = rows(drawing, x)
        assert drawing.plan.channels_last == (how == "flatten")
    torch.testing.assert_close(results["flatten"], results["view"])


def test_looking_changes_nothing():
    model, guide = build(Images(), {"head.weight": ps.priors.Normal()})
    state = torch.get_rng_state()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    drawing = Drawing(model, guide, "mc", 9)
    with evaluating(model, guide):
        next(drawing.parts(torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0), **F64)))
    assert drawing.plan.folded and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_errors_of_the_model_are_its_own():
    model, guide = build(nn.Linear(3, 2, **F64), ps.priors.Normal())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(model, guide, torch.randn(4, 5, **F64), mode="mc:3")


def test_targets_are_checked_side_by_side():
    model, guide = build(nn.Linear(3, 2, **F64), ps.priors.Normal())
    x = torch.randn(4, 3, **F64)
    with pytest.raises(ValueError, match="labels from 0 to 1"):
        predict(model, guide, x, y=torch.tensor([0, 1, 2, 0]), mode="mc:3")
    found = predict(model, guide, x, y=torch.tensor([0, 1, 1, 0]), mode="mc:3")
    torch.testing.assert_close(found.log_density, found.log_prob(torch.tensor([0, 1, 1, 0])))


def test_a_users_own_model_is_drawn_side_by_side():
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
    drawing = Drawing(Own(), guide, "mc", 8000)
    average = DrawAverage(drawing.model)
    with torch.no_grad():
        for part, _ in drawing.parts(x):
            for chunk in drawing.chunks(part):
                for row in chunk.on(part, average.statistics):
                    average.add(row)
    found = average.results()
    assert drawing.plan.folded and drawing.plan.shared == ("scale", "weight")
    torch.testing.assert_close(found["mean"], x.sum(1), atol=0.15, rtol=0)
    spread = x.square().sum(1) * math.exp(2 * 0.1**2)
    torch.testing.assert_close(found["epistemic"], spread, rtol=0.1, atol=0)


class Kept(Residual):
    """Keeps an activation, fills itself from its first batch, counts, or rolls dice outside torch."""

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
def test_a_network_with_a_state_is_looked_at_without_a_trace(how):
    net = Kept(how)
    model, guide = build(net, {"middle.weight": ps.priors.Normal()})
    x = torch.randn(6, 3, **F64)
    dice = random.getstate()
    drawing = Drawing(model, guide, "mc", 4)
    with evaluating(model, guide):
        pieces = [part for part, _ in drawing.parts(x)]
    assert (net.count, net.latest, float(net.filled)) == (0, None, 0.0) and random.getstate() == dice
    # What is filled from a batch is so from the whole batch, side by side as well.
    assert drawing.plan.folded == (how == "fills") and len(pieces) == 1
    predict(model, guide, x, mode="mc:4")
    assert net.latest is None or net.latest.sum().isfinite()
    assert net.count in (0, 4 + 1)  # one pass more counts the weights' uses
    assert float(net.start) == pytest.approx(float(x.mean()) if how == "fills" else 0.0)


def test_a_guide_of_several_members_is_asked_for_each_draw():
    model, low = build(nn.Linear(1, 1, bias=False, **F64), ps.priors.Normal())
    high = ps.guides.Additive(model, init_loc=2.0, init_scale=0.01)
    low = ps.guides.Additive(model, init_loc=-2.0, init_scale=0.01)
    model.likelihood = ps.likelihoods.Gaussian(1.0)
    found = predict(model, Members([low, high]), torch.ones(3, 1, **F64), mode="mc:400")
    torch.testing.assert_close(found.epistemic, torch.full((3, 1), 4.0, **F64), rtol=0.1, atol=0)


class Members(nn.ModuleList):
    def forward(self, *args):
        return self[int(torch.randint(2, ()))](*args)


def test_joint_draws_of_a_guide_that_reads_its_batch_are_those_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(batched_sampling, "_BUDGET", {"cpu": 1, "cuda": 1})

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


def test_arguments_out_of_range_are_told_side_by_side():
    model, guide = build(nn.Linear(3, 2, **F64), ps.priors.Normal())
    model.likelihood = ps.likelihoods.FromOutput(lambda out: pyro.distributions.Normal(out[:, 0], out[:, 1]))
    with torch.no_grad():
        model.net.bias.copy_(torch.tensor([0.0, 100.0]))
    x = torch.zeros(9, 3, **F64)
    x[6, 0], x[7, 0] = 1e4, -1e4
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="scale"):
        predict(model, guide, x, mode="mc:20")


def test_a_joint_draw_stays_what_it_is_where_the_network_writes_into_its_weights(monkeypatch):
    class Writes(Residual):
        def forward(self, x):
            out = super().forward(x)
            self.middle.weight.mul_(0.5)
            return out

    monkeypatch.setattr(batched_sampling, "_BUDGET", {"cpu": 1, "cuda": 1})
    model, guide = build(Writes(), {"middle.weight": ps.priors.Normal()})
    one_by_one(monkeypatch)
    x = torch.randn(1, 3, **F64).expand(5, 3).contiguous()
    probs = predict(model, guide, x, mode="mc:3", joint=True).probs
    torch.testing.assert_close(probs, probs[:1].expand(5, 3))


@pytest.mark.parametrize("mode", ["mean", "mc", "moments"])
def test_a_piece_is_as_large_as_activations_allow_whatever_the_weights(mode):
    net = nn.Sequential(
        nn.Linear(3, 50, **F64), nn.ReLU(), nn.Linear(50, 200, **F64), nn.ReLU(), nn.Linear(200, 3, **F64)
    )
    model, guide = build(net, {"2.weight": ps.priors.Normal()})
    drawing = Drawing(model, guide, mode, 1)
    with evaluating(model, guide):
        list(drawing.parts(torch.zeros(4, 3, **F64)))
    # The widest layer, of mean and variance by moments; a weight is 80,000 bytes.
    assert drawing.plan.before == (3200 if mode == "moments" else 1600)


def test_weights_that_are_drawn_for_each_piece_are_drawn_for_few_pieces(monkeypatch):
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
    looked = len(drawn) - 1
    drawn.clear()
    ps.predict(model, guide, torch.randn(1000, 1000), mode="mc:5")
    # One piece: with five draws of its activations side by side there would be five.
    assert len(drawn) <= 5 + looked + 4

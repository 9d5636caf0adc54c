"""Comparison of predictive modes against scores computed by hand from kept predictions."""

from __future__ import annotations

import json
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.compare import Comparison, accuracy_by_samples, compare
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import evaluating, seeded

F64 = {"dtype": torch.float64}
SCHEMA = {"mode", "accuracy", "accuracy_stderr", "nll", "brier", "ece", "seconds"}


def classifier(count=40):
    net = nn.Sequential(nn.Linear(2, 6, **F64), nn.Tanh(), nn.Linear(6, 3, **F64))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=count)
    x = torch.randn(count, 2, **F64)
    return model, ps.guides.Additive(model, init_scale=0.7), (x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long())


def regression(count=30):
    model = ps.BayesianModel(
        nn.Linear(2, 2, **F64), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.5), num_data=count
    )
    x = torch.randn(count, 2, **F64)
    return model, ps.guides.Additive(model, init_scale=0.3), (x, x + 0.5 * torch.randn(count, 2, **F64))


def naive(prediction, y):
    """Compute all scores from one kept prediction."""
    probs = prediction.probs
    right = (probs.argmax(-1) == y).double()
    confidence = probs.amax(-1)
    bins = (confidence * 15).ceil().clamp(1, 15)
    ece = sum(abs((right - confidence)[bins == b].sum().item()) / len(y) for b in bins.unique())
    return {
        "accuracy": right.mean().item(),
        "accuracy_stderr": math.sqrt(right.mean().item() * (1 - right.mean().item()) / len(y)),
        "nll": -probs.log()[torch.arange(len(y)), y].mean().item(),
        "brier": (probs - nn.functional.one_hot(y, probs.shape[-1])).square().sum(-1).mean().item(),
        "ece": ece,
    }


def test_scores_equal_those_of_kept_predictions():
    model, guide, (x, y) = classifier()
    found = compare(model, guide, (x, y), modes=("mean", "mc:1", "mc:6"), seed=4)
    assert [(row.mode, row.num_samples) for row in found.rows] == [("mean", 1), ("mc:1", 1), ("mc:6", 6)]
    for row in found.rows:
        torch.manual_seed(4)
        expected = naive(predict(model, guide, x, mode=row.mode), y)
        for name, value in expected.items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name
        assert row.seconds > 0 and row.nll_stderr > 0
        bins = found.reliability[row.mode]
        assert sum(bins.count) == 40 and bins.ece == pytest.approx(row.ece)
    assert found["mc:6"].nll != found["mc:1"].nll


def test_regression_scores():
    model, guide, (x, y) = regression()
    found = compare(model, guide, (x, y), modes=("mean", "mc:5"), seed=4)
    for row in found.rows:
        torch.manual_seed(4)
        prediction = predict(model, guide, x, y=y, mode=row.mode)
        assert row.rmse == pytest.approx((prediction.mean - y).square().mean().sqrt().item(), rel=1e-9)
        assert row.nll == pytest.approx(-prediction.log_density.mean().item(), rel=1e-9)
        assert row.accuracy is None and "accuracy" not in row.to_dict()
    assert found.reliability == {}
    text = str(found)
    assert "RMSE" in text and "accuracy" not in text and "mc:5" in text


def test_scores_do_not_depend_on_batches():
    model, guide, (x, y) = classifier()
    whole = compare(model, guide, (x, y), modes=["mean"])["mean"]
    dataset = TensorDataset(x, y)
    for data in ((x, y), dataset, DataLoader(dataset, batch_size=7, shuffle=True)):
        parts = compare(model, guide, data, modes="mean", batch_size=9)
        assert parts.num_examples == 40
        for name in SCHEMA - {"mode", "seconds"}:
            assert getattr(parts["mean"], name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_a_variance_network_needs_averaging_over_draws():
    """Two classes that differ in the size of the input; ReLU units of random sign, whose energy decides."""
    net = nn.Sequential(nn.Linear(1, 40, bias=False, **F64), Energy(), nn.Linear(1, 2, **F64))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net[2].bias.copy_(torch.tensor([1.0, -1.0]))
    prior = {"0.weight": ps.priors.LogUniform()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=200)
    x = torch.rand(200, 1, **F64) * 2
    found = compare(model, ps.guides.VarianceOnly(model), (x, (x[:, 0] > 1).long()), seed=0)
    assert abs(found["mean"].accuracy - 0.5) < 0.1
    assert found["mc:20"].accuracy > 0.95
    assert found["mc:20"].nll < found["mean"].nll


class Energy(nn.Module):
    def forward(self, h):
        return h.square().mean(-1, keepdim=True)


@pytest.mark.parametrize("make", [classifier, regression])
def test_each_number_of_samples_averages_the_first_draws(make):
    model, guide, data = make()
    found = accuracy_by_samples(model, guide, data, samples=(5, 1, 2), seed=7)
    assert [row.mode for row in found.rows] == ["mc:1", "mc:2", "mc:5"]
    whole = compare(model, guide, data, modes=("mc:5",), seed=7)
    for name, value in whole["mc:5"].to_dict().items():
        if name not in ("mode", "seconds"):
            assert found.rows[2].to_dict()[name] == pytest.approx(value, rel=1e-9), name
    # The same draws, one by one: the first k of them averaged by hand.
    sampler = PosteriorSampler(model, guide, "mc", 5)
    x, y = data
    with seeded(7, x.device), evaluating(model, guide):
        ((x, _),) = sampler.split_batch(x)
        densities = [
            row["density"] for chunk in sampler.draw_chunks(x) for row in chunk.run(x, DrawAverage(model, y).statistics)
        ]
    for row, k in zip(found.rows, (1, 2, 5), strict=True):
        nll = -(torch.stack(densities[:k]).double().logsumexp(0) - math.log(k)).mean()
        assert row.nll == pytest.approx(nll.item(), rel=1e-9)
    assert found.rows[0].seconds < found.rows[1].seconds < found.rows[2].seconds
    assert set(found.reliability) == ({"mc:1", "mc:2", "mc:5"} if whole.reliability else set())


def test_one_pass_draws_the_largest_number_of_samples_only(monkeypatch):
    model, guide, data = classifier()
    drawn = []
    statistics = DrawAverage.add
    monkeypatch.setattr(DrawAverage, "add", lambda self, found: drawn.append(len(self.y)) or statistics(self, found))
    accuracy_by_samples(model, guide, data, samples=(1, 4, 8), batch_size=20)
    assert drawn == [20] * 16


def test_a_seed_repeats_and_leaves_the_random_state():
    model, guide, data = classifier()
    state = torch.get_rng_state()
    for function, options in ((compare, {"modes": ("mc:2",)}), (accuracy_by_samples, {"samples": (2,)})):
        one, two = (function(model, guide, data, seed=1, **options)["mc:2"].nll for _ in range(2))
        assert one == two
    assert torch.equal(torch.get_rng_state(), state)
    assert compare(model, guide, data, modes=("mc:2",))["mc:2"].nll != one


def test_binary_labels_and_labels_at_many_positions():
    net = nn.Linear(2, 1, **F64)
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Bernoulli(), num_data=20)
    x = torch.randn(20, 2, **F64)
    y = (x[:, :1] > 0).double()
    row = compare(model, ps.guides.Additive(model), (x, y), modes=("mean",))["mean"]
    assert row.accuracy == ((net(x) > 0).double() == y).double().mean().item()
    likelihood = ps.likelihoods.FromOutput(lambda out: dist.Categorical(logits=out.reshape(-1, 2, 3)))
    many = ps.BayesianModel(nn.Linear(2, 6, **F64), prior=ps.priors.Normal(), likelihood=likelihood, num_data=20)
    labels = torch.randint(3, (20, 2))
    row = compare(many, ps.guides.Additive(many), (x, labels), modes=("mean",))["mean"]
    assert row.accuracy == (many.net(x).reshape(20, 2, 3).argmax(-1) == labels).double().mean().item()


def test_bad_input_is_refused():
    model, guide, (x, y) = classifier()
    with pytest.raises(ValueError, match="labels from 0 to 2 .* got 1 outside"):
        compare(model, guide, (x, torch.where(torch.arange(40) == 3, 9, y)))
    with pytest.raises(ValueError, match="each only once, got \\['mean', 'mean'\\]"):
        compare(model, guide, (x, y), modes=("mean", "mean"))
    with pytest.raises(ValueError, match="at least one"):
        compare(model, guide, (x, y), modes=())
    with pytest.raises(ValueError, match="mode: expected one of 'mean', 'mc'"):
        compare(model, guide, (x, y), modes=("median",))
    with pytest.raises(ValueError, match="empty data set"):
        compare(model, guide, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="2 NaN or infinite"):
        compare(model, guide, (torch.cat([x[:-1], x[-1:] * math.nan]), y))
    for samples in ((), (0,), (1, 2.0)):
        with pytest.raises(ValueError, match="samples: expected (a )?whole number"):
            accuracy_by_samples(model, guide, (x, y), samples=samples)


def test_the_result_is_printed_as_a_table_and_converted_to_plain_data():
    model, guide, data = classifier()
    found = compare(model, guide, data, modes=("mean", "mc:2"))
    assert isinstance(found, Comparison)
    plain = json.loads(json.dumps(found.to_dict()))
    assert all(SCHEMA <= set(row) for row in plain["rows"]) and plain["num_examples"] == 40
    assert set(plain["reliability"]["mc:2"]) == {"confidence", "accuracy", "count"}
    lines = str(found).splitlines()
    assert lines[0].startswith("40 examples") and "accuracy %" in lines[1] and len(lines) == 4
    with pytest.raises(KeyError, match="expected one of the modes 'mean', 'mc:2'"):
        found["mc:3"]

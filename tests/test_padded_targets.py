"""Padding, several labels at once, and exposures, against slow twins"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from heads import F64, QUIET, N, model_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import pyrostoch as ps
from pyrostoch.layers import WithExposure
from pyrostoch.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    NegativeBinomial,
    Poisson,
    ZeroInflatedPoisson,
    mark_padding,
)
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.training.trainer import NonFiniteLossError


def test_padding_is_marked_and_left_out() -> None:
    boxes, count = torch.rand(N, 4, 2), torch.randint(0, 5, (N,))
    marked = mark_padding(boxes, count)
    for row in range(N):
        assert bool(marked[row, : count[row]].isfinite().all())
        assert bool(marked[row, count[row] :].isnan().all())
    x = torch.randn(N, 3)
    net = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (4, 2)))
    model = ps.BayesianModel(net, likelihood=Gaussian(1.0, nan_is_missing=True), num_data=N)
    terms = ps.decompose(model, ps.guides.Additive(model), (x, marked))
    assert terms.num_observed == 2 * int(count.sum())
    logs = dist.Normal(net(x), 1.0).log_prob(boxes).sum(-1)
    inside = torch.arange(4) < count[:, None]
    assert terms.data == pytest.approx(logs[inside].sum().item(), rel=1e-4)
    labels = mark_padding(torch.zeros(N, 4, dtype=torch.int64), count, index=-100)
    assert int((labels == -100).sum()) == 4 * N - int(count.sum())
    for bad in ((boxes, count + 5, None), (boxes, count, -1), (labels, count, None), (boxes, count[:3], None)):
        with pytest.raises(ValueError, match="padding"):
            mark_padding(*bad)


def test_sequences_padded_by_batch_are_scored_as_single_ones() -> None:
    lengths = [2, 5, 3, 4, 1, 5]
    sequences = [(torch.randn(n, 3, dtype=F64), torch.randint(0, 2, (n,))) for n in lengths]

    def collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        inputs, labels = zip(*items, strict=True)
        return pad(inputs, batch_first=True), pad(labels, batch_first=True, padding_value=-100)

    model = model_of(Categorical(ignore_index=-100), nn.Linear(3, 2), num_data=6)
    guide = ps.guides.Additive(model)
    loader: Any = DataLoader(sequences, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    expected = sum(-F.cross_entropy(model.net(x), y, reduction="sum").item() for x, y in sequences)
    assert ps.decompose(model, guide, loader).data == pytest.approx(expected, rel=1e-6)
    scores = ps.compare(model, guide, loader, modes="mean")
    right = sum(int((model.net(x).argmax(1) == y).sum()) for x, y in sequences)
    assert scores["mean"].accuracy == pytest.approx(right / sum(lengths))
    assert math.isfinite(ps.fit(model, guide, loader, epochs=1, **QUIET).elbo)


def test_a_target_of_another_shape_is_still_refused_where_inputs_have_one_shape() -> None:
    items = [(torch.randn(4, 3), torch.randn(4, 1)), (torch.randn(4, 3), torch.randn(4, 2))]
    loader: Any = DataLoader(items, batch_size=None)  # type: ignore[arg-type]
    model = ps.BayesianModel(nn.Linear(3, 1), likelihood=Gaussian(), num_data=8)
    with pytest.raises(ValueError, match="every target of shape"):
        ps.fit(model, ps.guides.Additive(model), loader, epochs=1, **QUIET)


def test_several_labels_have_entropies_of_their_own() -> None:
    x = torch.randn(N, 3, dtype=F64)
    y = (torch.rand(N, 2) < 0.4).to(F64)
    model = model_of(Bernoulli(), nn.Linear(3, 2))
    average = DrawAverage(model, y)
    probs = []
    for _ in range(5):
        p = torch.rand(N, 2, dtype=F64)
        average.add(average.statistics(dist.Bernoulli(p).to_event(1)))
        probs.append(p)
    found, stacked = average.results(), torch.stack(probs)

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log() + (1 - p) * (1 - p).log())

    mean = stacked.mean(0)
    torch.testing.assert_close(found["total"], entropy(mean))
    torch.testing.assert_close(found["aleatoric"], entropy(stacked).mean(0))
    torch.testing.assert_close(found["epistemic"], entropy(mean) - entropy(stacked).mean(0))
    torch.testing.assert_close(found["mean"], mean)
    torch.testing.assert_close(found["variance"], mean * (1 - mean))
    products = torch.where(y[None] > 0, stacked, 1 - stacked).prod(-1).mean(0).log()
    torch.testing.assert_close(found["log_density"], products)
    guide = ps.guides.Additive(model)
    row = ps.compare(model, guide, (x, y), modes="mean")["mean"]
    assert row.accuracy == pytest.approx(((model.net(x) > 0) == (y > 0)).double().mean().item())
    nll = F.binary_cross_entropy_with_logits(model.net(x), y, reduction="none").sum(1).mean().item()
    assert row.nll == pytest.approx(nll, rel=1e-6)
    assert ps.predict(model, guide, x, mode="mean").probs.shape == (N, 2, 2)
    random = model_of(Bernoulli(), nn.Linear(3, 2), prior=ps.priors.Normal())
    of_moments = ps.predict(random, ps.guides.Additive(random, init_scale=0.3), x, mode="moments")
    assert of_moments.mean is not None
    torch.testing.assert_close(of_moments.mean, of_moments.probs[..., 1])


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(3.0), ZeroInflatedPoisson()])
def test_an_exposure_multiplies_the_mean(likelihood: Any) -> None:
    x, exposure = torch.randn(N, 3, dtype=F64), 0.5 + torch.rand(N, dtype=F64)
    inflated = isinstance(likelihood, ZeroInflatedPoisson)
    net = WithExposure(nn.Linear(3, 2), outputs=1 if inflated else None)
    width = 1 if inflated else 2
    y = torch.poisson(2 * exposure[:, None].expand(N, width))
    model = model_of(likelihood, net)
    guide = ps.guides.Additive(model)
    rate, rest = net.net(x).split([width, 2 - width], 1)
    by_hand = likelihood(torch.cat([(rate.exp() * exposure[:, None]).log(), rest], 1)).log_prob(y).sum().item()
    assert ps.decompose(model, guide, ((x, exposure), y)).data == pytest.approx(by_hand, rel=1e-6)
    ps.fit(model, guide, ((x, exposure), y), epochs=1, **QUIET)
    with pytest.raises(ValueError, match="WithExposure"):
        net(x, exposure[:, None].expand(N, 3))
    with pytest.raises(NonFiniteLossError):
        ps.fit(model, guide, ((x, -exposure), y), epochs=1, **QUIET)


def test_the_error_of_an_accuracy_over_labels_is_that_over_examples() -> None:
    """Copies of a label tell nothing new."""
    x = torch.randn(N, 3, dtype=F64)
    y = (torch.rand(N, 1) < 0.5).to(F64)
    one = model_of(Bernoulli(), nn.Linear(3, 1))
    single = ps.compare(one, ps.guides.Additive(one), (x, y), modes="mean")["mean"]
    copies = nn.Sequential(one.net, Repeat(20))
    many = model_of(Bernoulli(), copies)
    found = ps.compare(many, ps.guides.Additive(many), (x, y.expand(N, 20)), modes="mean")["mean"]
    assert found.accuracy == single.accuracy
    assert found.accuracy_stderr == pytest.approx(single.accuracy_stderr, rel=0.05)


class Repeat(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(len(x), self.times)


def test_marks_that_would_be_no_marks_are_refused() -> None:
    labels, lengths = torch.randint(0, 3, (4, 5)), torch.tensor([5, 3, 2, 1])
    with pytest.raises(ValueError, match="does not fit into torch.uint8"):
        mark_padding(labels.to(torch.uint8), lengths, index=-100)
    with pytest.raises(ValueError, match="is a label of some entries"):
        mark_padding(torch.zeros(4, 5, dtype=torch.int64), lengths, index=0)
    with pytest.raises(ValueError, match="a whole number for each example"):
        mark_padding(labels, lengths > 1, index=-1)

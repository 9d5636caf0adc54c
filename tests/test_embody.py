"""Stochastic layers around a network: each embodiment against the same written by hand, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation
from pyrostoch.layers import StochasticAdditive, StochasticConv2d, StochasticLinear, embody


class Residual(nn.Module):
    """A forward pass of its own, with a named child whose output a tuple holds."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.pair = Pair()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        hidden, other = self.pair(self.first(x))
        return self.second(hidden + other) * scale


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.tanh(), x


def merged(name: str, main: Tensor, other: Tensor, projection: Any) -> Tensor:
    if name == "concatenate":
        return projection(torch.cat([main, other], -1))
    return main + other if name == "add" else main * other


@pytest.mark.parametrize("merge", ["add", "multiply", "concatenate"])
@pytest.mark.parametrize("first", [False, True])
def test_a_split_network_is_the_one_written_by_hand(merge: Any, first: bool) -> None:
    net, layers, x = Residual(), nn.Linear(3, 4), torch.randn(5, 3)
    stochastic = StochasticLinear(4, 4)
    make = embody.sample_then_merge if first else embody.merge_then_sample
    whole = make(net, "pair", stochastic, layers, merge=merge, example=x)
    torch.manual_seed(1)
    found = whole(x, scale=2.0)
    torch.manual_seed(1)
    hidden, other = net.pair(net.first(x))
    branch = layers(x)
    if first:
        hidden = merged(merge, hidden, stochastic(branch), whole.projection)
    else:
        hidden = stochastic(merged(merge, hidden, branch, whole.projection))
    assert torch.allclose(found, net.second(hidden + other) * 2.0, atol=1e-6)
    # Called alone, the network is what it was.
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.allclose(net(x), net.second(sum(net.pair(net.first(x)))))


def test_inserted_behind_a_module() -> None:
    net, x = Residual(), torch.randn(5, 3)
    stochastic = StochasticLinear(4, 4)
    whole = copy.deepcopy(pickle.loads(pickle.dumps(embody.insert(net, "pair", stochastic, example=x))))
    torch.manual_seed(1)
    found = whole(x)
    torch.manual_seed(1)
    hidden, other = net.pair(net.first(x))
    assert torch.allclose(found, net.second(stochastic(hidden) + other), atol=1e-6)
    with pytest.raises(ValueError, match="with StochasticLinear at 'pair', Residual does not run on the example"):
        embody.insert(net, "pair", StochasticLinear(8, 4), example=x)


def test_images_are_concatenated_along_their_channels() -> None:
    net, x = (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)),
        torch.randn(5, 1, 4, 4),
    )
    whole = embody.merge_then_sample(net, "1", StochasticConv2d(3, 3, 1), merge="concatenate", example=x)
    assert whole.projection.in_features == 4 and whole(x).shape == (5, 2)
    with MeanPropagation():
        joined = torch.cat([net[:2](x), x], 1)
        mapped = torch.einsum("bchw,oc->bohw", joined, whole.projection.weight) + whole.projection.bias[:, None, None]
        assert torch.allclose(whole(x), net[2:](whole.stochastic(mapped)), atol=1e-5)


def test_in_front_of_a_network() -> None:
    net, x = nn.Linear(3, 2), torch.randn(5, 3)
    whole = embody.prepend(net, StochasticAdditive(3))
    with MeanPropagation():
        assert torch.allclose(whole(x), net(x), atol=1e-6)
    assert list(dict(whole.named_children())) == ["stochastic", "network"]
    assert not torch.equal(whole(x), whole(x))


def test_the_stochastic_layer_of_a_frozen_network_is_trained_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    x, y = torch.randn(60, 3), torch.randint(2, (60,))
    whole = embody.merge_then_sample(net, "2", StochasticLinear(8, 8), nn.Linear(3, 8), example=x)
    before = copy.deepcopy(net.state_dict())
    model = ps.BayesianModel(whole, likelihood=ps.likelihoods.Categorical(), num_data=60)
    guide = ps.guides.Additive(model)
    start = whole.stochastic.kernel.weight.detach().clone()
    ps.fit(model, guide, (x, y), epochs=3, batch_size=20, seed=0, progress=False, compile=False)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.equal(whole.stochastic.kernel.weight, start)
    assert ps.compare(model, guide, (x, y), modes=("mean", "mc:5", "noise-free"), seed=0).rows


def test_copies_are_independent() -> None:
    whole = embody.merge_then_sample(
        Residual(), "pair", StochasticLinear(4, 4), nn.Linear(3, 4), example=torch.zeros(2, 3)
    )
    x = torch.randn(5, 3)
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        torch.manual_seed(0)
        expected = whole(x)
        torch.manual_seed(0)
        assert torch.equal(twin(x), expected)
        assert twin.stochastic.kernel.weight.data_ptr() != whole.stochastic.kernel.weight.data_ptr()


def test_construction_changes_no_state() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    stochastic, x = StochasticAdditive(4), torch.randn(5, 3)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    embody.merge_then_sample(net, "1", stochastic, merge=lambda main, other: main, example=x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()) and net.training
    assert net[1].training and torch.equal(torch.get_rng_state(), random)


class Twice(nn.Module):
    def __init__(self, times: int):
        super().__init__()
        self.layer, self.times = nn.Linear(3, 3), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return x


@pytest.mark.parametrize(
    ("net", "at", "settings", "message"),
    [
        (Residual(), "third", {}, r"Residual has no module 'third'; it has 'first'"),
        (Twice(2), "layer", {}, "calls its module 'layer' 2 times in a pass"),
        (Twice(0), "layer", {}, "calls its module 'layer' 0 times in a pass"),
        (Twice(0), "layer", {"merge": "concatenate"}, "never calls its module 'layer'"),
        (Residual(), "first", {}, r"equal shapes, got \(5, 4\) from the network and \(5, 3\) from the other layers"),
        (Residual(), "first", {"merge": "average"}, "merge.*'add'.*'average'"),
    ],
)
def test_bad_splits_are_refused(net: nn.Module, at: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embody.merge_then_sample(net, at, StochasticAdditive(3), example=torch.zeros(5, 3), **settings)


def test_three_axes_need_the_axis_of_their_channels() -> None:
    net, x = nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU()), torch.randn(5, 2, 7)
    with pytest.raises(ValueError, match="expects channels=.*with 3 axes"):
        embody.merge_then_sample(net, "0", StochasticAdditive((2, 7)), merge="concatenate", example=x)
    whole = embody.merge_then_sample(net, "0", StochasticAdditive((2, 7)), merge="concatenate", channels=1, example=x)
    assert whole.projection.in_features == 4 and whole(x).shape == (5, 2, 7)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.mul_(0.0)))


def test_the_other_branch_sees_the_input_before_the_network_writes_into_it() -> None:
    net, x = InPlace(), torch.randn(5, 3)
    whole = embody.merge_then_sample(net, "first", StochasticAdditive(3), example=torch.randn(5, 3))
    with MeanPropagation():
        assert torch.allclose(whole(x.clone()), net.second(net.first.bias + x), atol=1e-6)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.first, self.second, self.reentrant = nn.Linear(3, 3), nn.Linear(3, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_the_split_module_is_refused(reentrant: bool) -> None:
    with pytest.raises(ValueError, match="runs its module 'first' under torch.utils.checkpoint"):
        embody.merge_then_sample(
            Checkpointed(reentrant), "first", StochasticAdditive(3), example=torch.zeros(5, 3, requires_grad=True)
        )


def test_weights_of_a_split_network_can_be_random() -> None:
    x, y = torch.randn(40, 3), torch.randint(2, (40,))
    whole = embody.merge_then_sample(Residual(), "pair", StochasticLinear(4, 4), nn.Linear(3, 4), example=x)
    model = ps.BayesianModel(
        whole, prior={"network.*.weight": ps.priors.Normal()}, likelihood=ps.likelihoods.Categorical(), num_data=40
    )
    guide = ps.guides.Additive(model)
    for estimator in ("local", "shared"):
        loss = ps.ELBO(estimator)(model, guide)(x, y)
        loss.backward()
        assert torch.isfinite(loss) and whole.stochastic.kernel.weight.grad.abs().sum() > 0


def test_an_encoder_of_transformers_is_split_and_stays_fixed() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    bert = transformers.BertForSequenceClassification(config).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    ids, labels = torch.randint(0, 50, (12, 7)), torch.arange(12) % 3
    layer = ps.layers.StochasticLinear(16, 16, prior="learned")
    net = embody.merge_then_sample(bert, "bert.encoder.layer.0", layer, nn.Embedding(50, 16), example=ids)
    mask = torch.ones_like(ids)
    assert net(ids, attention_mask=mask).logits.shape == (12, 3)
    model = ps.BayesianModel(net, likelihood=lambda out: dist.Categorical(logits=out.logits), num_data=12)
    guide = ps.guides.Amortised(model)
    ps.fit(model, guide, (ids, labels), epochs=3, batch_size=6, progress=False, compile=False, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in bert.state_dict().items())
    parts = ps.decompose(model, guide, (ids, labels))
    assert [row.layer for row in parts.rates] == ["stochastic"] and parts.information_bound is not None
    with pytest.raises(ValueError, match="no module 'bert.encoder.layer.7'"):
        embody.merge_then_sample(bert, "bert.encoder.layer.7", layer, nn.Embedding(50, 16), example=ids)

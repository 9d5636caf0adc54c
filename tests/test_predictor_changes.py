"""What a predictor's graphs must not miss: training, changed modules, code that no graph can contain."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger
from test_predictor import assert_same, convolutions, made, mlp
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import guides, likelihoods, priors
from pyrostoch.prediction import Predictor, predict


@pytest.mark.parametrize("mode", ["mean", "moments", "mc:4"])
def test_training_and_loading_are_noticed(mode: str) -> None:
    torch.manual_seed(2)
    model, guide = made(convolutions())
    x = torch.randn(6, 4)
    predictor = Predictor(model, guide, mode=mode, seed=0, example=x)
    before = predictor(x)
    y = torch.randint(0, 3, (50,))
    ps.fit(model, guide, (torch.randn(50, 4), y), epochs=2, lr=0.05, progress=False)
    after = predictor(x)
    assert_same(after, predict(model, guide, x, mode=mode, seed=0))
    assert (after.probs - before.probs).abs().max() > 1e-3
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(0.5)
    assert_same(predictor(x), predict(model, guide, x, mode=mode, seed=0))
    guide.load_state_dict(state)
    assert_same(predictor(x), after)
    model.net[2].running_mean += 1.0
    assert_same(predictor(x), predict(model, guide, x, mode=mode, seed=0))
    assert (predictor(x).probs - after.probs).abs().max() > 1e-3
    assert predictor.reason is None


class Scaled(nn.Linear):
    scale = 1.0

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


def test_attributes_and_parts_that_change_are_noticed() -> None:
    torch.manual_seed(3)
    model, guide = made(nn.Sequential(Scaled(), nn.Tanh()))
    x = torch.randn(6, 4)
    predictor = Predictor(model, guide, mode="mean", example=x)
    predictor(x)
    model.net[0].factor = 5.0
    assert_same(predictor(x), predict(model, guide, x, mode="mean"))
    for _ in range(2):
        predictor(x)
    model.net[1] = nn.Sigmoid()
    assert_same(predictor(x), predict(model, guide, x, mode="mean"))
    for factor in range(6):
        model.net[0].factor = float(factor)
        for _ in range(3):
            assert_same(predictor(x), predict(model, guide, x, mode="mean"))
    assert "keeps changing" in str(predictor.reason)


class Odd(nn.Linear):
    """A network whose code asks for something that a graph does not have."""

    def __init__(self, way: str) -> None:
        super().__init__(4, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        if self.way == "many" and len(x) > 20:
            return found * 3.0
        if self.way == "one" and len(x) == 1:
            return found * 3.0
        if self.way == "value" and float(x.detach().sum()) > 0:
            return found * 3.0
        if self.way == "numpy":
            return found * float(x.detach().numpy().mean())
        if self.way == "share":
            return found / len(x) ** 0.5
        return found


@pytest.mark.parametrize("way", ["many", "one", "value", "numpy", "share"])
def test_code_that_no_graph_has_runs_itself(way: str) -> None:
    torch.manual_seed(4)
    model, guide = made(Odd(way))
    predictor = Predictor(model, guide, mode="mean", example=torch.randn(6, 4))
    for count in (6, 6, 30, 30, 25, 1, 1, 1, 19, 100):
        x = torch.randn(count, 4)
        assert_same(predictor(x), predict(model, guide, x, mode="mean"))
    if way != "one":
        assert predictor.reason is not None


class Counter(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_module_that_counts_has_no_graph() -> None:
    model, guide = made(Counter())
    predictor = Predictor(model, guide, mode="mean", example=torch.randn(6, 4))
    before = model.net.calls
    predictor(torch.randn(6, 4))
    assert "'calls'" in str(predictor.reason)
    assert model.net.calls > before


def test_invalid_arguments_of_a_distribution_are_named() -> None:
    torch.manual_seed(10)
    model = ps.BayesianModel(
        nn.Linear(2, 1), prior=priors.Normal(),
        likelihood=lambda output: dist.Normal(0.0, output).to_event(1), num_data=5,
    )  # fmt: skip
    guide = guides.Additive(model, init_scale=1e-4)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if "loc" in name:
                parameter.fill_(1.0)
    model.net.bias.data.fill_(0.1)
    good = torch.rand(6, 2)
    for mode in ("mean", "mc:3"):
        predictor = Predictor(model, guide, mode=mode, example=good)
        assert predictor(good).variance is not None
        with pytest.raises(ValueError, match="scale"):
            predictor(good - 5.0)
    assert predictor.reason is None


def test_around_a_call() -> None:
    """A handler of Pyro around the call, which the code would see, is not passed by."""
    torch.manual_seed(12)
    model, guide = made(mlp(), likelihoods.Gaussian(dist.LogNormal(0.0, 1.0)))
    x = torch.randn(6, 4)
    predictor = Predictor(model, guide, mode="mean", example=x)
    seen = []

    class Note(Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            seen.append(msg["name"])

    predictor(x)
    with Note():
        predictor(x)
    assert "0.weight" in seen


def test_inputs_of_many_lengths_and_of_other_kinds() -> None:
    torch.manual_seed(14)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, options: Any = None) -> Tensor:
            dense = x.to_dense() if x.layout is not torch.strided else x
            return self.layer(dense).mean(1) if dense.dim() == 3 else self.layer(dense)

    model, guide = made(Pooled())
    predictor = Predictor(model, guide, mode="mean")
    for length in range(2, 40):
        x = torch.randn(3, length, 3)
        assert_same(predictor(x), predict(model, guide, x, mode="mean"))
    assert len(predictor._kinds) == 32 and "keep changing" in str(predictor.reason)

    sparse = torch.eye(5, 3).to_sparse_coo()
    other = Predictor(model, guide, mode="mean")
    for _ in range(3):
        assert_same(other(sparse), predict(model, guide, sparse, mode="mean"))
    listed = ps.BayesianModel(
        Pooled(), prior=priors.Normal(), likelihood=likelihoods.Categorical(), num_data=9, in_dims=(0, None)
    )
    own = guides.Additive(listed)
    third = Predictor(listed, own, mode="mean")
    for _ in range(3):
        inputs = torch.randn(5, 3), {"unhashable": [1]}
        assert_same(third(inputs), predict(listed, own, inputs, mode="mean"))


def test_a_graph_that_fails_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(15)
    model, guide = made(mlp())
    x = torch.randn(6, 4)
    predictor = Predictor(model, guide, mode="mean", example=x)

    def fail(*args: Any) -> None:
        raise RuntimeError("shape '[3]' is invalid")

    (kind,) = predictor._kinds.values()
    (graph,) = kind._graphs.values()
    monkeypatch.setattr(graph._graph.live, "forward", fail)
    more = torch.randn(50, 4)
    assert_same(predictor(more), predict(model, guide, more, mode="mean"))
    assert "other numbers of examples" in str(predictor.reason)


class Hidden(nn.Linear):
    """A network on which `torch.vmap` fails once it has more than three examples."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found + float(found.detach().sum()) * 0.0 if len(x) > 3 else found


def test_draws_that_turn_out_not_to_run_together_are_the_same_each_time() -> None:
    torch.manual_seed(16)
    model = ps.BayesianModel(Hidden(4, 3), prior=priors.Normal(), likelihood=likelihoods.Categorical(), num_data=9)
    guide, x = guides.LowRank(model, rank=1, init_scale=0.5), torch.randn(8, 4)
    first = predict(model, guide, x, mode="mc:30", seed=0)
    assert_same(predict(model, guide, x, mode="mc:30", seed=0), first)
    predictor = Predictor(model, guide, mode="mc:30", seed=0)
    for _ in range(4):
        assert_same(predictor(x), first)

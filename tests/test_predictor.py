"""A predictor: the numbers of predict, by graphs that are dropped where they would be wrong."""

from __future__ import annotations

import threading
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import guides, likelihoods, priors
from pyrostoch.prediction import Predictor, predict
from pyrostoch.staging import missing

FIELDS = ("log_probs", "mean", "variance", "total", "aleatoric", "epistemic")


def mlp(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 6, 2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"kind": self.kind(hidden), "size": self.size(hidden)}


def made(net: nn.Module, likelihood: Any = None, prior: Any = None) -> tuple[Any, Any]:
    likelihood = likelihoods.Categorical() if likelihood is None else likelihood
    model = ps.BayesianModel(net, prior=prior or priors.Normal(), likelihood=likelihood, num_data=50)
    return model, guides.Additive(model, init_scale=0.3)


def assert_same(one: Any, other: Any, tolerance: float = 1e-6) -> None:
    for name in FIELDS:
        found, expected = getattr(one, name), getattr(other, name)
        assert (found is None) == (expected is None), name
        if found is not None:
            assert found.dtype == torch.float64
            torch.testing.assert_close(found.clone(), expected, rtol=tolerance, atol=tolerance, msg=name)
    assert one.mode == other.mode and one.num_samples == other.num_samples
    assert one.treatments == other.treatments


def forbid_code(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """From now on, the network's own code must not run."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network's code runs")

    monkeypatch.setattr(type(model.net), "forward", refuse)


@pytest.mark.parametrize("mode", ["mean", "noise-free", "mc:1", "mc:7", "mc:20", "moments", "moments:closed"])
@pytest.mark.parametrize("net", [mlp, convolutions])
def test_numbers_are_those_of_predict(net: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, guide = made(net())
    predictor = Predictor(model, guide, mode=mode, seed=3, example=torch.randn(6, 4))
    inputs = [torch.randn(count, 4) for count in (5, 30, 6, 100)]
    expected = [predict(model, guide, x, mode=mode, seed=3) for x in inputs]
    for x, found in zip(inputs, expected, strict=True):  # the first with each number of examples is compared
        assert_same(predictor(x), found)
    assert predictor.reason is None
    forbid_code(monkeypatch, model)
    for x, found in zip(inputs, expected, strict=True):
        assert_same(predictor(x), found)


LIKELIHOODS = {
    "gaussian": (likelihoods.Gaussian(0.3), 2),
    "learned-noise": (likelihoods.Gaussian(), 2),
    "random-noise": (likelihoods.Gaussian(dist.LogNormal(0.0, 1.0)), 2),
    "heteroscedastic": (likelihoods.HeteroscedasticGaussian(), 4),
    "bernoulli": (likelihoods.Bernoulli(), 1),
    "several labels": (likelihoods.Bernoulli(), 3),
    "poisson": (lambda output: dist.Poisson(output.exp()).to_event(1), 2),
    "heads": (likelihoods.Joint({"kind": likelihoods.Categorical(), "size": likelihoods.Gaussian(0.1)}), 0),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("mode", ["mean", "mc:5", "moments"])
def test_likelihoods(name: str, mode: str) -> None:
    torch.manual_seed(1)
    likelihood, outputs = LIKELIHOODS[name]
    model, guide = made(mlp(outputs) if outputs else Heads(), likelihood)
    predictor = Predictor(model, guide, mode=mode, seed=0, example=torch.randn(6, 4))
    for count in (4, 30, 1, 1, 1):
        x = torch.randn(count, 4)
        found, expected = predictor(x), predict(model, guide, x, mode=mode, seed=0)
        if expected.heads is None:
            assert_same(found, expected)
        else:
            for head in expected.heads:
                assert_same(found.heads[head], expected.heads[head])
    assert predictor.reason is None


def test_random_activations_and_dropout_are_drawn_anew() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), ps.layers.MCDropout(0.5), nn.Linear(8, 3))
    model, guide = made(net)
    x = torch.randn(6, 4)
    for draws in ("fresh", "fixed"):
        predictor = Predictor(model, guide, mode="mc:5", example=x, draws=draws)
        assert predictor.reason is None
        assert (predictor(x).probs - predictor(x).probs).abs().max() > 1e-4, draws
    same = Predictor(model, guide, mode="mc:5", seed=1)
    found = [same(x) for _ in range(4)]
    for one in found:
        assert_same(one, predict(model, guide, x, mode="mc:5", seed=1))


@pytest.mark.parametrize("net", [mlp, convolutions])
@pytest.mark.parametrize("count", [4, 12])
def test_fixed_draws(net: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    model, guide = made(net())
    x = torch.randn(30, 4)
    predictor = Predictor(model, guide, mode=f"mc:{count}", draws="fixed", seed=9)
    expected = predict(model, guide, x, mode=f"mc:{count}", joint=True, seed=9)
    for _ in range(3):
        assert_same(predictor(x), expected)
    assert predictor.reason is None
    parts = torch.cat([predictor(x[rows]).probs for rows in (slice(0, 7), slice(7, 30))])
    torch.testing.assert_close(parts, expected.probs, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3)
    for _ in range(2):
        assert_same(predictor(x), predict(model, guide, x, mode=f"mc:{count}", joint=True, seed=9))
    forbid_code(monkeypatch, model)
    predictor(x)


def test_fixed_draws_of_members_and_points() -> None:
    torch.manual_seed(7)
    model, _ = made(mlp())
    nets = [mlp() for _ in range(4)]
    ensemble = guides.Ensemble([guides.Delta(made(net)[0]) for net in nets])
    x = torch.randn(9, 4)
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    fresh = Predictor(model, ensemble, mode="mc:4", seed=0, example=x)
    fixed = Predictor(model, ensemble, mode="mc:4", draws="fixed", seed=0, example=x)
    assert "member" in str(fresh.reason)
    assert fixed.reason is None
    assert_same(fresh(x), predict(model, ensemble, x, mode="mc:4", seed=0))
    torch.testing.assert_close(fixed(x).probs, fresh(x).probs)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.mul_(2.0)
    fixed(x)
    for name, value in ensemble.state_dict().items():  # drawing again writes into no parameter
        torch.testing.assert_close(value, before[name] * 2.0)


def test_several_threads() -> None:
    torch.manual_seed(8)
    model, guide = made(convolutions())
    inputs = [torch.randn(count, 4) for count in (6, 9, 30, 2)]
    for mode in ("moments", "mc:5"):
        predictor = Predictor(model, guide, mode=mode, seed=0)
        expected = [predict(model, guide, x, mode=mode, seed=0) for x in inputs]
        errors: list[BaseException] = []

        def work(predictor: Predictor = predictor, expected: Any = expected, errors: Any = errors) -> None:
            try:
                for _ in range(5):
                    for x, found in zip(inputs, expected, strict=True):
                        assert_same(predictor(x), found)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]
        assert predictor.reason is None


def test_targets_and_refusals() -> None:
    torch.manual_seed(9)
    model, guide = made(mlp())
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    predictor = Predictor(model, guide, mode="mc:3", seed=0, example=x)
    found, expected = predictor(x, y=y), predict(model, guide, x, y=y, mode="mc:3", seed=0)
    torch.testing.assert_close(found.log_density, expected.log_density)
    with pytest.raises(ValueError, match="finite"):
        predictor(torch.full((8, 4), torch.nan))
    with pytest.raises(ValueError, match="at least one"):
        predictor(x[:0])
    with pytest.raises(ValueError, match="draws='fixed'"):
        Predictor(model, guide, mode="mean", draws="fixed")
    with pytest.raises(ValueError, match="draws"):
        Predictor(model, guide, draws="often")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode"):
        Predictor(model, guide, mode="average")


def test_half_precision_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(torch.cat([a, b], 1))

    torch.manual_seed(11)
    model, guide = made(Two())
    predictor = Predictor(model, guide, mode="mc:3", seed=0)
    for count in (4, 4, 4, 12, 12, 1, 1, 1):
        x = torch.randn(count, 2), torch.randn(count, 3)
        assert_same(predictor(x), predict(model, guide, x, mode="mc:3", seed=0))
    assert predictor.reason is None
    model.double(), guide.double()
    x = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    for _ in range(3):
        assert_same(predictor(x), predict(model, guide, x, mode="mc:3", seed=0), 1e-12)


@pytest.mark.skipif(missing(torch.device("cpu")) is not None, reason="no compiler")
@pytest.mark.parametrize("mode", ["moments", "mc:4"])
def test_compiled(mode: str) -> None:
    torch.manual_seed(13)
    model, guide = made(mlp())
    predictor = Predictor(model, guide, mode=mode, seed=0, compile=True, example=torch.randn(6, 4))
    for count in (6, 5, 7, 6):
        x = torch.randn(count, 4)
        if mode == "mc:4" and count != 6:
            continue
        assert_same(predictor(x), predict(model, guide, x, mode=mode, seed=0), 1e-4)
    (kind,) = predictor._kinds.values()
    (graph,) = kind._graphs.values()
    assert list(graph._compiled) == ([8] if mode == "moments" else [6])

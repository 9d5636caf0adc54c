"""Faults that a hostile review found in inputs, likelihoods, draws and estimators: each stays mended or refused."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.likelihoods import (
    Categorical,
    Gaussian,
    LogNormalTime,
    NegativeBinomial,
    Ordinal,
    StudentT,
    WeibullTime,
    ZeroInflatedPoisson,
)
from pyrostoch.training.checkpoint import CheckpointError

F64 = torch.float64
N = 30
QUIET: dict[str, Any] = {"epochs": 2, "lr": 1e-2, "seed": 0, "progress": False, "compile": False, "batch_size": 10}
X = torch.randn(N, 3)


def build(net: nn.Module, likelihood: Any, **options: Any) -> tuple[ps.BayesianModel, ps.guides.Additive]:
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=N, **options)
    return model, ps.guides.Additive(model)


def test_intervals_far_in_a_tail_keep_density_and_gradient() -> None:
    stats = pytest.importorskip("scipy.stats")
    cases: list[tuple[Any, Any, float, float]] = [
        (LogNormalTime(0.1, censoring="interval"), stats.norm, 0.0, 0.2),
        (LogNormalTime(0.5, censoring="interval"), stats.norm, 1e-3, 2e-3),
        (LogNormalTime(0.5, censoring="interval"), stats.norm, 40.0, 41.0),
    ]
    for likelihood, normal, low, high in cases:
        f = torch.zeros(1, 1, dtype=F64, requires_grad=True)
        found = likelihood(f).log_prob(torch.tensor([[low, high]], dtype=F64))
        z = [math.log(t) / likelihood.scale.value if t > 0 else -math.inf for t in (low, high)]
        one, two = (normal.logcdf(z[1]), normal.logcdf(z[0])) if z[1] < 0 else (normal.logsf(z[0]), normal.logsf(z[1]))
        expected = one + math.log1p(-math.exp(two - one))
        assert found.item() == pytest.approx(expected, rel=1e-9)
        (gradient,) = torch.autograd.grad(found.sum(), f)
        assert math.isfinite(gradient.item()) and abs(gradient.item()) > 1.0
    for k, low, high in ((5.0, 0.0, 1e-3), (2.0, 1e-7, 2e-7)):
        f = torch.zeros(1, 1, dtype=F64, requires_grad=True)
        found = WeibullTime(k, censoring="interval")(f).log_prob(torch.tensor([[low, high]], dtype=F64))
        assert found.item() == pytest.approx(math.log(high**k - low**k), rel=1e-6)
        assert torch.autograd.grad(found.sum(), f)[0].item() == pytest.approx(-k, rel=1e-5)


def test_times_of_little_spread_have_a_variance() -> None:
    stats = pytest.importorskip("scipy.stats")
    for k in (1.3, 50.0, 1000.0):
        assert WeibullTime(k)(torch.zeros(1, 1)).variance.item() == pytest.approx(stats.weibull_min(k).var(), rel=1e-3)


def test_a_scale_that_the_guide_lacks_is_named_by_draws() -> None:
    model, _ = build(nn.Linear(3, 1), Gaussian(dist.HalfNormal(1.0)))
    _, other = build(nn.Linear(3, 1), Gaussian(1.0))
    with pytest.raises(ValueError, match=r"no draw for the model's site\(s\) 'likelihood.scale'"):
        ps.draws(model, other, X, 3)


def test_targets_of_items_never_reach_the_network() -> None:
    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, a: Tensor, labels: Tensor | None = None) -> Tensor:
            out: Tensor = self.layer(a)
            return out if labels is None else out + 10.0 * F.one_hot(labels, 3)

    y = torch.randint(0, 3, (N,))
    model, guide = build(Leaks(), Categorical(), target="labels")
    item = {"a": X, "labels": y}
    without = ps.predict(model, guide, {"a": X}, mode="mean").probs
    assert torch.equal(ps.predict(model, guide, item, mode="mean").probs, without)
    assert torch.equal(ps.draws(model, guide, item, 2, seed=0).probs, ps.draws(model, guide, {"a": X}, 2, seed=0).probs)
    assert not model.examples_meet(item)
    with pyro.poutine.trace() as trace:
        model(item)
    assert trace.trace.nodes["obs"]["fn"].batch_shape == (N,)


def test_other_class_weights_are_another_likelihood(tmp_path: Path) -> None:
    y = torch.randint(0, 3, (N,))

    def made(weights: list[float] | None) -> tuple[ps.BayesianModel, Any]:
        return build(nn.Linear(3, 3), Categorical(class_weights=None if weights is None else torch.tensor(weights)))

    model, guide = made([1.0, 2.0, 3.0])
    ps.save(tmp_path / "a", model, guide)
    ps.load(tmp_path / "a", *made([1.0, 2.0, 3.0]))
    for other in ([9.0, 9.0, 9.0], None):
        with pytest.raises(
            CheckpointError, match=r"expected the likelihood Categorical.*class_weights=\[1.0, 2.0, 3.0\]"
        ):
            ps.load(tmp_path / "a", *made(other))
    path = tmp_path / "run.safetensors"
    ps.fit(model, guide, (X, y), checkpoint=path, **QUIET)
    with pytest.raises(CheckpointError, match="class_weights"):
        ps.fit(*made([1.0, 2.0, 4.0]), (X, y), checkpoint=path, resume=True, **QUIET)


def test_fields_that_init_does_not_take_are_kept() -> None:
    @dataclasses.dataclass
    class Scaled:
        a: Tensor
        scale: float = dataclasses.field(init=False, default=1.0)
        made: int = dataclasses.field(init=False, default=0)

        def __post_init__(self) -> None:
            self.made += 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, batch: Scaled) -> Tensor:
            assert batch.made == 1
            out: Tensor = self.layer(batch.a) * batch.scale
            return out

    batch = Scaled(X)
    batch.scale = 100.0
    model, guide = build(Net(), Categorical())
    found = ps.predict(model, guide, batch, mode="mean").probs  # type: ignore[arg-type]
    assert torch.allclose(found.float(), model.net(batch).softmax(-1), atol=1e-5)


@pytest.mark.parametrize("make", [Gaussian, StudentT, NegativeBinomial])
def test_scales_for_outputs_that_are_not_there_are_refused(make: Any) -> None:
    scales = torch.tensor([0.1, 1.0, 10.0])
    likelihood = make(scale=scales) if make is StudentT else make(scales)
    for shape in ((N, 1), (3,), (N, 2)):
        with pytest.raises(ValueError, match=r"network output of shape \(batch, 3\), as there are 3 scales"):
            likelihood(torch.zeros(shape))


def test_a_large_concentration_is_poissons_limit() -> None:
    output, y = torch.full((1, 1), 5.0).log(), torch.tensor([[3.0]])
    poisson = dist.Poisson(5.0).log_prob(torch.tensor(3.0)).item()
    for r in (1e4, 1e6, 1e8):
        assert NegativeBinomial(r)(output).log_prob(y).item() == pytest.approx(poisson, abs=2e-3)
    exact = dist.NegativeBinomial(2.5, logits=output - math.log(2.5)).log_prob(y).item()
    assert NegativeBinomial(2.5)(output).log_prob(y).item() == pytest.approx(exact, abs=1e-5)
    zeros = ZeroInflatedPoisson()(torch.tensor([[14.0, -30.0]]))
    assert zeros.variance.item() == pytest.approx(math.exp(14.0), rel=1e-2)


def test_items_with_other_keys_are_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            out: Tensor = self.layer(a if b is None else a + b)
            return out

    y = torch.arange(N) % 3
    items: list[dict[str, Any]] = [{"a": X[i], "labels": y[i], **({"b": X[i]} if i else {})} for i in range(N)]
    model, guide = build(Two(), Categorical(), target="labels")
    with pytest.raises(ValueError, match="item 0 has 'a', 'labels', item 1 has 'a', 'labels', 'b'"):
        ps.compare(model, guide, items, modes=("mean",))  # type: ignore[arg-type]
    nothing = [{"a": X[i], "b": None, "labels": y[i]} for i in range(N)]
    plain = ps.compare(model, guide, (X, y), modes=("mean",))["mean"].nll
    assert ps.compare(model, guide, nothing, modes=("mean",))["mean"].nll == pytest.approx(plain)  # type: ignore[arg-type]


def test_noise_of_each_output_is_a_site_of_pyros_own_algorithms() -> None:
    model, guide = build(nn.Linear(3, 2), Gaussian(dist.HalfNormal(torch.ones(2))))
    y = torch.randn(N, 2)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    assert math.isfinite(svi.step(X, y))
    assert all(map(math.isfinite, ps.fit(model, guide, (X, y), **QUIET).history["elbo"]))
    assert ps.draws(model, guide, X, 2, seed=0).means.shape == (2, N, 2)


def test_layouts_that_cannot_be_cut_are_named() -> None:
    model, guide = build(nn.Linear(3, 3), Categorical())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the layout
        x = X.to_sparse_csr()
    with pytest.raises(TypeError, match=r"layout torch.sparse_csr cannot be cut into batches; give x.to_sparse_coo"):
        ps.predict(model, guide, x)


@pytest.mark.parametrize("score", [0.0, 1e7, -1e7])
def test_extreme_scores_keep_the_gradients_of_ordered_classes(score: float) -> None:
    likelihood = Ordinal(5)
    with torch.no_grad():
        likelihood.raw_steps[1] = -30.0
    f = torch.tensor([[score], [0.3]], requires_grad=True)
    for label in range(5):
        found = likelihood(f).log_prob(torch.tensor([label, 1]))
        gradients = torch.autograd.grad(found.sum(), [f, *likelihood.parameters()])
        assert all(bool(torch.isfinite(part).all()) for part in (found, *gradients))


def test_draws_do_not_change_with_later_training() -> None:
    model, guide = build(nn.Linear(3, 1), Ordinal(3))
    found = ps.draws(model, guide, X, 2, seed=0)
    before = found.probs
    assert not before.requires_grad
    with torch.no_grad():
        model.likelihood.first.add_(3.0)  # type: ignore[union-attr, operator]
    assert torch.equal(found.probs, before)


def test_positions_are_whole_numbers() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return x, super().forward(x)

    with pytest.raises(TypeError, match="the parts of a tuple have positions: output=1"):
        ps.predict(*build(Pair(3, 3), Categorical(output="1")), X)


def test_columns_that_are_constant_but_for_rounding() -> None:
    pytest.importorskip("sklearn", minversion="1.6")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(100, 2))
    y = (x[:, 0] > 0).astype(int)
    constant = np.c_[x, np.full(100, 0.1)]
    moved = constant.copy()
    moved[:, 2] = np.float32(0.1)
    estimator = ps.sklearn.BayesianClassifier(random_state=0, epochs=30).fit(constant, y)
    assert estimator.score(moved, y) > 0.9
    regressor = ps.sklearn.BayesianRegressor((10,), random_state=0, epochs=50)
    same = regressor.fit(x, np.full(100, 0.1)).predict(x, return_std=True)
    assert np.allclose(same[0], 0.1, atol=1.0) and (same[1] > 1e-3).all()
    large = regressor.fit((x * 1e20).astype(np.float32), x[:, 0])
    assert np.isfinite(large.scale_).all() and large.score((x * 1e20).astype(np.float32), x[:, 0]) > 0.5
    with pytest.raises(ValueError, match="BayesianRegressor X: the values are too large to be standardized"):
        regressor.fit(x * 1e200, x[:, 0])
    with pytest.raises(ValueError, match="epochs"):
        ps.sklearn.BayesianRegressor(epochs=0).fit(x, x[:, 0])
    with pytest.raises(ValueError, match="hidden: expected widths"):
        ps.sklearn.BayesianRegressor(hidden=5).fit(x, x[:, 0])

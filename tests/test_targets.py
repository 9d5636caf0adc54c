"""Outputs and targets as users have them: fields of outputs, axes of classes, missing and censored targets, weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    GaussianMixture,
    HeteroscedasticGaussian,
    LogNormalTime,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
    WeibullTime,
    ZeroInflatedPoisson,
)

F64 = torch.float64
N = 40
QUIET: dict[str, Any] = {"progress": False, "seed": 0, "lr": 0.01, "compile": False}


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None
    states: Tensor | None = None


class Returns(nn.Module):
    """Returns logits in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(3, 4), form

    def forward(self, x: Tensor) -> Any:
        logits = self.layer(x)
        return {
            "tensor": logits,
            "dictionary": {"logits": logits, "loss": None},
            "dataclass": Output(logits),
            "tuple": (logits, None),
            "two": {"logits": logits, "states": x},
            "two fields": Output(logits, states=x),
            "two of a tuple": (x, logits),
            "none": {"loss": None},
        }[self.form]


def build(net: nn.Module, likelihood: Any, count: int = N) -> tuple[ps.BayesianModel, ps.guides.Additive]:
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=count)
    return model, ps.guides.Additive(model, init_scale=0.1)


X, LABELS = torch.randn(N, 3), torch.arange(N) % 4


@pytest.mark.parametrize(
    ("form", "output"),
    [
        ("dictionary", None),
        ("dictionary", "logits"),
        ("dataclass", None),
        ("tuple", None),
        ("two", "logits"),
        ("two fields", "logits"),
        ("two of a tuple", 1),
        ("two of a tuple", -1),
    ],
)
def test_logits_are_found_in_every_form(form: str, output: str | int | None) -> None:
    results = []
    for one, likelihood in (("tensor", Categorical()), (form, Categorical(output=output))):
        torch.manual_seed(0)
        model, guide = build(Returns(one), likelihood)
        fitted = ps.fit(model, guide, (X, LABELS), epochs=2, **QUIET)
        scores = ps.compare(model, guide, (X, LABELS), modes=("mean", "mc:3", "moments"), seed=1)
        results.append((fitted.history["elbo"], [row.nll for row in scores.rows]))
    assert results[0] == results[1]


def test_outputs_that_do_not_say_which_are_refused() -> None:
    for form, names in (("two", r"\['logits'\].*\['states'\]"), ("two fields", ".logits.*.states")):
        with pytest.raises(TypeError, match=f"with several tensors, .*{names}.*output='logits'"):
            ps.predict(*build(Returns(form), Categorical()), X)
    with pytest.raises(TypeError, match=r"several tensors.*output=0"):
        ps.predict(*build(Returns("two of a tuple"), Categorical()), X)
    with pytest.raises(TypeError, match="with no tensor"):
        ps.predict(*build(Returns("none"), Categorical()), X)
    with pytest.raises(TypeError, match="has no part 'logit'.*did you mean 'logits'"):
        ps.predict(*build(Returns("two"), Categorical(output="logit")), X)
    with pytest.raises(TypeError, match="has no part 'logits'; it is a Tensor"):
        ps.predict(*build(Returns("tensor"), Categorical(output="logits")), X)
    with pytest.raises(TypeError, match="expected a tensor as output='loss', got NoneType"):
        ps.predict(*build(Returns("dictionary"), Categorical(output="loss")), X)


def test_outputs_of_a_library_need_no_function() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    ids, mask, y = torch.randint(1, 50, (8, 7)), torch.ones(8, 7, dtype=torch.long), torch.randint(0, 3, (8,))
    rows = [{"input_ids": i, "attention_mask": m, "labels": t} for i, m, t in zip(ids, mask, y, strict=True)]
    model = ps.BayesianModel(
        transformers.BertForSequenceClassification(config),
        prior={"classifier.weight": ps.priors.Normal()},
        likelihood=Categorical(),
        num_data=8,
        target="labels",
    )
    guide = ps.guides.Additive(model)
    ps.fit(model, guide, torch.utils.data.DataLoader(rows, batch_size=4), epochs=2, **QUIET)  # type: ignore[arg-type]
    scores = ps.compare(model, guide, rows, modes=("mean", "mc:2"), seed=0)  # type: ignore[arg-type]
    assert scores.num_examples == 8 and scores["mc:2"].accuracy is not None


@pytest.mark.parametrize("sizes", [(), (5,), (2, 3), (4,)])
def test_classes_on_axis_one_are_those_of_torch(sizes: tuple[int, ...]) -> None:
    logits, y = torch.randn(6, 4, *sizes, dtype=F64), torch.randint(0, 4, (6, *sizes))
    y[0] = -100
    weights = torch.rand(4, dtype=F64) + 0.5
    found = Categorical(axis=1, ignore_index=-100)(logits).log_prob(y)
    expected = -F.cross_entropy(logits, y, reduction="none").reshape(6, -1).sum(1)
    assert torch.allclose(found, expected) and found[0] == 0
    weighted = Categorical(axis=1, ignore_index=-100, class_weights=weights).double()
    expected = -F.cross_entropy(logits, y, weight=weights, reduction="none").reshape(6, -1).sum(1)
    assert torch.allclose(weighted(logits).log_prob(y), expected)


def test_axes_are_never_guessed() -> None:
    logits, y = torch.randn(6, 4, 4), torch.randint(0, 4, (6, 4))
    last = Categorical()(logits).log_prob(y)
    assert not torch.allclose(last, Categorical(axis=1)(logits).log_prob(y))
    uneven = Categorical()
    with pytest.raises(ValueError, match=r"use Categorical\(axis=1\)"):
        uneven.check_shape(uneven(torch.randn(6, 4, 5)), torch.zeros(6, 5).long())
    with pytest.raises(ValueError, match="axis: expected -1 or 1, got 2"):
        Categorical(axis=2)


MISSING: dict[str, tuple[Any, int, Any]] = {
    "Gaussian": (lambda: Gaussian(0.5, nan_is_missing=True), 2, lambda: torch.randn(N, 2)),
    "Gaussian, by output": (
        lambda: Gaussian(torch.tensor([0.3, 2.0]), nan_is_missing=True),
        2,
        lambda: torch.randn(N, 2),
    ),
    "StudentT": (lambda: StudentT(5.0, nan_is_missing=True), 2, lambda: torch.randn(N, 2)),
    "HeteroscedasticGaussian": (lambda: HeteroscedasticGaussian(nan_is_missing=True), 4, lambda: torch.randn(N, 2)),
    "Bernoulli": (lambda: Bernoulli(nan_is_missing=True), 2, lambda: (torch.rand(N, 2) > 0.5).float()),
    "Poisson": (lambda: Poisson(nan_is_missing=True), 2, lambda: torch.poisson(torch.ones(N, 2))),
    "NegativeBinomial": (lambda: NegativeBinomial(nan_is_missing=True), 2, lambda: torch.poisson(torch.ones(N, 2))),
    "ZeroInflatedPoisson": (
        lambda: ZeroInflatedPoisson(nan_is_missing=True),
        4,
        lambda: torch.poisson(torch.ones(N, 2)),
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_targets_have_no_part_in_anything(name: str) -> None:
    make, width, draw = MISSING[name]
    y = draw()
    absent = torch.rand(N, 2) < 0.3
    absent[3] = True  # an example of which nothing is known
    net = nn.Linear(3, width)
    model, guide = build(net, make())
    given = torch.where(absent, torch.nan, y)
    output = net(X).detach().requires_grad_()
    distribution = model.likelihood(output)
    base: Any = distribution
    while isinstance(base, (Independent, MaskedDistribution)):
        base = base.base_dist
    by_hand = torch.where(absent, 0.0, base.log_prob(y)).sum(1)
    assert torch.allclose(distribution.log_prob(given), by_hand, atol=1e-5)
    gradient = torch.autograd.grad(distribution.log_prob(given).sum(), output, retain_graph=True)[0]
    assert torch.allclose(gradient, torch.autograd.grad(by_hand.sum(), output)[0], atol=1e-5)
    result = ps.fit(model, guide, (X, given), validation=(X, given), epochs=2, batch_size=16, **QUIET)
    assert all(math.isfinite(value) for value in (*result.history["elbo"], *result.history["validation"]))
    scores = ps.compare(model, guide, (X, given), modes=("mean", "mc:3", "moments"), seed=0)
    observed_rows = int((~absent).any(1).sum())
    assert scores.num_examples == observed_rows
    mean = ps.predict(model, guide, X, mode="mean")
    assert mean.mean is not None and not bool(torch.isnan(mean.mean).any())
    errors = (mean.mean.float() - y)[~absent]
    if name == "Bernoulli":  # labels
        assert scores["mean"].accuracy == pytest.approx((errors.abs() < 0.5).float().mean().item())
    else:
        assert scores["mean"].rmse == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-4)
    terms = ps.decompose(model, guide, (X, given), num_samples=2)
    assert (terms.num_targets, terms.num_observed) == (2 * N, int((~absent).sum()))
    assert f"Observed: {terms.num_observed} of {2 * N} targets" in str(terms)


def test_data_terms_are_scaled_by_examples_alone() -> None:
    y = torch.randn(N, 1)
    absent = torch.arange(N) % 4 == 0
    given = torch.where(absent[:, None], torch.nan, y)
    torch.manual_seed(0)
    model, guide = build(nn.Linear(3, 1), Gaussian(nan_is_missing=True))
    kept, other = build(nn.Linear(3, 1), Gaussian(), count=int((~absent).sum()))
    kept.load_state_dict(model.state_dict())
    other.load_state_dict(guide.state_dict())
    ours = ps.decompose(model, guide, (X, given), num_samples=1, estimator="moments").data
    assert ours == pytest.approx(
        ps.decompose(kept, other, (X[~absent], y[~absent]), num_samples=1, estimator="moments").data
    )


def test_nan_is_refused_unless_it_is_said_to_be_missing() -> None:
    y = torch.randn(N, 1)
    y[2] = torch.nan
    with pytest.raises(ValueError, match="1 target.* NaN.*nan_is_missing=True"):
        ps.fit(*build(nn.Linear(3, 1), Gaussian()), (X, y), epochs=1, **QUIET)
    y[3] = torch.inf
    with pytest.raises(ValueError, match="1 target.* NaN or infinite"):
        ps.fit(*build(nn.Linear(3, 1), Gaussian(nan_is_missing=True)), (X, y), epochs=1, **QUIET)
    labels = LABELS.clone()
    labels[5] = -100
    with pytest.raises(ValueError, match="among them -100.*ignore_index=-100"):
        ps.fit(*build(nn.Linear(3, 4), Categorical()), (X, labels), epochs=1, **QUIET)
    labels[6] = 7
    with pytest.raises(ValueError, match="got 1 outside, among them 7"):
        ps.fit(*build(nn.Linear(3, 4), Categorical(ignore_index=-100)), (X, labels), epochs=1, **QUIET)
    every = torch.full((N, 1), torch.nan)
    with pytest.raises(ValueError, match="nothing to score"):
        ps.compare(*build(nn.Linear(3, 1), Gaussian(nan_is_missing=True)), (X, every), modes=("mean",))


@pytest.mark.parametrize("ordinal", [False, True])
def test_labels_that_stand_for_none_are_not_scored(ordinal: bool) -> None:
    labels = torch.where(torch.arange(N) % 3 == 0, -1, LABELS)
    likelihood = Ordinal(4, ignore_index=-1) if ordinal else Categorical(ignore_index=-1)
    model, guide = build(nn.Linear(3, 1 if ordinal else 4), likelihood)
    ps.fit(model, guide, (X, labels), epochs=2, **QUIET)
    kept = labels >= 0
    found = ps.compare(model, guide, (X, labels), modes=("mean",))
    expected = ps.compare(model, guide, (X[kept], labels[kept]), modes=("mean",))
    assert found.num_examples == int(kept.sum()) == expected.num_examples
    assert (
        found["mean"].nll == pytest.approx(expected["mean"].nll) and found["mean"].accuracy == expected["mean"].accuracy
    )


def test_class_weights_are_named_as_what_they_are() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    model, guide = build(nn.Linear(3, 4), Categorical(class_weights=weights))
    plain, other = build(nn.Linear(3, 4), Categorical())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "class_weights" not in k})
    other.load_state_dict(guide.state_dict())
    assert "Pseudo-likelihood" in str(ps.decompose(model, guide, (X, LABELS), num_samples=1))
    one, two = (ps.compare(*pair, (X, LABELS), modes=("mean",))["mean"] for pair in ((model, guide), (plain, other)))
    assert one.nll == pytest.approx(two.nll) and one.ece == pytest.approx(two.ece)  # scores are not weighted
    with pytest.raises(ValueError, match="pseudo-likelihood"):
        ps.to_arviz(model, guide, (X, LABELS), draws=2)
    with pytest.raises(ValueError, match="expected one for each of 4 classes, got 3"):
        Categorical(class_weights=torch.ones(3))(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="numbers from 0 up"):
        Categorical(class_weights=torch.tensor([1.0, -1.0]))


def test_ordered_classes_are_those_of_the_definition() -> None:
    likelihood = Ordinal(5).double()
    with torch.no_grad():
        likelihood.first.fill_(-2.0)
        likelihood.raw_steps.copy_(torch.tensor([-5.0, 0.0, 3.0]))
    f = torch.linspace(-60, 60, 25, dtype=F64)
    thresholds = likelihood.thresholds
    assert bool((thresholds.diff() > 0).all())
    cumulative = torch.sigmoid(thresholds - f[:, None])
    edges = torch.cat([torch.zeros(25, 1, dtype=F64), cumulative, torch.ones(25, 1, dtype=F64)], 1)
    probs: Any = likelihood(f[:, None])
    assert torch.allclose(probs.probs, edges.diff(dim=1), atol=1e-12)
    assert bool(torch.isfinite(probs.logits).all())  # far from the thresholds, too
    x = torch.randn(400, 1)
    y = (x[:, 0] + 0.3 * torch.randn(400) > torch.tensor([[-1.0], [0.0], [1.0]])).sum(0)
    model, guide = build(nn.Linear(1, 1), Ordinal(4), count=400)
    ps.fit(model, guide, (x, y), epochs=40, **{**QUIET, "lr": 0.05})
    assert ps.compare(model, guide, (x, y), modes=("mean",))["mean"].accuracy > 0.7  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"\(batch, 1\), one score"):
        Ordinal(4)(torch.zeros(5, 4))


def test_a_mixture_of_gaussians_is_the_sum() -> None:
    output = torch.randn(6, 3 * (1 + 2 * 2), dtype=F64)
    y = torch.randn(6, 2, dtype=F64)
    logits, means, raw = output.split([3, 6, 6], 1)
    scales = F.softplus(raw).reshape(6, 3, 2) + 1e-6
    parts = dist.Normal(means.reshape(6, 3, 2), scales).log_prob(y[:, None]).sum(-1)
    expected = torch.logsumexp(logits.log_softmax(1) + parts, 1)
    assert torch.allclose(GaussianMixture(3)(output).log_prob(y), expected)
    with pytest.raises(ValueError, match=r"\(batch, K \(1 \+ 2 d\)\) for 3 components"):
        GaussianMixture(3)(torch.zeros(5, 7))


@pytest.mark.parametrize("kind", ["weibull", "log-normal"])
def test_censored_times_are_those_of_scipy(kind: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    f, t, later = torch.randn(30, dtype=F64), torch.rand(30, dtype=F64) * 3 + 0.05, torch.rand(30, dtype=F64) + 0.01
    if kind == "weibull":
        makes: Any = lambda **form: WeibullTime(1.7, **form)  # noqa: E731
        reference = stats.weibull_min(1.7, scale=f.exp().numpy())
    else:
        makes = lambda **form: LogNormalTime(0.6, **form)  # noqa: E731
        reference = stats.lognorm(0.6, scale=f.exp().numpy())
    event = torch.arange(30) % 2
    found = makes()(f[:, None]).log_prob(torch.stack([t, event.to(F64)], 1))
    density, survival = (torch.as_tensor(part(t.numpy())) for part in (reference.logpdf, reference.logsf))
    assert torch.allclose(found, torch.where(event == 1, density, survival))
    intervals = makes(censoring="interval")(f[:, None])
    high = t + later
    between = torch.as_tensor(reference.cdf(high.numpy()) - reference.cdf(t.numpy()))
    found = intervals.log_prob(torch.stack([t, high], 1))
    seen = between > 1e-8  # smaller differences are lost in the reference
    assert int(seen.sum()) > 15 and torch.allclose(found[seen], between[seen].log(), rtol=1e-6)
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(intervals.log_prob(torch.stack([t, t], 1)), density)
    infinite = torch.full_like(t, torch.inf)
    assert torch.allclose(intervals.log_prob(torch.stack([t, infinite], 1)), survival)
    left = torch.as_tensor(reference.logcdf(t.numpy()))
    assert torch.allclose(intervals.log_prob(torch.stack([torch.zeros_like(t), t], 1)), left)
    assert torch.allclose(makes()(f[:, None]).mean, torch.as_tensor(reference.mean()))
    assert torch.allclose(makes()(f[:, None]).variance, torch.as_tensor(reference.var()))
    output = f.clone().requires_grad_()
    upper = torch.where(torch.arange(30) % 3 == 0, high, infinite)
    rows = torch.stack([torch.where(event == 1, t, 0.0), torch.where(event == 1, t, high)], 1)  # known, or before
    others = torch.stack([t, upper], 1)  # between, or after
    densities = [makes(censoring="interval")(output[:, None]).log_prob(part).sum() for part in (rows, others)]
    (gradient,) = torch.autograd.grad(sum(densities), output)
    assert bool(torch.isfinite(gradient).all())


def test_censored_times_are_fitted_and_scored() -> None:
    x = torch.randn(200, 1)
    times = (x[:, 0] * 0.8).exp() * torch.empty(200).exponential_()
    limit = 2.0 * torch.rand(200) + 0.1
    y = torch.stack([torch.minimum(times, limit), (times <= limit).float()], 1)
    model, guide = build(nn.Linear(1, 1), WeibullTime(1.0, learn=True), count=200)
    ps.fit(model, guide, (x, y), epochs=60, **{**QUIET, "lr": 0.05})
    slope = guide.site_distribution("weight").mean.item()
    assert 0.4 < slope < 1.2  # as if no time were censored it would be far smaller
    scores = ps.compare(model, guide, (x, y), modes=("mean", "mc:5"), seed=0)
    assert scores["mean"].rmse is None and math.isfinite(scores["mc:5"].nll)
    assert ps.predict(model, guide, x, mode="mc:5").mean.shape == (200,)  # type: ignore[union-attr]
    for wrong, message in (([0.0, 1.0], "positive time"), ([1.0, 0.5], "event of 0 or 1")):
        bad = y.clone()
        bad[4] = torch.tensor(wrong)
        with pytest.raises(ValueError, match=f"{message}.*got 1 others"):
            ps.fit(model, guide, (x, bad), epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"0 <= lower <= upper.*\[2.0, 1.0\]"):
        reversed_rows = torch.tensor([2.0, 1.0]).expand(200, 2)
        ps.fit(*build(nn.Linear(1, 1), WeibullTime(censoring="interval"), 200), (x, reversed_rows), epochs=1, **QUIET)


def test_noise_of_each_output() -> None:
    y = torch.stack([X[:, 0] + 0.1 * torch.randn(N), X[:, 1] + 2.0 * torch.randn(N)], 1)
    model, guide = build(nn.Linear(3, 2), Gaussian(torch.ones(2), learn=True))
    ps.fit(model, guide, (X, y), epochs=300, **{**QUIET, "lr": 0.03})
    small, large = model.likelihood.scale().tolist()  # type: ignore[operator]
    assert small < 0.4 < 1.0 < large
    random = Gaussian(dist.HalfNormal(torch.ones(2)))
    model, guide = build(nn.Linear(3, 2), random)
    assert "likelihood.scale" in model.sites and model.sites["likelihood.scale"].init.shape == (2,)
    with pytest.raises(ValueError, match="positive numbers of shape"):
        Gaussian(torch.tensor([1.0, -1.0]))
    model, guide = build(nn.Linear(3, 2), Gaussian(torch.tensor([0.3, 2.0])))
    near = ps.predict(model, guide, X, mode="mean").mean.float() + 0.2 * torch.randn(N, 2)  # type: ignore[union-attr]
    found = ps.compare(model, guide, (X, near), modes=("moments:full", "mc:2000"), seed=0)
    assert found["moments:full"].nll == pytest.approx(found["mc:2000"].nll, abs=0.03)

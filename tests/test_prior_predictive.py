"""Draws from the priors: against closed forms and whole networks drawn by hand, and what cannot be drawn."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import likelihoods, priors
from pyrostoch.report import prior_draws

F64 = torch.float64
N = 6


def model_of(net: nn.Module, prior: Any = None, likelihood: Any = None, **options: Any) -> ps.BayesianModel:
    prior = {"*": priors.Normal()} if prior is None else prior
    likelihood = likelihoods.Gaussian(0.5) if likelihood is None else likelihood
    return ps.BayesianModel(net, prior=prior, likelihood=likelihood, num_data=N, **options)


def test_a_linear_model_has_a_closed_form() -> None:
    x = torch.randn(N, 3, dtype=F64)
    model = model_of(nn.Linear(3, 1).double(), {"weight": priors.Normal(0.2, 0.8), "bias": priors.Normal(-1.0, 0.3)})
    count = 1500
    found = ps.prior_predictive(model, x, num_samples=count, seed=0)
    mean = 0.2 * x.sum(1) - 1.0
    covariance = 0.8**2 * x @ x.T + 0.3**2
    for values, exact in ((found.means, covariance), (found.observations, covariance + 0.5**2 * torch.eye(N))):
        flat = values[..., 0].double()
        sizes = exact.diagonal().sqrt()
        assert ((flat.mean(0) - mean).abs() < 6 * sizes / math.sqrt(count)).all()
        assert ((flat.T.cov() - exact).abs() < 0.2 * sizes[:, None] * sizes).all()
    # The noise is drawn apart from the weights, although one seed makes both.
    noise = (found.observations - found.means)[..., 0]
    both = torch.cat([found.outputs[..., 0], noise], 1).T.corrcoef()[:N, N:]
    assert both.abs().max() < 6 / math.sqrt(count)


def test_draws_are_those_of_whole_networks() -> None:
    """Against networks whose parameters are drawn and put in by hand; what has no prior stays as it is."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
    x, count = torch.randn(N, 2), 1000
    model = model_of(net, priors.Laplace(0.0, 0.9), likelihoods.Categorical())
    found = ps.prior_predictive(model, x, num_samples=count, seed=1)
    assert net.training and found.probs.shape == (count, N, 3)
    by_hand, labels = [], []
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        for _ in range(count):
            for layer in (twin[0], twin[4]):
                layer.weight.copy_(dist.Laplace(0.0, 0.9).sample(layer.weight.shape))
            by_hand.append(twin(x).softmax(-1))
            labels.append(torch.distributions.Categorical(by_hand[-1]).sample())
    exact = torch.stack(by_hand)
    for power in (1, 2):
        gap = found.probs.pow(power).mean(0) - exact.pow(power).double().mean(0)
        assert gap.abs().max() < 6 * math.sqrt(0.25 * 2 / count)
    joint = (found.observations[:, 0] == found.observations[:, 1]).double().mean()
    expected = torch.stack(labels)
    assert abs(joint - (expected[:, 0] == expected[:, 1]).double().mean()) < 6 * math.sqrt(0.5 / count)


def test_random_scales_are_drawn_with_the_weights() -> None:
    noise = likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5))
    model = model_of(nn.Linear(1, 1, bias=False).double(), priors.Hierarchical(dist.HalfNormal(0.7)), noise)
    found = ps.prior_predictive(model, torch.ones(2, 1, dtype=F64), num_samples=1500, seed=0)
    outputs = found.outputs[:, 0, 0]
    assert outputs.var().item() == pytest.approx(0.49, abs=0.2)  # E[s^2]; kurtosis 9 of a normal with such a scale
    scales = torch.stack([torch.as_tensor(quantities["scale"]) for quantities in found.quantities])
    assert scales.log().mean().item() == pytest.approx(-1.0, abs=0.08) and scales.unique().numel() == 1500
    fitted = model_of(nn.Linear(1, 1, bias=False), priors.EmpiricalBayes(0.01))
    assert ps.prior_predictive(fitted, torch.ones(2, 1), seed=0).outputs.abs().max() < 0.06


def test_seeds_batches_and_the_random_state() -> None:
    model = model_of(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))
    x = torch.randn(N, 2)
    state = torch.get_rng_state()
    one, two = (ps.prior_predictive(model, x, num_samples=3, seed=5, batch_size=size) for size in (1000, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.allclose(one.outputs, two.outputs, atol=1e-6)
    assert torch.allclose(one.observations, two.observations, atol=1e-6)
    other = ps.prior_predictive(model, x, num_samples=3, seed=6)
    assert not torch.allclose(one.outputs, other.outputs)
    twice = ps.prior_predictive(model, x[[0, 0]], num_samples=3, seed=5)
    assert torch.equal(twice.outputs[:, 0], twice.outputs[:, 1])
    assert not torch.equal(twice.observations[:, 0], twice.observations[:, 1])
    assert {"outputs", "observations"} <= set(one.to_dict())


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).sum(1)


def test_constants_heads_and_learned_values() -> None:
    found = ps.prior_predictive(model_of(Bag()), torch.zeros(3, 4, dtype=torch.long), num_samples=4, seed=0)
    assert found.outputs.abs().max() == 0.0

    class Heads(nn.Linear):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            out = super().forward(x)
            return {"kind": out[:, :3], "size": out[:, 3:]}

    joint = likelihoods.Joint({"kind": likelihoods.Categorical(), "size": likelihoods.Gaussian(0.1)})
    model = model_of(Heads(2, 4), likelihood=joint)
    shapes = {
        head: tuple(ps.prior_predictive(model, torch.zeros(N, 2), num_samples=4, head=head).observations.shape)
        for head in ("kind", "size")
    }
    assert shapes == {"kind": (4, N), "size": (4, N, 1)}
    with pytest.raises(ValueError, match="say which is read: head='kind'"):
        ps.prior_predictive(model, torch.zeros(N, 2))
    yesterday = ps.guides.Additive(model_of(nn.Linear(2, 1)), init_scale=1e-4)
    later = model_of(nn.Linear(2, 1), yesterday)
    outputs = ps.prior_predictive(later, torch.ones(2, 2), num_samples=5).outputs
    mean = sum(yesterday.site_distribution(site).mean.sum() for site in yesterday.site_names)
    assert torch.allclose(outputs, torch.as_tensor(mean).expand_as(outputs), atol=5e-3)


@pytest.mark.parametrize("prior", [priors.LogUniform, priors.ARD, priors.Grid, priors.SymmetricBinomial])
def test_improper_priors_are_refused_by_name(prior: Any) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model = model_of(net, {"*": priors.Normal(), "1.weight": prior()})
    with pytest.raises(
        ValueError, match=rf"the prior of '1.weight' \({prior.__name__}\(\)\) is improper.*check_a_prior"
    ):
        ps.prior_predictive(model, torch.zeros(N, 2))


def test_what_cannot_be_drawn_is_refused_by_name() -> None:
    x = torch.zeros(N, 2)
    with pytest.raises(TypeError, match="expected a BayesianModel, got Linear"):
        ps.prior_predictive(nn.Linear(2, 1), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter of Linear has a prior"):
        ps.prior_predictive(model_of(nn.Linear(2, 1), {"*": None}), x)
    stochastic = nn.Sequential(ps.layers.StochasticLinear(2, 3, prior="standard"), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"the activations of layer\(s\) '0' have a prior"):
        ps.prior_predictive(model_of(stochastic, {"1.weight": priors.Normal()}), x)
    loss = model_of(nn.Linear(2, 1), likelihood=likelihoods.Loss(lambda output, y: (output - y).abs().sum(1)))
    with pytest.raises(ValueError, match="the likelihood is a loss, which has no distribution"):
        ps.prior_predictive(loss, x)
    wide = model_of(nn.Linear(2, 1), priors.Normal(0.0, 1e38))
    with pytest.raises(ValueError, match=r"not finite in \d+ of 50 draws .*narrower prior.*how-to/check_a_prior"):
        ps.prior_predictive(wide, 1e30 * torch.ones(N, 2), num_samples=50)
    for count in (0, 2.5):
        with pytest.raises(ValueError, match="num_samples: expected a whole number"):
            ps.prior_predictive(model_of(nn.Linear(2, 1)), x, num_samples=count)  # type: ignore[arg-type]


def test_text_says_what_the_prior_means() -> None:
    x = torch.randn(N, 2)
    wide = ps.prior_predictive(model_of(nn.Linear(2, 3), priors.Normal(0, 30), likelihoods.Categorical()), x, seed=0)
    narrow = ps.prior_predictive(
        model_of(nn.Linear(2, 3, bias=False), priors.Normal(0, 0.01), likelihoods.Categorical()), x, seed=0
    )
    largest = [float(str(found).splitlines()[2].split()[-1]) for found in (wide, narrow)]
    assert largest[0] > 0.8 and largest[1] < 0.36 and "3 classes" in str(wide)
    text = str(ps.prior_predictive(model_of(nn.Linear(2, 1)), x, num_samples=400, seed=0))
    assert text.startswith("400 draws from the priors, 6 examples, observations of shape (1,)")
    assert "observations, 97.5 %" in text


def rows_of(found: ps.PriorPredictive) -> dict[str, float]:
    """The numbers in the table of a text."""
    rows = [line.rsplit(maxsplit=1) for line in str(found).splitlines()[1:] if line.strip()]
    return {name.strip(): float(value) for name, value in (row for row in rows if len(row) == 2)}


@pytest.mark.parametrize("censoring", ["event", "interval"])
@pytest.mark.parametrize("kind", [likelihoods.WeibullTime, likelihoods.LogNormalTime])
def test_text_of_times_pools_no_events(kind: Any, censoring: Any) -> None:
    model = model_of(nn.Linear(2, 1), priors.Normal(0, 0.1), kind(0.5, censoring=censoring))
    found = ps.prior_predictive(model, torch.randn(N, 2), num_samples=50, seed=0)
    times = found.observations[..., 0].double()
    rows = rows_of(found)
    assert rows["times, mean"] == pytest.approx(times.mean().item(), rel=1e-3)
    assert rows["times, standard deviation"] == pytest.approx(times.std().item(), rel=1e-3)
    assert rows["times, 97.5 %"] == pytest.approx(times.flatten().quantile(0.975).item(), rel=0.05)
    assert not any(name.startswith("observations") for name in rows)


class Pixels(nn.Module):
    """Classes of four pixels, each with the same class in every example."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]) * self.scale
        return logits.reshape(1, 2, 2, 2).expand(len(x), 2, 2, 2)


def test_text_compares_classes_output_by_output() -> None:
    share = "draws with one class for all examples, share"
    x = torch.randn(N, 2)
    coins = nn.Linear(2, 2)
    with torch.no_grad():
        coins.bias.copy_(torch.tensor([9.0, -9.0]))
    several = ps.prior_predictive(model_of(coins, priors.Normal(0, 0.01), likelihoods.Bernoulli()), x, seed=0)
    assert several.probs.shape == (100, N, 2, 2) and rows_of(several)[share] == 1.0
    pixels = ps.prior_predictive(model_of(Pixels(), None, likelihoods.Categorical()), x, num_samples=9, seed=0)
    assert pixels.probs.shape == (9, N, 2, 2, 2) and rows_of(pixels)[share] == 1.0
    # One output of two is the same for all examples.
    half = nn.Linear(2, 2)
    with torch.no_grad():
        half.weight.copy_(torch.tensor([[50.0, 0.0], [0.0, 0.0]]))
        half.bias.copy_(torch.tensor([0.0, 9.0]))
    mixed = model_of(half, {"weight": priors.around(half, 0.01)}, likelihoods.Bernoulli())
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 3)
    assert rows_of(ps.prior_predictive(mixed, x, seed=0))[share] == 0.5


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    x = torch.linspace(-1, 1, N)[:, None].flip(0)
    one = ps.prior_predictive(model_of(nn.Linear(1, 2)), x, num_samples=60, seed=0)
    figure = prior_draws(one, x)
    assert [len(axes.lines) for axes in figure.axes] == [40, 40]
    line = figure.axes[1].lines[3]
    assert torch.allclose(torch.as_tensor(line.get_ydata()), one.means[3, :, 1].flip(0).double())
    assert torch.equal(torch.as_tensor(line.get_xdata()), x[:, 0].flip(0).double())
    histogram = prior_draws(one).axes
    assert len(histogram) == 2 and sum(patch.get_height() for patch in histogram[0].patches) == 60 * N
    assert len(prior_draws(one, torch.zeros(N, 3)).axes) == 2
    with pytest.raises(ValueError, match="expected the 6 inputs"):
        prior_draws(one, x[:3])
    classes = ps.prior_predictive(model_of(nn.Linear(1, 3), None, likelihoods.Categorical()), x, num_samples=50)
    left, right = prior_draws(classes).axes
    assert sum(patch.get_height() for patch in left.patches) == 50 * N
    assert sum(patch.get_height() for patch in right.patches) == pytest.approx(1.0)
    coin = ps.prior_predictive(model_of(nn.Linear(1, 1), None, likelihoods.Bernoulli()), x, num_samples=50)
    assert coin.has_classes and len(prior_draws(coin).axes) == 2

"""Faults that a hostile review found in random activations as Pyro sites: each stays mended or refused by name."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from stochastic import F64, N, assert_same_mean, data, mean_and_error, model_of, network
from torch import Tensor, nn
from torch.utils.data import DataLoader

import pyrostoch as ps
from pyrostoch.layers import StochasticLinear, StochasticLSTM, activations, make_stochastic

GAUSSIAN = ps.likelihoods.Gaussian(1.0)


class LastStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = StochasticLSTM(2, 3, batch_first=True, sample="state", prior="standard")
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.rows(x)[0][:, -1])


@pytest.mark.parametrize("long_first", [True, False])
def test_no_bound_for_layers_that_some_batches_do_not_call(long_first: bool) -> None:
    model = ps.BayesianModel(LastStep(), likelihood=GAUSSIAN, num_data=24)
    batches = [(torch.randn(4, 5, 2), torch.randn(4, 1)), (torch.randn(20, 3, 2), torch.randn(20, 1))]
    loader = DataLoader(batches if long_first else batches[::-1], batch_size=None)  # type: ignore[arg-type]
    parts = ps.decompose(model, ps.guides.Amortised(model), loader, num_samples=2)
    rows = {row.layer: row for row in parts.rates}
    assert set(rows) == {"rows.l0", *(f"rows.l0:{step}" for step in range(2, 6))}
    last = rows["rows.l0:5"]
    assert last.nats == pytest.approx(last.rate / 4) and not last.cuts
    bounds = [row.nats for row in rows.values() if row.cuts]
    assert parts.information_bound == (min(bounds) if bounds else None)


def test_no_bound_where_an_input_does_not_change_in_the_batch() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.around = StochasticLinear(2, 3, prior="standard"), nn.Embedding(10, 1)
            self.out = nn.Linear(3, 1)

        def forward(self, x: Tensor, k: Tensor) -> Any:
            return self.out(self.layer(x)) + self.around(k)

    model = ps.BayesianModel(Conditioned(), likelihood=GAUSSIAN, num_data=200)
    x, y = torch.randn(200, 2), torch.randn(200, 1)
    for k in (torch.arange(200) // 100, torch.zeros(200, dtype=torch.long)):
        assert ps.decompose(model, ps.guides.Amortised(model), ((x, k), y)).information_bound is None


class Coin(nn.Module):
    def __init__(self, factor: float = 0.0) -> None:
        super().__init__()
        self.layer = StochasticLinear(1, 1, distribution="bernoulli", gradient="score", prior="standard")
        self.factor = factor

    def forward(self, x: Tensor) -> Any:
        h: Any = self.layer(x)
        if self.factor and ps.effects.inside_network():
            pyro.factor("sparse", -self.factor * h.sum())
        return 2.0 * h


@pytest.mark.parametrize(("mask", "factor"), [((1, 0, 0, 1), 0.0), ((1, 1, 1, 1), 3.0)])
def test_score_gradients_under_a_mask_and_with_a_factor(mask: tuple[int, ...], factor: float) -> None:
    net = Coin(factor).double()
    model = ps.BayesianModel(net, likelihood=GAUSSIAN, num_data=8)
    x, y = torch.linspace(-1, 1, 4, dtype=F64)[:, None], torch.tensor([0.0, 2.0, -1.0, 1.0], dtype=F64)[:, None]
    kept = torch.tensor(mask).bool()
    (logits,) = net.layer.outputs(x)
    truth: Any = 0.0
    for values in itertools.product((0.0, 1.0), repeat=4):
        h = torch.tensor(values, dtype=F64)[:, None]
        weight = torch.where(h > 0.5, logits.sigmoid(), logits.neg().sigmoid()).prod()
        cost = -2.0 * (dist.Normal(2.0 * h, 1.0).log_prob(y)[:, 0] * kept).sum() + factor * h.sum()
        truth = truth + weight * cost
    kl = torch.distributions.kl_divergence(dist.Bernoulli(logits=logits), dist.Bernoulli(torch.full_like(logits, 0.5)))
    (expected,) = torch.autograd.grad(truth + 2.0 * (kl[:, 0] * kept).sum(), net.layer.kernel.weight)
    masked = poutine.mask(model, mask=kept)
    guide = ps.guides.Additive(model)
    loss = ps.ELBO()
    found = mean_and_error(
        lambda: torch.autograd.grad(loss.differentiable_loss(masked, guide, x, y), net.layer.kernel.weight)[0], 1200
    )
    assert_same_mean(found, (expected, torch.zeros_like(expected)))


def test_activations_that_are_no_examples_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = StochasticLinear(2, 3, prior="standard"), nn.Linear(3, 1)

        def forward(self, x: Tensor, c: Tensor) -> Any:
            h: Any = self.layer(c)
            return self.out(h).mean() + x.sum(1, keepdim=True)

    for in_dims, rows in (((0, None), 1), (0, 3)):
        model = ps.BayesianModel(Shared(), likelihood=GAUSSIAN, num_data=20, in_dims=in_dims)  # type: ignore[arg-type]
        inputs = (torch.randn(7, 2), torch.randn(rows, 2))
        if in_dims == 0:
            model.in_dims = (0, None)
        with pytest.raises(ValueError, match=r"layer 'layer'.*not those of the 7 examples"):
            ps.ELBO().terms(model, ps.guides.Additive(model), inputs, torch.randn(7, 1))


@pytest.mark.parametrize(
    "prior",
    [activations.Learned((7, 1)), activations.Learned((7, 3)), dist.Normal(torch.arange(7.0)[:, None], 1.0)],
)
def test_priors_never_differ_by_example(prior: Any) -> None:
    model = ps.BayesianModel(StochasticLinear(2, 3, prior=prior), likelihood=GAUSSIAN, num_data=7)
    with pytest.raises(ValueError, match=r"broadcasts against an example's activations \(3,\)"):
        ps.ELBO().terms(model, ps.guides.Additive(model), torch.randn(7, 2), torch.randn(7, 3))


@pytest.mark.parametrize(
    ("family", "prior"),
    [
        (activations.Bernoulli(), dist.Normal(0.0, 1.0)),
        (activations.Bernoulli(), dist.Beta(2.0, 2.0)),
        (activations.Poisson(), dist.Gamma(2.0, 1.0)),
        (activations.Categorical(), dist.Normal(0.0, 1.0)),
        (activations.Gaussian(), dist.Gamma(2.0, 1.0)),
        (activations.Gaussian(), dist.Uniform(-1.0, 1.0)),
        (activations.Gaussian(), dist.Poisson(1.0)),
    ],
)
def test_priors_of_other_values_are_refused(family: Any, prior: Any) -> None:
    gradient = "score" if "score" in family.gradients else None
    layer = StochasticLinear(2, 3, distribution=family, gradient=gradient, prior=prior)
    model = ps.BayesianModel(layer, likelihood=GAUSSIAN, num_data=7)
    with pytest.raises(ValueError, match="layer 'activation'.*infinite or has no meaning"):
        ps.ELBO().terms(model, ps.guides.Additive(model), torch.randn(7, 2), torch.randn(7, 3))


def test_trials_and_families_of_priors() -> None:
    with pytest.raises(ValueError, match="as many trials as the activations, 3, got 5"):
        StochasticLinear(2, 3, distribution=activations.Binomial(3), prior=dist.Binomial(5, 0.5))
    shared = activations.Learned((3,))
    StochasticLinear(2, 3, prior=shared)
    with pytest.raises(ValueError, match="prior of Gaussian.*already"):
        StochasticLinear(2, 3, distribution="bernoulli", prior=shared)
    with pytest.raises(ValueError, match="Uniform: its parameters depend on each other"):
        activations.FromPyro(dist.Uniform)
    with pytest.raises(ValueError, match="'obs' have the names of sites"):
        model_of(nn.ModuleDict({"obs": StochasticLinear(2, 3, prior="standard")}))


@pytest.mark.parametrize("distribution", [activations.Gaussian("raw"), activations.Gaussian("exp"), "laplace"])
def test_make_stochastic_starts_at_its_scale(distribution: Any) -> None:
    net = make_stochastic(nn.Sequential(nn.Linear(3, 4)), "0", distribution=distribution, prior=None, scale=0.1)
    scale = net[0].activation_distribution(torch.randn(5, 3)).scale  # type: ignore[index, operator]
    assert torch.allclose(scale, torch.full_like(scale, 0.1))


def test_make_stochastic_loses_nothing() -> None:
    normed = nn.Sequential(nn.Linear(3, 4))
    torch.nn.utils.prune.l1_unstructured(normed[0], "weight", amount=0.5)
    shared, tied, fixed = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3)
    tied[1].weight = tied[0].weight
    cases = {
        "hooks": normed,
        "several names": nn.Sequential(shared, nn.ReLU(), shared),
        "shares a parameter with '1.weight'": tied,
        "fixed": nn.Sequential(fixed.requires_grad_(False)),
    }
    for reason, net in cases.items():
        with pytest.raises(ValueError, match=f"'0' cannot be replaced.*{reason}"):
            make_stochastic(net, "0")


def test_a_guide_of_another_model_is_refused() -> None:
    model = model_of(network(StochasticLinear(3, 2, prior="standard"), nn.Linear(2, 2)))
    guide = ps.guides.Amortised(model)
    x, y = data()
    other, alone = copy.deepcopy(model), copy.deepcopy(guide)
    with pytest.raises(ValueError, match=r"layer '0'.*another model's layer"):
        Trace_ELBO().loss(other, alone, x, y)
    together = copy.deepcopy((model, guide))
    Trace_ELBO().loss(*together, x, y)
    ps.ELBO().loss(other, alone, x, y)  # draws in the model itself


def test_frozen_noise_makes_the_score_gradient_a_function() -> None:
    model = model_of(network(StochasticLinear(3, 2, distribution="bernoulli", gradient="score"), nn.Linear(2, 2)))
    x, y = data()
    loss, bias = ps.ELBO()(model, ps.guides.Additive(model)), model.net[0].kernel.bias  # type: ignore[index, union-attr]
    with ps.effects.frozen_noise(num=3, seed=0):
        first, second = (torch.autograd.grad(loss(x, y), bias)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", [activations.Poisson(), activations.Binomial(4), activations.FromPyro(dist.Gamma)])
def test_draws_by_rejection_do_not_look_as_if_examples_met(family: Any) -> None:
    net = nn.Sequential(StochasticLinear(2, 4, distribution=family), nn.Linear(4, 1))
    model = ps.BayesianModel(net, prior={"1.weight": ps.priors.Normal()}, likelihood=GAUSSIAN, num_data=60)
    x, y = torch.randn(60, 2), torch.randn(60, 1)
    assert not model.examples_meet(x)
    terms = ps.ELBO().terms(model, ps.guides.Additive(model), x, y)
    assert terms.treatments["1.weight"] == "local (exact)"
    meeting = ps.BayesianModel(nn.Sequential(net, nn.Softmax(0)), likelihood=GAUSSIAN, num_data=60)
    assert meeting.examples_meet(x)


def test_score_with_random_weights_behind_it_and_batches_of_any_size() -> None:
    net = network(StochasticLinear(3, 3, distribution="bernoulli", gradient="score", prior="learned"), nn.Linear(3, 2))
    model = model_of(net, prior={"1.weight": ps.priors.Normal()})
    guide = ps.guides.Additive(model)
    for count in (5, 3, 8):
        terms = ps.ELBO().terms(model, guide, *data(count))
        torch.as_tensor(terms.loss()).backward()
        assert terms.treatments["1.weight"] == "local (exact)"
    x, y = data(N)
    ps.fit(model, guide, (x, y), epochs=1, batch_size=7, progress=False, compile=False)


@pytest.mark.parametrize("wrapped", [False, True])
def test_priors_outside_of_a_bayesian_model_are_refused(wrapped: bool) -> None:
    """In a Pyro model of somebody's own, the rate would be missing."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = StochasticLinear(3, 4, prior="standard")
            self.two = ps.layers.Linear(4, 2, prior=ps.priors.Normal())

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            out = self.two(self.one(x))
            with pyro.plate("data", N, subsample=torch.arange(len(x))):
                found: Tensor = pyro.sample("obs", dist.Categorical(logits=out), obs=y)  # type: ignore[assignment]
            return found

    net, (x, y) = Own().double(), data()
    assert net(x).shape == y.shape  # a call alone draws
    with pytest.raises(ValueError, match="prior.*use (one|BayesianModel), or prior=None"):
        if wrapped:
            ps.layers.PyroNetwork(net)
        poutine.trace(net).get_trace(x, y)


def test_baseline_is_the_cost_of_the_data_set_in_batches_of_any_size() -> None:
    torch.manual_seed(0)
    layer = StochasticLinear(3, 4, distribution="bernoulli", gradient="score", prior="standard")
    model = model_of(network(layer, nn.Linear(4, 2)))
    guide = ps.guides.Additive(model)
    x, y = torch.zeros(8, 3, dtype=F64), torch.zeros(8).long()  # examples cost the same on average
    found = []
    for batch in (8, 2, 1) * 40:
        ps.ELBO()(model, guide)(x[:batch], y[:batch])
        found.append((layer.average_cost / layer.cost_steps).item())
    with torch.no_grad():
        cost = torch.stack([ps.ELBO()(model, guide)(x, y) for _ in range(100)]).mean().item()
    assert 0.3 * cost < min(found) and max(found) < 3.0 * cost, (cost, found)

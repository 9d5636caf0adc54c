"""Random activations as Pyro sites: the ELBO and its gradients against Pyro's and against enumeration."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from stochastic import F64, B, N, assert_same_mean, data, mean_and_error, model_of, network
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.layers import StochasticLayer, StochasticLinear, activations
from pyrostoch.training.trainer import NonFiniteLossError

FAMILIES: dict[str, Callable[[], dict[str, Any]]] = {
    "Gaussian": lambda: {"prior": "standard"},
    "Gaussian, learned": lambda: {"prior": "learned"},
    "Gaussian, mixture": lambda: {"prior": activations.Mixture(3, (4,))},
    "Gaussian, given": lambda: {"prior": dist.Normal(0.5, 2.0)},
    "raw": lambda: {"distribution": activations.Gaussian("raw"), "prior": "standard"},
    "Laplace": lambda: {"distribution": "laplace", "prior": dist.Normal(0.0, 1.0)},
    "LogNormal": lambda: {"distribution": activations.LogNormal(), "prior": "standard"},
    "Bernoulli": lambda: {"distribution": "bernoulli", "prior": "standard"},
    "Bernoulli, score": lambda: {"distribution": "bernoulli", "prior": dist.Bernoulli(0.3), "gradient": "score"},
    "Categorical": lambda: {"distribution": activations.Categorical(), "prior": "learned"},
    "Multinomial, score": lambda: {
        "distribution": activations.Multinomial(3),
        "prior": "standard",
        "gradient": "score",
    },
    "Poisson": lambda: {"distribution": "poisson", "prior": "standard"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_elbo_has_the_expectation_of_pyros(name: str) -> None:
    net = network(StochasticLinear(3, 4, **FAMILIES[name]()), nn.Tanh(), nn.Linear(4, 2))
    model = model_of(net, prior={"2.weight": ps.priors.Normal()})
    guide = ps.guides.Amortised(model, weights=ps.guides.Additive(model))
    x, y = data()
    with torch.no_grad():
        ours = mean_and_error(lambda: ps.ELBO("shared")(model, guide)(x, y), 200)
        assert_same_mean(ours, mean_and_error(lambda: Trace_ELBO().loss(model, guide, x, y), 300))
        if name in ("Gaussian", "Laplace", "raw"):
            assert_same_mean(ours, mean_and_error(lambda: TraceMeanField_ELBO().loss(model, guide, x, y), 200))
        plain = mean_and_error(lambda: ps.ELBO("local")(model, ps.guides.Additive(model))(x, y), 200)
        assert_same_mean(ours, plain)


@pytest.mark.parametrize("hidden", [[], ["0"]])
def test_automatic_guides_of_pyro(hidden: list[str]) -> None:
    model = model_of(
        network(StochasticLinear(3, 4, prior="standard"), nn.Tanh(), nn.Linear(4, 2)), {"2.weight": ps.priors.Normal()}
    )
    guide = AutoNormal(poutine.block(model, hide=hidden))
    guide = ps.guides.Amortised(model, weights=guide) if hidden else guide
    x, y = data()
    Trace_ELBO().loss(model, guide, x, y)
    with torch.no_grad():
        ours = mean_and_error(lambda: ps.ELBO("shared")(model, guide)(x, y), 100)
        assert_same_mean(ours, mean_and_error(lambda: Trace_ELBO().loss(model, guide, x, y), 100))


def enumerated(net: nn.Sequential, x: Tensor, y: Tensor, prior: Tensor, rate_weight: float = 1.0) -> Tensor:
    """The negative ELBO of a network whose first layer has Bernoulli activations, over all of their values."""
    (logits,) = net[0].outputs(x)  # type: ignore[operator]
    probs, total = logits.sigmoid(), torch.zeros(len(x), dtype=F64)
    for values in itertools.product((0.0, 1.0), repeat=logits.shape[1]):
        h = torch.tensor(values, dtype=F64).expand_as(logits)
        weight = torch.where(h > 0.5, probs, 1.0 - probs).prod(1)
        out = net[1:](h)  # type: ignore[index]
        log_prob = dist.Categorical(logits=out).log_prob(y)
        total = total + weight * log_prob
    kl = probs * (probs / prior).log() + (1.0 - probs) * ((1.0 - probs) / (1.0 - prior)).log()
    return (N / len(x)) * (rate_weight * kl.sum(1) - total).sum()


@pytest.mark.parametrize("rate_weight", [1.0, 0.3])
def test_score_gradients_are_those_of_enumeration(rate_weight: float) -> None:
    net = network(
        StochasticLinear(3, 3, distribution="bernoulli", gradient="score", prior=dist.Bernoulli(0.3)),
        nn.Linear(3, 4),
        nn.Tanh(),
        nn.Linear(4, 2),
    )
    model = model_of(net)
    guide = ps.guides.Amortised(model)
    x, y = data()
    names = [name for name, _ in net.named_parameters()]

    def gradients(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [net.get_parameter(n) for n in names])])

    truth = enumerated(net, x, y, torch.tensor(0.3, dtype=F64), rate_weight)
    expected = gradients(truth)
    loss = ps.ELBO(rate_weight=rate_weight)(model, guide)
    with torch.no_grad():
        assert_same_mean(mean_and_error(lambda: loss(x, y), 150), (truth.detach(), torch.zeros((), dtype=F64)))
    assert model._keeps_examples_apart(x)  # so that each example has its own cost
    found = mean_and_error(lambda: gradients(loss(x, y)), 400)
    assert_same_mean(found, (expected, torch.zeros_like(expected)))
    assert (expected.abs() > 5.0 * found[1]).float().mean() > 0.5  # the comparison says something
    if rate_weight == 1.0:
        surrogate = TraceGraph_ELBO()
        with pyro.get_param_store().scope():

            def pyros() -> Tensor:
                net.zero_grad()
                surrogate.loss_and_grads(model, guide, x, y)
                return torch.cat([net.get_parameter(n).grad.flatten() for n in names])  # type: ignore[union-attr]

            assert_same_mean(mean_and_error(pyros, 150), (expected, torch.zeros_like(expected)))


def test_rate_without_a_prior_is_zero_and_the_score_still_counts() -> None:
    net = network(StochasticLinear(2, 1, distribution="bernoulli", gradient="score"), nn.Linear(1, 2))
    model = model_of(net)
    x, y = data(4, 2)
    (logits,) = net[0].outputs(x)  # type: ignore[operator, index]
    truth: Any = 0.0
    for h in (0.0, 1.0):
        log_prob = dist.Categorical(logits=net[1](torch.full((4, 1), h, dtype=F64))).log_prob(y)  # type: ignore[index]
        truth = truth - (logits if h else -logits).sigmoid()[:, 0] * log_prob
    weight = net[0].kernel.weight  # type: ignore[index, union-attr]
    (expected,) = torch.autograd.grad(N / 4 * truth.sum(), weight)
    loss = ps.ELBO()(model, ps.guides.Additive(model))
    found = mean_and_error(lambda: torch.autograd.grad(loss(x, y), weight)[0], 1000)
    assert_same_mean(found, (expected, torch.zeros_like(expected)))
    assert float(ps.ELBO().terms(model, ps.guides.Additive(model), x, y).rate) == 0.0


def test_rates_of_layers_in_a_row_and_of_one_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = StochasticLinear(3, 3, prior="standard"), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            return self.out(self.layer(torch.tanh(self.layer(x))))

    model = model_of(Twice())
    guide = ps.guides.Amortised(model)
    x, y = data()
    terms = ps.ELBO().terms(model, guide, x, y)
    assert list(terms.rates) == ["layer", "layer:2"]
    with torch.no_grad():
        ours = mean_and_error(lambda: ps.ELBO()(model, guide)(x, y), 150)
        assert_same_mean(ours, mean_and_error(lambda: Trace_ELBO().loss(model, guide, x, y), 300))
    trace = poutine.trace(guide).get_trace(x, y)
    assert {"layer", "layer:2"} <= set(trace.nodes)


def test_activations_with_time_first_or_folded_tokens_are_scaled_to_the_data() -> None:
    class Folded(nn.Module):
        def __init__(self, fold: bool) -> None:
            super().__init__()
            self.fold, self.layer = fold, StochasticLinear(3, 2, prior="standard")

        def forward(self, x: Tensor) -> Any:
            h = x.flatten(0, 1) if self.fold else x
            return self.layer(h).unflatten(0, x.shape[:2]).sum(1) if self.fold else self.layer(h).sum(1)

    x, y = torch.randn(B, 5, 3, dtype=F64), torch.randint(0, 2, (B,))
    plain, folded = model_of(Folded(False)), model_of(Folded(True))
    folded.net.load_state_dict(plain.net.state_dict())
    empty = ps.guides.Additive(plain)
    rates = [ps.ELBO().terms(model, empty, x, y).rate for model in (plain, folded)]
    assert torch.allclose(*map(torch.as_tensor, rates))
    guide = ps.guides.Amortised(folded)
    with torch.no_grad():
        ours = mean_and_error(lambda: ps.ELBO()(folded, guide)(x, y), 100)
        assert_same_mean(ours, mean_and_error(lambda: Trace_ELBO().loss(folded, guide, x, y), 200))


def test_condition_replay_and_predictive() -> None:
    net = network(StochasticLinear(3, 2, prior="standard"), nn.Linear(2, 2))
    model = model_of(net)
    guide = ps.guides.Amortised(model)
    x, y = data()
    h = torch.randn(B, 2, dtype=F64)
    conditioned = poutine.condition(model, data={"0": h})
    trace = poutine.trace(conditioned).get_trace(x, y)
    expected = N / B * (dist.Normal(0.0, 1.0).log_prob(h).sum() + dist.Categorical(logits=net[1](h)).log_prob(y).sum())  # type: ignore[index]
    assert torch.allclose(trace.log_prob_sum(), expected)
    terms = ps.ELBO().terms(conditioned, ps.guides.Additive(model), x, y)
    assert torch.allclose(torch.as_tensor(terms.data), expected) and not terms.rates
    # Without a guide the model is the generative one: activations do not depend on x.
    torch.manual_seed(3)
    first = poutine.trace(model).get_trace(x).nodes["0"]["value"]
    torch.manual_seed(3)
    assert torch.equal(first, poutine.trace(model).get_trace(x + 1.0).nodes["0"]["value"])
    drawn = Predictive(model, guide=guide, num_samples=400)(x)["0"]
    q = net[0].activation_distribution(x)  # type: ignore[index, operator]
    assert ((drawn.mean(0) - q.mean).abs() <= 5.0 * q.stddev / 20.0).all()


def test_a_guide_written_by_hand() -> None:
    net = network(StochasticLinear(3, 2, prior="standard"), nn.Linear(2, 2))
    model = model_of(net)
    x, y = data()

    def by_hand(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", size=N, subsample=torch.arange(len(x))):
            pyro.sample("0", dist.Normal(x[:, :2], 0.5).to_event(1))

    with torch.no_grad():
        ours = mean_and_error(lambda: ps.ELBO().differentiable_loss(model, by_hand, x, y), 150)
        assert_same_mean(ours, mean_and_error(lambda: Trace_ELBO().loss(model, by_hand, x, y), 300))


def test_stock_svi_and_ours_learn_the_same() -> None:
    x = torch.randn(N, 3, dtype=F64)
    y = (x[:, 0] > 0).long()
    losses = []
    for elbo in (ps.ELBO(), TraceMeanField_ELBO()):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = model_of(network(StochasticLinear(3, 4, prior="learned"), nn.Linear(4, 2)))
        guide = ps.guides.Amortised(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
        for _ in range(200):
            svi.step(x, y)
        with torch.no_grad():
            losses.append(mean_and_error(lambda: ps.ELBO()(model, guide)(x, y), 100)[0].item())  # noqa: B023
        start = StochasticLinear(3, 4, prior="learned").prior
        assert not torch.equal(model.net[0].prior.outputs[1], start.outputs[1].double())  # type: ignore[index, union-attr]
    assert abs(losses[0] - losses[1]) < 0.1 * losses[0]


def test_priors_parameters_are_not_made_random() -> None:
    net = network(StochasticLinear(3, 2, prior="learned"), StochasticLinear(2, 2, prior=activations.Mixture(2, (2,))))
    assert list(model_of(net, prior=ps.priors.Normal()).sites) == ["0.kernel.weight", "1.kernel.weight"]
    named = model_of(net, prior={"0.prior.outputs.0": ps.priors.Normal()})
    assert list(named.sites) == ["0.prior.outputs.0"]


def test_save_load_copy_and_pickle(tmp_path: Any) -> None:
    def build() -> tuple[ps.BayesianModel, nn.Module]:
        net = nn.Sequential(
            StochasticLinear(3, 2, prior="learned"),
            StochasticLinear(2, 2, distribution="bernoulli", gradient="score", prior=dist.Bernoulli(0.2)),
            StochasticLinear(2, 2, prior=activations.Mixture(2, (2,))),
        )
        model = ps.BayesianModel(net, prior=None, likelihood=ps.likelihoods.Categorical(), num_data=N)
        return model, ps.guides.Amortised(model)

    (model, guide), (other, other_guide) = build(), build()
    x, y = data()
    x = x.float()
    ps.fit(model, guide, (x.repeat(5, 1), y.repeat(5)), epochs=1, batch_size=8, progress=False, compile=False)
    ps.save(tmp_path / "a.safetensors", model, guide)
    ps.load(tmp_path / "a.safetensors", other, other_guide)
    for copied in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(1)
        loss = ps.ELBO()(model, ps.guides.Additive(model))(x, y)
        torch.manual_seed(1)
        assert torch.equal(loss, ps.ELBO()(copied, ps.guides.Additive(copied))(x, y))


@pytest.mark.parametrize("mode", ["mean", "noise-free", "mc:3", "moments"])
def test_predictions_draw_from_the_posterior(mode: str) -> None:
    net = network(StochasticLinear(3, 4, prior=dist.Normal(50.0, 0.1)), nn.Linear(4, 2))
    model = model_of(net, prior={"1.weight": ps.priors.Normal()})
    x, _ = data()
    plain = copy.deepcopy(net)
    plain[0].prior = None  # type: ignore[index, union-attr]
    without = model_of(plain, prior={"1.weight": ps.priors.Normal()})
    guide = ps.guides.Additive(model)
    found = ps.predict(model, ps.guides.Amortised(model, weights=guide), x, mode=mode, seed=0)
    expected = ps.predict(without, guide, x, mode=mode, seed=0)
    assert torch.allclose(found.probs, expected.probs)  # type: ignore[arg-type]


def test_refusals() -> None:
    x, y = data()
    layer = StochasticLinear(3, 2, distribution="bernoulli", gradient="score").double()
    with pytest.raises(ValueError, match="score"):
        layer(x)
    with torch.no_grad():
        layer(x)
    with pytest.raises(ValueError, match="not called by a BayesianModel"):
        ps.effects.call_network(StochasticLinear(3, 2, prior="standard").double(), {}, (x,))
    model = model_of(network(StochasticLinear(3, 2, prior="standard")))
    with pytest.raises(ValueError, match="'0'.*rate.*'moments'"):
        ps.ELBO("moments").terms(model, ps.guides.Additive(model), x, y)
    with pytest.raises(ValueError, match="'0'.*rate"):
        ps.decompose(model, ps.guides.Additive(model), (x.repeat(5, 1), y.repeat(5)), estimator="moments")
    with pytest.raises(ValueError, match="random weights '0.kernel.weight'"):
        ps.guides.Amortised(model_of(network(StochasticLinear(3, 2)), prior=ps.priors.Normal()))
    mixed = model_of(network(StochasticLinear(3, 2, distribution="bernoulli", prior=activations.Mixture(2, (2,)))))
    with pytest.raises(ValueError, match=r"'0'.*no closed form.*gradient='score'"):
        ps.ELBO().terms(mixed, ps.guides.Additive(mixed), x, y)
    with torch.no_grad():
        ps.ELBO().terms(mixed, ps.guides.Additive(mixed), x, y)
    with pytest.raises(ValueError, match=r"Mixture.*\(3,\).*\(2,\)"):
        wrong = model_of(network(StochasticLinear(3, 2, prior=activations.Mixture(2, (3,)))))
        ps.ELBO().terms(wrong, ps.guides.Additive(wrong), x, y)
    with pytest.raises(ValueError, match="needs the shape"):
        StochasticLayer(lambda: nn.Linear(3, 2), prior="learned")
    with pytest.raises(TypeError, match="prior"):
        StochasticLinear(3, 2, prior=3)  # type: ignore[arg-type]
    shapeless = ps.BayesianModel(
        network(StochasticLinear(3, 2, prior="standard")),
        likelihood=ps.likelihoods.Categorical(),
        num_data=B,
        in_dims=None,
    )
    with pytest.raises(ValueError, match="in_dims"):
        shapeless(x)


def test_a_scale_of_zero_is_named() -> None:
    net = network(StochasticLinear(3, 2, distribution=activations.Gaussian("raw"), prior="standard"))
    with torch.no_grad():
        net[0].kernel.weight[2:].zero_()  # type: ignore[index, union-attr]
        net[0].kernel.bias[2:].zero_()  # type: ignore[index, union-attr]
    model = model_of(net)
    x, y = data(N)
    with pytest.raises(ValueError, match=r"layer '0'.*scale"):
        ps.ELBO().terms(model, ps.guides.Additive(model), x, y)
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*rate of layer '0'"):
        ps.fit(model, ps.guides.Additive(model), (x, y), epochs=1, progress=False, compile=False)

"""States of neurons as Pyro sites: enumeration, log probabilities and conditioning, also in a BayesianModel."""

from __future__ import annotations

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from torch import nn

import pyrostoch as ps
from pyrostoch.estimators import StateSites, enumerated
from pyrostoch.layers import Binary, Ternary

F64 = {"dtype": torch.float64}


def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), Ternary(), nn.Linear(4, 3), Binary(), nn.Linear(3, 3)).double()
    return net, torch.randn(6, 3, **F64), torch.randint(0, 3, (6,))


def model(net, x, y, **settings):
    with pyro.plate("data", len(x)), StateSites(net, **settings):
        pyro.sample("obs", dist.Categorical(logits=net(x)), obs=y)


def empty_guide(*_):
    pass


def test_pyros_enumeration_is_the_exact_likelihood_with_its_gradient():
    net, x, y = problem()

    def enumerable(x, y):
        model(net, x, y, enumerate=True)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(enumerable, empty_guide, x, y)
    exact = 6 * enumerated(net, x, lambda out: F.cross_entropy(out, y, reduction="none"), log_mean_exp=True)
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0.0)
    gradients = (torch.autograd.grad(value, list(net.parameters())) for value in (loss, exact))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_log_probabilities_are_those_of_the_layers():
    net, x, y = problem()
    trace = poutine.trace(model).get_trace(net, x, y)
    trace.compute_log_prob()
    states = trace.nodes["1"]["value"]
    assert states.shape == (6, 4) and not states.is_floating_point()
    probabilities = net[1].probabilities(net[0](x))
    chosen = probabilities.gather(-1, states.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(trace.nodes["1"]["log_prob"], chosen.log().sum(-1))
    # The next layer's input is the states' values.
    second = net[3].probabilities(net[2](torch.tensor([-1.0, 0.0, 1.0], **F64)[states]))
    chosen = second.gather(-1, trace.nodes["3"]["value"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(trace.nodes["3"]["log_prob"], chosen.log().sum(-1))


def test_states_can_be_conditioned():
    net, x, y = problem()
    fixed = torch.zeros(6, 4, dtype=torch.long)
    trace = poutine.trace(poutine.condition(model, {"1": fixed})).get_trace(net, x, y)
    assert trace.nodes["1"]["is_observed"]
    expected = net[2](torch.full((6, 4), -1.0, **F64))
    logits = net[3].probabilities(expected).log()
    torch.testing.assert_close(trace.nodes["3"]["fn"].base_dist.logits.softmax(-1), logits.softmax(-1))


@pytest.mark.parametrize("shape", [(2, 3, 3), (5,)])
def test_a_layer_of_any_shape_is_one_site(shape):
    neurons = Ternary()
    net = nn.Sequential(neurons)
    x = torch.randn(4, *shape)
    with pyro.plate("data", 4), StateSites(net):
        out = net(x)
    assert out.shape == x.shape and set(out.flatten().tolist()) <= {-1.0, 0.0, 1.0}


def test_in_a_bayesian_model_sites_are_scaled_like_the_observations():
    net, x, y = problem()
    bayesian = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=60)
    with StateSites(bayesian):
        trace = poutine.trace(bayesian).get_trace(x, y)
    trace.compute_log_prob()
    sites = {name: trace.nodes[name] for name in ("1", "3", "obs")}
    assert all(float(site["scale"]) == 10.0 for site in sites.values())
    assert len({site["cond_indep_stack"] for site in sites.values()}) == 1
    assert all(site["log_prob"].shape == (6,) for site in sites.values())


def test_a_guide_of_states_is_trained_by_svi():
    pyro.clear_param_store()
    torch.manual_seed(0)
    net, x, y = problem()

    def model_of_data(x, y):
        model(net, x, y)

    def guide(x, y):
        with pyro.plate("data", 6):
            for name, count, choices in (("1", 4, 3), ("3", 3, 2)):
                logits = pyro.param(f"logits/{name}", torch.zeros(6, count, choices, **F64))
                pyro.sample(name, dist.Categorical(logits=logits).to_event(1))

    svi = SVI(model_of_data, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.TraceGraph_ELBO(num_particles=2))
    losses = [svi.step(x, y) for _ in range(120)]
    assert sum(losses[-30:]) < 0.9 * sum(losses[:30])
    pyro.clear_param_store()


def test_enumeration_in_a_bayesian_model_and_unknown_layers_are_refused():
    net, x, y = problem()
    with pytest.raises(ValueError, match="enumeration adds axes in front of the examples"):
        StateSites(ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=60), enumerate=True)
    with pytest.raises(ValueError, match="met a Ternary that is not in the given network"):
        other = nn.Sequential(nn.Linear(3, 3))
        with pyro.plate("data", 6), StateSites(other):
            net(x)


def test_neurons_with_thresholds_of_their_own_are_enumerated_after_others():
    torch.manual_seed(0)
    neurons = Ternary(learn="thresholds", num=3)
    neurons.first_threshold.data = torch.tensor([-2.0, -0.5, 1.0])
    net = nn.Sequential(nn.Linear(3, 4), Ternary(), nn.Linear(4, 3), neurons, nn.Linear(3, 3)).double()
    x, y = torch.randn(6, 3, **F64), torch.randint(0, 3, (6,))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(lambda x, y: model(net, x, y, enumerate=True), empty_guide, x, y)
    exact = 6 * enumerated(net, x, lambda out: F.cross_entropy(out, y, reduction="none"), log_mean_exp=True)
    assert loss == pytest.approx(exact.item(), rel=1e-12)

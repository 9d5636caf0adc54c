"""`BayesianModel`: its use with Pyro and torch, and the errors it raises."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from torch import nn

import pyrostoch as ps

F64 = {"dtype": torch.float64}


def mlp():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def model_of(net=None, prior=None, likelihood=None, num_data=20):
    return ps.BayesianModel(
        mlp() if net is None else net,
        prior=ps.priors.Normal() if prior is None else prior,
        likelihood=ps.likelihoods.Gaussian(0.5) if likelihood is None else likelihood,
        num_data=num_data,
    )


def data(count=20):
    x = torch.randn(count, 2)
    return x, x.sum(1, keepdim=True)


def test_the_drawn_weights_are_the_ones_used():
    model = model_of()
    x, y = data()
    trace = poutine.trace(model).get_trace(x, y)
    first, second = trace.nodes["0.weight"]["value"], trace.nodes["2.weight"]["value"]
    net = model.net
    by_hand = torch.tanh(x @ first.T + net[0].bias) @ second.T + net[2].bias
    assert torch.allclose(trace.nodes["obs"]["fn"].base_dist.loc, by_hand, atol=1e-6)
    assert trace.nodes["obs"]["scale"] == pytest.approx(1.0)
    assert poutine.trace(model).get_trace(x[:5], y[:5]).nodes["obs"]["scale"] == pytest.approx(4.0)


def test_the_users_network_keeps_its_parameters():
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    model = model_of(net)
    x, y = data()
    ps.ELBO()(model, ps.guides.Additive(model))(x, y).backward()
    assert model.net is net and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert isinstance(net[0].weight, nn.Parameter) and not net[0].weight.requires_grad
    assert net[0].bias.requires_grad and net[0].bias.grad is not None


def test_conditioning_and_predictive():
    model = model_of()
    x, _ = data()
    weights = {"0.weight": torch.zeros(4, 2), "2.weight": torch.zeros(1, 4)}
    trace = poutine.trace(poutine.condition(model, weights)).get_trace(x, None)
    assert torch.allclose(
        trace.nodes["obs"]["fn"].base_dist.loc,
        (torch.tanh(model.net[0].bias) @ torch.zeros(4) + model.net[2].bias).expand(20, 1),
    )
    guide = ps.guides.Additive(model)
    samples = Predictive(model, guide=guide, num_samples=7)(x)
    assert samples["obs"].shape == (7, 20, 1)
    prior = Predictive(model, num_samples=5)(x)
    assert prior["0.weight"].shape == (5, 1, 4, 2)  # Pyro adds an axis for the plate


def test_stock_elbo_and_autoguides_work():
    from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal

    x, y = data()
    for make in (AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal):
        pyro.clear_param_store()
        model = model_of()
        svi = pyro.infer.SVI(model, make(model), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        losses = [svi.step(x, y) for _ in range(150)]
        assert sum(losses[-20:]) < sum(losses[:20])


def test_nuts_recovers_the_conjugate_posterior():
    net = nn.Linear(2, 1, bias=False, **F64)
    model = model_of(net)
    x, y = (t.double() for t in data())
    mcmc = MCMC(NUTS(model), num_samples=300, warmup_steps=150, disable_progbar=True)
    mcmc.run(x, y)
    draws = mcmc.get_samples()["weight"][:, 0]
    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(2, **F64))
    mean = covariance @ (x.T @ y)[:, 0] / 0.25
    assert torch.allclose(draws.mean(0), mean, atol=5 * covariance.diagonal().max().sqrt().item() / 300**0.5)
    assert torch.allclose(draws.T.cov(), covariance, atol=0.3 * covariance.abs().max().item())


def test_nuts_under_an_improper_prior_is_refused_by_name():
    model = model_of(prior=ps.priors.LogUniform())
    with pytest.raises(ValueError, match="LogUniform is an improper prior"):
        MCMC(NUTS(model), num_samples=2, warmup_steps=1, disable_progbar=True).run(*data())


def test_dtype_moves_with_the_model():
    model = model_of(likelihood=ps.likelihoods.Gaussian(0.3, learn=True)).double()
    guide = ps.guides.Additive(model)
    x, y = (t.double() for t in data())
    loss = ps.ELBO()(model, guide)(x, y)
    loss.backward()
    assert loss.dtype == torch.float64 and model.prior("0.weight").scale.dtype == torch.float64
    assert poutine.trace(model).get_trace(x, y).nodes["0.weight"]["value"].dtype == torch.float64


def test_deepcopy_pickle_and_state_dict():
    model = model_of()
    guide = ps.guides.NeuronwiseAlpha(model)
    x, y = data()
    ps.ELBO()(model, guide)(x, y)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other = ps.guides.NeuronwiseAlpha(duplicate)
        other.load_state_dict(guide.state_dict())
        torch.manual_seed(0)
        first = ps.ELBO()(model, guide)(x, y)
        torch.manual_seed(0)
        assert torch.equal(first, ps.ELBO()(duplicate, other)(x, y))
        duplicate.net[0].weight.data.zero_()
        assert model.net[0].weight.abs().sum() > 0


def test_repr_of_a_site():
    text = "Site('0.weight', weight of shape (4, 2), prior Normal(loc=0, scale=1))"
    assert repr(model_of().sites["0.weight"]) == text


def test_tuples_of_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 1), nn.Linear(3, 1)

        def forward(self, u, v):
            return self.a(u) + self.b(v)

    model = model_of(Two())
    x, y = (torch.randn(20, 2), torch.randn(20, 3)), torch.randn(20, 1)
    assert torch.isfinite(ps.ELBO()(model, ps.guides.Additive(model))(x, y))


def test_random_noise_is_a_site():
    model = model_of(likelihood=ps.likelihoods.Gaussian(dist.Gamma(2.0, 4.0)))
    assert model.sites["likelihood.scale"].init == pytest.approx(0.5)
    guide = ps.guides.LayerwiseAlpha(model)
    loss = ps.ELBO()(model, guide)
    loss(*data()).backward()
    assert all(p.grad is not None for p in guide.parameters())
    assert (guide()["likelihood.scale"] > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_data": None}, "num_data: expected the number of training examples, got None"),
        ({"num_data": 0}, "num_data"),
        ({"num_data": True}, "num_data"),
        ({"likelihood": None}, "likelihood is missing"),
        ({"likelihood": "gaussian"}, "likelihood: expected"),
        ({"likelihood": ps.likelihoods.Gaussian}, "likelihood: expected"),
        ({"prior": "normal"}, "prior: expected"),
        ({"prior": {"0.wieght": ps.priors.Normal()}}, "matches no parameter; the network has '0.weight'"),
    ],
)
def test_bad_constructions(change, message):
    arguments = {"prior": ps.priors.Normal(), "likelihood": ps.likelihoods.Gaussian(), "num_data": 5} | change
    with pytest.raises((ValueError, TypeError), match=message):
        ps.BayesianModel(mlp(), **arguments)


def test_a_layers_own_prior_may_be_overruled():
    layer = ps.layers.Linear(2, 1, prior=ps.priors.Normal())
    assert not layer.weight.requires_grad
    model = model_of(nn.Sequential(layer), prior={"0.weight": None})
    assert not model.sites and layer.weight.requires_grad
    ps.ELBO()(model, ps.guides.Additive(model))(*data()).backward()
    assert layer.weight.grad.abs().sum() > 0


def test_a_failed_construction_changes_nothing():
    net = mlp()
    with pytest.raises(ValueError):
        ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(5, 2), torch.zeros(5), r"expected targets of shape \(5, 1\).*got \(5,\)"),
        (torch.zeros(5, 2), torch.zeros(4, 1), "5 inputs and 4 targets"),
        (torch.zeros(0, 2), torch.zeros(0, 1), "empty batch"),
        (torch.zeros(21, 2), torch.zeros(21, 1), "num_data: expected the size of the whole training set, got 20"),
        (torch.full((5, 2), float("nan")), torch.zeros(5, 1), "10 NaN or infinite entries.*row 0"),
        (torch.zeros(5, 2), torch.full((5, 1), float("inf")), "NaN or infinite"),
        ([1.0, 2.0], torch.zeros(2, 1), "inputs: expected a tensor"),
        (
            torch.zeros(5, 2).double(),
            torch.zeros(5, 1),
            r"inputs x are torch.float64, the network's weights are torch.float32",
        ),
        (torch.zeros(5, 2).byte(), torch.zeros(5, 1), r"inputs x are torch.uint8, .*x\.to\(torch.float32\)\)$"),
        (torch.zeros(5, 2), [0.0] * 5, "targets y: expected a tensor"),
    ],
)
def test_bad_data(x, y, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model_of()(x, y)


def test_a_class_in_place_of_a_prior_is_named():
    with pytest.raises(TypeError, match=r"got the class Laplace; use an instance: Laplace\(\)"):
        model_of(prior=ps.priors.Laplace)


def test_autoguides_work_with_a_random_prior_scale():
    from pyro.infer.autoguide import AutoNormal

    model = model_of(prior=ps.priors.Hierarchical())
    guide = AutoNormal(model)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(model, guide, *data())))


def test_a_parameter_that_is_pruned_after_the_model_was_built_is_named():
    model = ps.BayesianModel(
        nn.Linear(2, 1), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=3
    )
    nn.utils.prune.random_unstructured(model.net, "weight", amount=1)
    for call in (lambda: model.sites, lambda: model(torch.zeros(3, 2), torch.zeros(3, 1))):
        with pytest.raises(ValueError, match="'weight' of Linear is random, but is no parameter any more"):
            call()

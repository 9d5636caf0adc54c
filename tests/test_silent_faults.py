"""Silent errors of Bayesian networks: each case here gives the right result, or an error that names the cause."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import pyrostoch as ps
from pyrostoch.effects import LocalReparameterization, MeanPropagation, call_network, independent
from pyrostoch.infer.elbo import ESTIMATORS

# The estimators that draw weights; moment propagation is tested elsewhere.
DRAWN = [name for name in ESTIMATORS if not name.startswith("moments")]

F64 = {"dtype": torch.float64}


def model_of(net, prior=None, num_data=4, **kwargs):
    prior = ps.priors.Normal() if prior is None else prior
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(1.0), num_data=num_data, **kwargs)


def data_term(model, guide, x, y, estimator, draws=800):
    values = torch.stack([ps.ELBO(estimator).terms(model, guide, x, y).data.detach() for _ in range(draws)])
    return values.mean().item(), 5 * values.std().item() / math.sqrt(draws)


class Folded(nn.Module):
    """Applies a linear layer to every token of a sequence by folding tokens into the batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False, **F64)

    def forward(self, x):
        return self.linear(x.reshape(-1, 2)).reshape(*x.shape[:2], -1).mean(1)


@pytest.mark.parametrize("estimator", DRAWN)
def test_tokens_folded_into_the_batch_share_one_draw(estimator):
    net = Folded()
    nn.init.zeros_(net.linear.weight)
    model = model_of(net)
    guide = ps.guides.Additive(model, init_scale=1.0)
    x, y = torch.ones(4, 16, 2, **F64) / 2**0.5, torch.zeros(4, 1, **F64)
    if estimator == "marginal":
        prediction = ps.predict(model, guide, x, mode="mc:3000")
        assert prediction.epistemic.mean().item() == pytest.approx(1.0, abs=0.15)
    # All tokens of an example share one weight, so their mean is N(0, 1).
    mean, error = data_term(model, guide, x, y, estimator)
    assert abs(mean - (-4 * 0.5 * math.log(2 * math.pi) - 4 * 0.5)) < error
    assert "exact" not in ps.ELBO(estimator).terms(model, guide, x, y).treatments["linear.weight"]


@pytest.mark.parametrize("estimator", DRAWN)
@pytest.mark.parametrize("hide", ["block", "subclass"])
def test_placeholders_of_lazy_draws_are_never_read(estimator, hide):
    """Handlers between interpretation and network, and models that read their weights, see real draws."""

    class Reads(ps.BayesianModel):
        def outputs(self, x, weights):
            return x @ weights["weight"].T

    net = nn.Linear(2, 1, bias=False, **F64)
    nn.init.zeros_(net.weight)
    model = (
        Reads(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=4)
        if hide == "subclass"
        else model_of(net)
    )
    guide = ps.guides.Additive(model, init_scale=1.0)
    run = poutine.block(model, expose_types=["sample", "observe"]) if hide == "block" else model
    x, y = torch.eye(2, **F64).repeat(2, 1), torch.zeros(4, 1, **F64)
    mean, error = data_term(run, guide, x, y, estimator)
    assert abs(mean - (-4 * 0.5 * math.log(2 * math.pi) - 4 * 0.5)) < error


@pytest.mark.parametrize("estimator", DRAWN)
def test_guides_whose_sites_depend_on_each_other(estimator):
    net = nn.Linear(1, 1, **F64)
    model = model_of(net, prior={"*": ps.priors.Normal()}, num_data=3)

    def guide(x, y=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 1, **F64), 1.0).to_event(2))
        pyro.sample("bias", dist.Normal(-weight[0], 0.1).to_event(1))

    x, y = torch.ones(3, 1, **F64), torch.zeros(3, 1, **F64)
    mean, error = data_term(model, guide, x, y, estimator)
    assert abs(mean - (-3 * 0.5 * math.log(2 * math.pi) - 3 * 0.5 * 0.01)) < error


def test_a_users_mean_field_guide_can_mark_its_sites():
    model = model_of(nn.Linear(1, 1, bias=False), num_data=3)

    def guide(x, y=None):
        distribution = dist.Normal(torch.zeros(1, 1), 1.0).to_event(2)
        pyro.sample("weight", distribution, infer=independent())

    terms = ps.ELBO("local").terms(model, guide, torch.ones(3, 1), torch.zeros(3, 1))
    assert terms.treatments == {"weight": "local (exact)"}


def test_a_second_model_on_one_network_trains_what_the_first_had_made_random():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model_of(net)
    second = model_of(net, prior={"1.weight": ps.priors.Normal()})
    ps.ELBO()(second, ps.guides.Additive(second))(torch.ones(4, 2), torch.zeros(4, 1)).backward()
    assert net[0].weight.grad.abs().sum() > 0 and net[1].weight.grad is None
    net[0].bias.requires_grad_(False)  # frozen by the user, so it stays frozen
    model_of(net, prior=None)
    assert not net[0].bias.requires_grad


@pytest.mark.parametrize("estimator", DRAWN)
def test_a_network_that_writes_into_its_weights_leaves_the_guide_alone(estimator):
    class Masked(nn.Linear):
        def forward(self, x):
            self.weight.data *= 0.0
            return super().forward(x)

    model, x = model_of(Masked(2, 1)), torch.ones(4, 2)
    guide = ps.guides.Additive(model, init_loc=3.0)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    with MeanPropagation():
        model(x)
    ps.ELBO(estimator).terms(model, guide, x, torch.zeros(4, 1))
    ps.predict(model, guide, x, mode="mean")
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_use_that_is_new_since_the_first_pass_is_refused(estimator):
    class Later(nn.Linear):
        count = 1

        def forward(self, x):
            return super().forward(x) + (x @ self.weight.T if self.count > 1 else 0.0)

    net = Later(2, 1)
    model = model_of(net)
    loss = ps.ELBO(estimator)(model, ps.guides.Additive(model))
    loss(torch.ones(4, 2), torch.zeros(4, 1))
    net.count = 2
    with pytest.raises(RuntimeError, match=r"got 'weight' in torch\.Tensor\.T.*call again"):
        loss(torch.ones(4, 2), torch.zeros(4, 1))
    # From now on it is a shared draw.
    terms = ps.ELBO(estimator).terms(model, ps.guides.Additive(model), torch.ones(4, 2), torch.zeros(4, 1))
    assert terms.treatments["weight"] == "shared (its uses differ from pass to pass)"


def test_one_draw_in_two_calls_is_refused():
    net = nn.Linear(1, 1, bias=False)
    with LocalReparameterization():
        weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 1), 1.0).to_event(2), infer=independent())
        call_network(net, {"weight": weight}, (torch.ones(2, 1),))
        with pytest.raises(RuntimeError, match="site 'weight': the network is called twice with one draw"):
            call_network(net, {"weight": weight}, (torch.ones(2, 1),))


def test_a_parameter_read_through_another_reference_is_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(3, 2, bias=False)
            self.tied = [self.encoder.weight]

        def forward(self, x):
            return F.linear(self.encoder(x), self.tied[0].T).sum(-1, keepdim=True)

    model = model_of(Tied())
    with pytest.raises(RuntimeError, match="'encoder.weight'.*another reference"):
        ps.ELBO()(model, ps.guides.Additive(model))(torch.ones(4, 3), torch.zeros(4, 1))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_cached_parametrizations_do_not_outlive_a_draw():
    net = nn.Linear(2, 1, bias=False)
    parametrize.register_parametrization(net, "weight", Doubled())
    model = model_of(net)
    guide = ps.guides.Additive(model, init_scale=1.0)
    with parametrize.cached():
        losses = {ps.ELBO("shared")(model, guide)(torch.ones(4, 2), torch.zeros(4, 1)).item() for _ in range(3)}
        assert len(losses) == 3


def test_a_discrete_guide_with_a_closed_kl_is_refused_too():
    def model(x):
        pyro.sample("z", dist.Bernoulli(0.3))

    def guide(x):
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, requires_grad=True)))

    with pytest.raises(ValueError, match="guide site 'z': Bernoulli cannot be reparameterized"):
        ps.ELBO().differentiable_loss(model, guide, torch.ones(1))


def test_a_factor_in_the_guide_counts():
    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("extra", torch.tensor(5.0), has_rsample=True)

    x = torch.ones(1)
    assert ps.ELBO().loss(model, guide, x) == pytest.approx(5.0) == pytest.approx(Trace_ELBO().loss(model, guide, x))


def test_given_distributions_keep_their_settings():
    molchanov = ps.priors.as_prior(ps.distributions.LogUniform(approximation="molchanov"))
    q = dist.Normal(torch.tensor(1.0, **F64), 1.0)
    found = ps.distributions.kl_sum(q, molchanov.distribution("w", torch.Size()))
    assert molchanov.improper and found == ps.distributions.kl_log_uniform_molchanov(torch.zeros((), **F64))
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.tensor([1.0, 9.0]))
    )
    model = model_of(nn.Linear(2, 1, bias=False, **F64), prior=mixture)
    assert poutine.trace(model).get_trace(torch.ones(4, 2, **F64)).nodes["weight"]["value"].dtype == torch.float64
    loss = ps.ELBO()(model, ps.guides.Additive(model))(torch.ones(4, 2, **F64), torch.zeros(4, 1, **F64))
    assert torch.isfinite(loss)


class Named(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(2)))

    def forward(self, x):
        return sum((x * p).sum(-1, keepdim=True) for p in self.parameters())


def test_awkward_names():
    awkward = model_of(Named("keys", "values"))
    guide = ps.guides.Additive(awkward)
    assert torch.isfinite(ps.ELBO()(awkward, guide)(torch.ones(4, 2), torch.zeros(4, 1)))
    with pytest.raises(ValueError, match="'a/b'.*its name contains a '/'"):
        model_of(Named("a/b"))
    with pytest.raises(ValueError, match="'data', 'obs' have the names of sites that every model has"):
        model_of(Named("data", "obs"))


@pytest.mark.parametrize("guide", [ps.guides.VarianceOnly, ps.guides.WeightwiseAlpha, ps.guides.LayerwiseAlpha])
def test_weights_that_start_at_zero_can_learn(guide):
    net = nn.Embedding(3, 2, padding_idx=0)
    model = model_of(net)
    posterior = guide(model)
    x, y = torch.tensor([0, 1, 2, 0]), torch.ones(4, 2)
    loss = ps.ELBO("shared")(model, posterior)(x, y)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in posterior.parameters())
    empty = nn.Linear(2, 1)
    nn.init.zeros_(empty.weight)
    start = guide(model_of(empty)).site_distribution("weight").base_dist
    assert (start.stddev > 0).all()


def test_positive_weights_get_a_start():
    model = model_of(nn.Linear(2, 1), prior=dist.HalfNormal(1.0))
    loss = ps.ELBO()(model, ps.guides.Additive(model))(torch.ones(4, 2), torch.zeros(4, 1))
    assert torch.isfinite(loss)


def test_fp16_autocast_keeps_the_variance():
    net = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(net.weight)
    model = model_of(net, num_data=2000)
    for scale, size in ((1e-4, 1.0), (1e-2, 300.0)):
        guide = ps.guides.Additive(model, init_scale=scale)
        with torch.autocast("cpu", torch.float16), LocalReparameterization(), torch.no_grad():
            trace = poutine.trace(guide).get_trace(None)
            output = poutine.replay(model.observation, trace=trace)(torch.full((2000, 4), size)).mean
        assert output.float().std().item() == pytest.approx(2 * size * scale, rel=0.1)


def test_a_layers_prior_holds_wherever_its_tied_weight_is_found_first():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2, bias=False)
            self.second = ps.layers.Linear(2, 2, bias=False, prior=ps.priors.Normal())
            self.first.weight = self.second.weight

        def forward(self, x):
            return self.second(self.first(x))

    assert list(model_of(Tied(), prior=None).sites) == ["first.weight"]


def test_networks_that_sample_for_themselves():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + pyro.sample("z", dist.Normal(0.0, 1.0))

    model = model_of(Noisy(2, 1))
    base = ps.guides.Additive(model)

    def guide(x, y=None):
        base(x, y)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    assert torch.isfinite(ps.ELBO().differentiable_loss(model, guide, torch.ones(4, 2), torch.zeros(4, 1)))


def test_reading_the_sites_inside_a_traced_program_adds_no_sites():
    model = model_of(nn.Linear(2, 1))

    def program():
        return list(model.sites)

    assert not [name for name, node in poutine.trace(program).get_trace().nodes.items() if node["type"] == "sample"]


def test_buffers_that_alias_a_parameter():
    net = nn.Linear(2, 1)
    net.register_buffer("alias", net.weight)
    model = model_of(net)
    ps.ELBO()(model, ps.guides.Additive(model))(torch.ones(4, 2), torch.zeros(4, 1)).backward()


def test_vectorized_inference_is_refused_with_a_reason():
    model = model_of(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="site 'weight': expected a draw of shape"), pyro.plate("particles", 3, dim=-2):
        model(torch.ones(4, 2), torch.zeros(4, 1))

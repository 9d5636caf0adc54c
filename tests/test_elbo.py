"""The ELBO compared with exact results (conjugate regression, finite sums) and with Pyro's own ELBOs."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyrostoch as ps
from pyrostoch.infer.elbo import ESTIMATORS

# The estimators that draw; moments have their own tests.
DRAWN = [name for name in ESTIMATORS if not name.startswith("moments")]

F64 = {"dtype": torch.float64}
GUIDES = {
    "additive": lambda m: ps.guides.Additive(m, init_scale=0.3),
    "weight": lambda m: ps.guides.WeightwiseAlpha(m, init_log_alpha=-1.0),
    "neuron": lambda m: ps.guides.NeuronwiseAlpha(m, init_log_alpha=-1.0),
    "layer": lambda m: ps.guides.LayerwiseAlpha(m, init_log_alpha=-1.0),
    "variance": ps.guides.VarianceOnly,
    "uniform": lambda m: ps.guides.VarianceOnly(m, family="uniform"),
}


def regression(prior=None, net=None, num_data=12, noise=0.5, **kwargs):
    net = nn.Linear(3, 1, bias=False, **F64) if net is None else net
    model = ps.BayesianModel(
        net,
        prior=ps.priors.Normal(0.0, 0.8) if prior is None else prior,
        likelihood=ps.likelihoods.Gaussian(noise),
        num_data=num_data,
        **kwargs,
    )
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_data, 3, generator=generator, **F64)
    y = x @ torch.tensor([[0.5], [-1.0], [0.2]], **F64) + 0.3
    return model, x, y


def losses(elbo, model, guide, x, y, draws):
    with torch.no_grad():
        return torch.stack([torch.as_tensor(elbo.differentiable_loss(model, guide, x, y)) for _ in range(draws)])


def exact_elbo(guide, x, y, noise, prior_scale):
    """The closed form for Gaussian linear regression, which for independent weights depends on their moments only."""
    distribution = guide.site_distribution("weight")
    mean, variance = distribution.base_dist.mean[0].detach(), distribution.base_dist.variance[0].detach()
    squares = (y[:, 0] - x @ mean).square() + x.square() @ variance
    data = (-squares / (2 * noise**2) - math.log(noise) - 0.5 * math.log(2 * math.pi)).sum()
    kl = torch.distributions.kl_divergence(
        distribution.base_dist, dist.Normal(torch.zeros((), **F64), prior_scale)
    ).sum()
    return (data - kl).item()


@pytest.mark.parametrize("estimator", DRAWN)
@pytest.mark.parametrize("guide", GUIDES)
def test_equals_the_closed_form_of_conjugate_regression(guide, estimator):
    model, x, y = regression()
    guide = GUIDES[guide](model)
    found = -losses(ps.ELBO(estimator), model, guide, x, y, 500)
    assert abs(found.mean() - exact_elbo(guide, x, y, 0.5, 0.8)) < 5 * found.std() / math.sqrt(len(found))


def test_reaches_the_evidence_where_the_guide_holds_the_posterior():
    """With orthogonal inputs the posterior factorizes, so a guide can equal it; its ELBO is then the log evidence."""
    model, _, _ = regression(num_data=3)
    x = torch.diag(torch.tensor([1.0, 2.0, -0.5], **F64))
    y = torch.tensor([[0.3], [-1.0], [2.0]], **F64)
    precision = x.square().sum(0) / 0.25 + 1 / 0.64
    guide = ps.guides.Additive(
        model, init_loc=lambda s: (x.T @ y)[:, 0] / 0.25 / precision, init_scale=lambda s: precision.rsqrt()
    )
    evidence = dist.MultivariateNormal(torch.zeros(3, **F64), 0.64 * x @ x.T + 0.25 * torch.eye(3, **F64)).log_prob(
        y[:, 0]
    )
    # Trace_ELBO equals the log evidence in every draw; with the closed KL only its mean does.
    assert -Trace_ELBO().loss(model, guide, x, y) == pytest.approx(evidence.item(), abs=1e-10)
    found = -losses(ps.ELBO("local"), model, guide, x, y, 2000)
    assert abs(found.mean() - evidence) < 5 * found.std() / math.sqrt(2000)


@pytest.mark.parametrize("theirs", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("guide", ["additive", "layer", "uniform"])
def test_equals_pyros_own_elbos_on_a_network(guide, theirs):
    net = nn.Sequential(nn.Linear(3, 5, **F64), nn.Tanh(), nn.Linear(5, 1, **F64))
    model, x, y = regression(net=net)
    guide = GUIDES[guide](model)
    ours = losses(ps.ELBO("shared"), model, guide, x, y, 600)
    with torch.no_grad():
        their = torch.tensor([theirs().loss(model, guide, x, y) for _ in range(400)], **F64)
    error = math.sqrt(ours.var() / len(ours) + their.var() / len(their))
    assert abs(ours.mean() - their.mean()) < 5 * error


def test_pyros_own_guides_under_our_elbo():
    from pyro.infer.autoguide import AutoNormal

    net = nn.Sequential(nn.Linear(3, 5, **F64), nn.Tanh(), nn.Linear(5, 1, **F64))
    model, x, y = regression(net=net)
    guide = AutoNormal(model, init_scale=0.3)
    guide(x, y)
    ours = losses(ps.ELBO("local"), model, guide, x, y, 500)
    with torch.no_grad():
        their = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(500)], **F64)
    assert abs(ours.mean() - their.mean()) < 5 * math.sqrt((ours.var() + their.var()) / 500)


def test_shared_draw_with_equal_seeds_equals_pyros_data_term():
    model, x, y = regression()
    guide = ps.guides.Additive(model, init_scale=0.2)
    torch.manual_seed(3)
    ours = ps.ELBO("shared").differentiable_loss(model, guide, x, y)
    torch.manual_seed(3)
    theirs = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize("estimator", DRAWN)
def test_gradients_reach_every_parameter(estimator):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16, 3))
    model = ps.BayesianModel(net, prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=20)
    for make in GUIDES.values():
        loss = ps.ELBO(estimator)(model, make(model))
        loss(torch.randn(5, 1, 6, 6), torch.randint(0, 3, (5,))).backward()
        for name, parameter in loss.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_a_batch_is_scaled_to_the_whole_data_set():
    model, x, y = regression()
    guide = ps.guides.Additive(model, init_scale=1e-9)
    whole = ps.ELBO().terms(model, guide, x, y)
    parts = [ps.ELBO().terms(model, guide, x[i], y[i]) for i in (slice(0, 5), slice(5, 10), slice(10, 12))]
    average = sum(n * p.data for n, p in zip((5, 5, 2), parts, strict=True)) / 12
    assert average.item() == pytest.approx(whole.data.item(), rel=1e-6)
    assert parts[0].kl.item() == pytest.approx(whole.kl.item())


def test_kl_weight_scales_the_kl_and_nothing_else():
    model, x, y = regression()
    guide = ps.guides.Additive(model)
    terms = ps.ELBO().terms(model, guide, x, y)
    for weight in (0.0, 0.3, torch.tensor(2.0)):
        elbo = ps.ELBO("shared", kl_weight=weight)
        torch.manual_seed(0)
        loss = elbo.differentiable_loss(model, guide, x, y)
        torch.manual_seed(0)
        full = ps.ELBO("shared").differentiable_loss(model, guide, x, y)
        assert (full - loss).item() == pytest.approx((1 - float(weight)) * terms.kl.item(), rel=1e-9)
    with poutine.scale(scale=0.5):
        scaled = ps.ELBO().terms(model, guide, x, y)
    assert scaled.kl.item() == pytest.approx(0.5 * terms.kl.item())


def test_local_draws_no_unused_weight():
    """Only the noise of the output is drawn; eager and compiled steps must use the generator alike."""
    model, x, y = regression()
    loss = ps.ELBO("local")(model, ps.guides.Additive(model))
    torch.manual_seed(0)
    loss(x, y)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    torch.randn(12, 1, **F64)
    assert torch.equal(after, torch.get_rng_state())


def test_densities_under_autocast_are_in_float32():
    net = nn.Linear(3, 1)
    model, x, y = regression(net=net)
    x, y = x.float(), y.float()
    guide = ps.guides.Additive(model, init_scale=1e-6)
    full = ps.ELBO().terms(model, guide, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        half = ps.ELBO().terms(model, guide, x, y)
    assert half.data.dtype == torch.float32
    assert half.data.item() == pytest.approx(full.data.item(), rel=0.02)


def test_particles_are_averaged():
    model, x, y = regression()
    guide = ps.guides.Additive(model, init_scale=0.5)
    one = losses(ps.ELBO("shared"), model, guide, x, y, 600)
    eight = losses(ps.ELBO("shared", num_particles=8), model, guide, x, y, 200)
    assert abs(one.mean() - eight.mean()) < 5 * math.sqrt(one.var() / 600 + eight.var() / 200)
    assert eight.var() / one.var() == pytest.approx(1 / 8, rel=0.65)


def test_penalty_is_a_separate_term():
    net = nn.Linear(3, 1, **F64)
    model, x, y = regression(net=net, penalty=lambda n: 7.0 * n.bias.square().sum())
    terms = ps.ELBO().terms(model, ps.guides.Additive(model), x, y)
    assert terms.penalty.item() == pytest.approx(7.0 * net.bias.square().sum().item())
    assert "penalty" not in terms.sites
    guide = ps.guides.Additive(model)
    torch.manual_seed(0)
    with_penalty = ps.ELBO()(model, guide)(x, y)
    model.penalty = None
    torch.manual_seed(0)
    without = ps.ELBO()(model, guide)(x, y)
    assert (with_penalty - without).item() == pytest.approx(7.0 * net.bias.square().sum().item())


@pytest.mark.parametrize("estimator", DRAWN)
def test_the_first_pass_with_the_usage_analysis_draws_the_same_as_later_passes(estimator):
    net = nn.Sequential(nn.Linear(3, 8, **F64), nn.Dropout(0.5), nn.Linear(8, 1, **F64))
    model, x, y = regression(net=net)
    loss = ps.ELBO(estimator)(model, ps.guides.Additive(model, init_scale=0.3))
    values = []
    for _ in range(2):
        torch.manual_seed(5)
        values.append(loss(x, y).item())
    assert values[0] == values[1]


def test_monte_carlo_kl_where_there_is_no_closed_form():
    model, x, y = regression(prior=ps.priors.StudentT(4.0))
    guide = ps.guides.Additive(model, init_scale=0.5)
    for estimator in ("local", "shared"):
        terms = [ps.ELBO(estimator).terms(model, guide, x, y).sites["weight"] for _ in range(1200)]
        assert not terms[0].exact
        found = torch.stack([t.kl for t in terms]).detach()
        base = guide.site_distribution("weight").base_dist
        grid = torch.linspace(-6, 6, 20001, **F64)[:, None]
        points = base.mean[0] + grid * 0.5
        density = base.expand((1, 3)).log_prob(points[:, None, :])[:, 0]
        truth = (density.exp() * (density - dist.StudentT(4.0).log_prob(points))).sum() * (12 / 20000) * 0.5
        assert abs(found.mean() - truth) < 5 * found.std() / math.sqrt(len(found))


def test_hierarchical_and_learned_scales():
    model, x, y = regression(prior=ps.priors.Hierarchical())
    guide = ps.guides.Additive(model)
    assert list(model.sites) == ["weight_prior_scale", "weight"]
    ours = losses(ps.ELBO("shared"), model, guide, x, y, 800)
    with torch.no_grad():
        theirs = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(800)], **F64)
    assert abs(ours.mean() - theirs.mean()) < 5 * math.sqrt((ours.var() + theirs.var()) / 800)
    model, x, y = regression(prior=ps.priors.EmpiricalBayes(2.0))
    ps.ELBO()(model, ps.guides.Additive(model))(x, y).backward()
    assert model.prior("weight").log_scale.grad.abs() > 0


def test_svi_trains_without_the_parameter_store():
    model, x, y = regression()
    guide = ps.guides.LayerwiseAlpha(model)
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), ps.ELBO("shared"))
    first = svi.step(x, y)
    for _ in range(200):
        last = svi.step(x, y)
    assert last < first and svi.evaluate_loss(x, y) < first
    assert all((before[k] != v).any() for k, v in guide.state_dict().items())
    assert len(pyro.get_param_store()) == 0


def test_svi_with_pyros_elbo_trains_the_networks_own_parameters_too():
    net = nn.Sequential(nn.Linear(3, 4, **F64), nn.BatchNorm1d(4, **F64), nn.Linear(4, 1, **F64))
    model, x, y = regression(net=net)
    guide = ps.guides.Additive(model)
    bias, weight = net[0].bias.detach().clone(), net[0].weight.detach().clone()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step(x, y)
    assert (net[0].bias != bias).any() and (net[0].weight == weight).all()
    assert net[1].num_batches_tracked == 1


def test_module_form_trains_with_plain_torch():
    model, x, y = regression()
    loss = ps.ELBO()(model, ps.guides.Additive(model))
    optimizer = torch.optim.Adam(p for p in loss.parameters() if p.requires_grad)
    first = loss(x, y)
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
    assert value < first


def test_a_step_reads_nothing_back_from_the_device(monkeypatch):
    """With validation off no tensor is turned into a Python number or bool."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16, 3))
    model = ps.BayesianModel(net, prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=20)
    x, y = torch.randn(5, 1, 6, 6), torch.randint(0, 3, (5,))
    for estimator in DRAWN:
        for make in GUIDES.values():
            loss = ps.ELBO(estimator)(model, make(model))
            with pyro.validation_enabled(False):
                loss(x, y)  # the analysis of weight usage may read values

                def refuse(tensor, *args):
                    raise AssertionError("a tensor's value was read")

                with monkeypatch.context() as patch:
                    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "__index__"):
                        patch.setattr(torch.Tensor, name, refuse)
                    loss(x, y).backward()


def test_mismatched_sites_are_named():
    model, x, y = regression()
    other = ps.BayesianModel(
        nn.Sequential(nn.Linear(3, 1, **F64)),
        prior=ps.priors.Normal(),
        likelihood=ps.likelihoods.Gaussian(),
        num_data=12,
    )
    with pytest.raises(ValueError, match=r"no draw for the model's site\(s\) 'weight'"):
        ps.ELBO().differentiable_loss(model, ps.guides.Additive(other), x, y)
    improper, _, _ = regression(prior=ps.priors.LogUniform())
    with pytest.raises(ValueError, match=r"no draw for the model's site\(s\) 'weight'"):
        ps.ELBO().differentiable_loss(improper, ps.guides.Additive(other), x, y)
    wider, _, _ = regression(net=nn.Linear(4, 1, bias=False, **F64))
    with pytest.raises(ValueError, match=r"site 'weight': the model expects shape \(1, 3\), the guide drew \(1, 4\)"):
        ps.ELBO().differentiable_loss(model, ps.guides.Additive(wider), x, y)
    both = nn.Sequential(nn.Linear(3, 1, **F64))
    few = ps.BayesianModel(both, prior=None, likelihood=ps.likelihoods.Gaussian(), num_data=12)
    with pytest.raises(ValueError, match=r"site\(s\) '0.weight' do not exist in the model"):
        ps.ELBO().differentiable_loss(few, ps.guides.Additive(other), x, y)


def test_a_guide_without_gradient_is_refused():
    class Spikes(ps.guides.Guide):
        def initial_parameters(self, site):
            return {"logits": torch.zeros_like(site.init)}

        def distribution(self, site, logits):
            return dist.Bernoulli(logits=logits)

    model, x, y = regression()
    with pytest.raises(ValueError, match="guide site 'weight': Bernoulli cannot be reparameterized"):
        ps.ELBO().differentiable_loss(model, Spikes(model), x, y)


def test_two_points_against_a_continuous_prior_are_refused():
    model, x, y = regression()
    guide = ps.guides.VarianceOnly(model, family="bernoulli")
    with pytest.raises(ValueError, match="infinite"):
        ps.ELBO().differentiable_loss(model, guide, x, y)
    model, x, y = regression(prior=ps.priors.LogUniform())
    terms = ps.ELBO().terms(model, ps.guides.VarianceOnly(model, family="bernoulli"), x, y)
    assert terms.kl == 0 and terms.sites["weight"].improper


def test_bad_arguments():
    with pytest.raises(ValueError, match="did you mean 'local'"):
        ps.ELBO("locale")
    with pytest.raises(ValueError, match="num_particles"):
        ps.ELBO(num_particles=0)

"""Priors with a scale for each group of weights: which axis counts the groups, densities, the ELBO, shrinkage."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyrostoch as ps
from pyrostoch import priors
from pyrostoch.priors.groups import group_axis

F64 = {"dtype": torch.float64}
CAUCHY = dist.HalfCauchy(torch.ones((), **F64))


def model_of(net, prior, likelihood=None, num_data=12):
    likelihood = ps.likelihoods.Gaussian(0.5) if likelihood is None else likelihood
    return ps.BayesianModel(net, prior=prior, likelihood=likelihood, num_data=num_data)


def spectrally_normalized():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))


# The layer, its parameter, and the axes of its outputs and inputs; None where they are not known.
AXES = {
    "linear": (lambda: nn.Linear(4, 3), "weight", 0, 1),
    "of this library": (lambda: ps.layers.Linear(4, 3), "weight", 0, 1),
    "bias": (lambda: nn.Linear(4, 3), "bias", 0, None),
    "convolution": (lambda: nn.Conv2d(2, 4, 3), "weight", 0, 1),
    "convolution, groups": (lambda: nn.Conv2d(2, 4, 3, groups=2), "weight", 0, None),
    "transposed": (lambda: nn.ConvTranspose1d(2, 4, 3), "weight", 1, 0),
    "transposed, groups": (lambda: nn.ConvTranspose1d(2, 4, 3, groups=2), "weight", None, 0),
    "embedding": (lambda: nn.Embedding(6, 3), "weight", 1, 0),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), "weight", None, None),
    "recurrent": (lambda: nn.LSTM(2, 3), "weight_ih_l0", None, None),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight", None, None),
    "attention, output": (lambda: nn.MultiheadAttention(4, 2), "out_proj.weight", 0, 1),
    "own": (lambda: nn.ParameterDict({"weight": nn.Parameter(torch.ones(3, 2))}), "weight", None, None),
    "parametrized": (spectrally_normalized, "parametrizations.weight.original", None, None),
}


@pytest.mark.parametrize("case", AXES)
def test_the_layer_says_which_axis_counts_the_groups(case):
    make, name, out, inward = AXES[case]
    for groups, axis in (("out", out), ("in", inward)):
        rules = {name: priors.GroupScale(groups, dist.HalfNormal(1.0))}
        if axis is None:
            what = "outputs" if groups == "out" else "inputs"
            with pytest.raises(ValueError, match=f"prior of '{name}': groups='{groups}' needs the axis.*counts {what}"):
                priors.assign(make(), rules)
            continue
        net = make()
        found = priors.assign(net, rules)[name]
        shape = net.get_parameter(name).shape
        assert found.axis == axis
        assert found.scale_shape(name, shape) == tuple(size if i == axis else 1 for i, size in enumerate(shape))
    with_axis = priors.assign(make(), {name: priors.GroupScale(-1, dist.HalfNormal(1.0))})[name]
    assert with_axis.axis == make().get_parameter(name).dim() - 1


def test_tied_layers_have_to_agree():
    net = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match=r"'0.weight': groups='out'.*of Embedding and Linear it is not known"):
        priors.assign(net, priors.GroupScale("out"))
    twice = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    twice[1].weight = twice[0].weight
    assert priors.assign(twice, priors.GroupScale("in"))["0.weight"].axis == 1


def test_bad_groups():
    with pytest.raises(ValueError, match="GroupScale groups: .*'outs'.*did you mean 'out'"):
        priors.GroupScale("outs")
    for bad in (True, 1.0, ["out"]):
        with pytest.raises(TypeError, match="Horseshoe groups: expected 'out', 'in', 'weight' or the number"):
            priors.Horseshoe(groups=bad)
    with pytest.raises(ValueError, match="groups=2 names an axis that its shape"):
        priors.assign(nn.Linear(2, 2), priors.GroupScale(2))
    with pytest.raises(ValueError, match=r"ARD\(\)"):
        priors.EmpiricalBayes(groups="weight")
    with pytest.raises(ValueError, match="Horseshoe slab: expected a positive"):
        priors.Horseshoe(slab=0.0)
    with pytest.raises(ValueError, match="Horseshoe local: expected a distribution on the positive"):
        priors.Horseshoe(local=dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="'w': groups='in' needs the axis"):  # no parameter of a network has it yet
        priors.GroupScale("in").distribution("w", torch.Size([2, 3]))


@pytest.mark.parametrize("slab", [None, 0.7])
@pytest.mark.parametrize("groups", ["out", "in", "weight", 0])
def test_the_joint_density_is_the_formula(groups, slab):
    tau_zero = 0.3
    model = model_of(nn.Linear(3, 2, bias=False, **F64), priors.Horseshoe(tau_zero, slab=slab, groups=groups))
    trace = pyro.poutine.trace(model.draw).get_trace()
    tau, local, weight = (trace.nodes[n]["value"] for n in ("weight_prior_scale", "weight_prior_local", "weight"))
    assert local.shape == {"out": (2, 1), "in": (1, 3), "weight": (2, 3), 0: (2, 1)}[groups]
    expected = math.log(2 * tau_zero / (math.pi * (tau_zero**2 + tau.item() ** 2)))
    expected += sum(math.log(2 / (math.pi * (1 + value**2))) for value in local.flatten().tolist())
    for i in range(2):
        for j in range(3):
            variance = (tau * local.expand(2, 3)[i, j]).item() ** 2
            if slab is not None:
                variance = slab**2 * variance / (slab**2 + variance)
            expected -= weight[i, j].item() ** 2 / (2 * variance) + 0.5 * math.log(2 * math.pi * variance)
    assert trace.log_prob_sum().item() == pytest.approx(expected, rel=1e-9)


def test_guides_start_at_medians_where_there_is_no_mean():
    model = model_of(nn.Linear(3, 2), priors.Horseshoe(0.01, dist.HalfCauchy(2.0), groups="in"))
    assert model.sites["weight_prior_scale"].init.item() == pytest.approx(0.01)
    torch.testing.assert_close(model.sites["weight_prior_local"].init, torch.full((1, 3), 2.0))
    guide = ps.guides.Additive(model)
    torch.testing.assert_close(
        guide.parameters_for("weight_prior_local")["loc"].exp().detach(), torch.full((1, 3), 2.0)
    )


def kl_to_half_cauchy(center, width):
    """KL of a log-normal to the half-Cauchy distribution, by quadrature over its logarithm."""
    t = torch.linspace(-12, 12, 40001, **F64)
    log = center + width * t
    density = (-t.square() / 2).exp() / math.sqrt(2 * math.pi)
    log_q = -t.square() / 2 - 0.5 * math.log(2 * math.pi) - math.log(width) - log
    return torch.trapezoid(density * (log_q - CAUCHY.log_prob(log.exp())), t).item()


@pytest.mark.parametrize("estimator", ["shared", "local"])
@pytest.mark.parametrize("groups", ["out", "in", "weight"])
def test_the_elbo_is_exact_on_average(groups, estimator):
    """Regression with independent outputs: the data term, and the KLs given log-normal scales, have closed forms."""
    x, y = torch.randn(12, 3, **F64), torch.randn(12, 2, **F64)
    model = model_of(nn.Linear(3, 2, bias=False, **F64), priors.Horseshoe(groups=groups))
    guide = ps.guides.Additive(model, init_scale=0.3)
    with torch.no_grad():
        for site in ("weight_prior_scale", "weight_prior_local"):
            guide.parameters_for(site)["loc"].normal_(-0.5, 0.3)
            guide.parameters_for(site)["log_scale"].normal_(-1.5, 0.1)
    weight = guide.site_distribution("weight").base_dist
    mean, variance = weight.mean.detach(), weight.variance.detach()
    residual = (y - x @ mean.T).square() + x.square() @ variance.T
    data = (-residual / (2 * 0.25) - math.log(0.5) - 0.5 * math.log(2 * math.pi)).sum().item()
    center, width, kl = 0.0, 0.0, 0.0
    for site in ("weight_prior_scale", "weight_prior_local"):
        loc, scale = (value.detach() for value in guide.parameters_for(site).values())
        kl += sum(
            kl_to_half_cauchy(c, s) for c, s in zip(loc.flatten().tolist(), scale.exp().flatten().tolist(), strict=True)
        )
        center, width = center + loc, width + (2 * scale).exp()
    inverse = (-2 * center + 2 * width).exp()
    kl += (center - 0.5 * variance.log() + (variance + mean.square()) * inverse / 2 - 0.5).sum().item()
    elbo = ps.ELBO(estimator)
    with torch.no_grad():
        found = torch.stack([-elbo.differentiable_loss(model, guide, x, y) for _ in range(400)])
    assert abs(found.mean().item() - (data - kl)) < 5 * found.std().item() / math.sqrt(400)
    terms = elbo.terms(model, guide, x, y).sites
    assert terms["weight"].exact and not terms["weight_prior_local"].exact


@pytest.mark.parametrize("prior", [priors.Horseshoe(0.5, slab=1.0, groups="in"), priors.GroupScale("out")])
def test_the_elbo_is_that_of_pyro(prior):
    x, y = torch.randn(12, 3, **F64), torch.randn(12, 2, **F64)
    model = model_of(nn.Linear(3, 2, **F64), prior)
    guide = ps.guides.Additive(model, init_scale=0.3)
    with torch.no_grad():
        ours = torch.stack([ps.ELBO("local").differentiable_loss(model, guide, x, y) for _ in range(250)])
        theirs = torch.tensor([Trace_ELBO().loss(model, guide, x, y) for _ in range(250)], **F64)
    assert abs(ours.mean() - theirs.mean()) < 5 * math.sqrt((ours.var() + theirs.var()) / 250)


def test_a_fitted_scale_of_each_group_is_the_maximum():
    model = model_of(nn.Linear(3, 2, bias=False, **F64), priors.EmpiricalBayes(0.5, groups="in"))
    guide = ps.guides.Additive(model, init_scale=lambda site: torch.rand_like(site.init) + 0.1)
    log_scale = model.prior("weight").log_scale
    assert log_scale.shape == (1, 3) and "groups='in'" in repr(model.prior("weight"))
    weight = guide.site_distribution("weight").base_dist
    with torch.no_grad():
        log_scale.copy_((weight.mean.square() + weight.variance).mean(0, keepdim=True).log() / 2)
    x, y = torch.randn(12, 3, **F64), torch.randn(12, 2, **F64)
    ps.ELBO("shared").terms(model, guide, x, y).kl.backward()
    torch.testing.assert_close(log_scale.grad, torch.zeros(1, 3, **F64), atol=1e-9, rtol=0)
    again = model_of(nn.Linear(3, 2, bias=False, **F64), priors.EmpiricalBayes(groups="in"))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.prior("weight").log_scale, log_scale)


@pytest.mark.parametrize("kind", [priors.GroupScale, lambda groups: priors.Horseshoe(groups=groups)])
@pytest.mark.parametrize("groups", ["in", "out", "weight"])
def test_entries_that_torch_holds_constant_stay(kind, groups):
    net = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Flatten(), nn.Linear(6, 2))
    torch_prune.custom_from_mask(net[2], "weight", torch.tensor([[1, 0] * 3, [1, 1] * 3]))
    model = model_of(net, kind(groups), ps.likelihoods.Categorical())
    guide = ps.guides.Additive(model)
    x, y = torch.randint(0, 5, (12, 2)), torch.randint(0, 2, (12,))
    ps.fit(model, guide, (x, y), epochs=3, batch_size=6, lr=0.05, progress=False, compile=False)
    draw = guide()
    assert torch.equal(draw["0.weight"][1], torch.zeros(3)) and (draw["0.weight"][0] != 0).all()
    assert (draw["2.weight_orig"][0, 1::2] == net[2].weight_orig[0, 1::2]).all()


def test_nuts_samples_scales_and_weights():
    model = model_of(nn.Linear(2, 1, bias=False, **F64), priors.Horseshoe(dist.HalfNormal(1.0), slab=1.0, groups="in"))
    x = torch.randn(12, 2, **F64)
    mcmc = MCMC(NUTS(model, max_tree_depth=4), num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run(x, x[:, :1])
    shapes = {name: tuple(value.shape) for name, value in mcmc.get_samples().items()}
    assert shapes == {"weight_prior_scale": (20,), "weight_prior_local": (20, 1, 2), "weight": (20, 1, 2)}
    assert all(torch.isfinite(value).all() for value in mcmc.get_samples().values())


def trained(prior, x, y):
    torch.manual_seed(1)
    model = model_of(nn.Linear(20, 4, bias=False), prior, num_data=len(x))
    guide = ps.guides.Additive(model, init_scale=0.1)
    loss = ps.ELBO("local")(model, guide)
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
    return guide, guide.site_distribution("weight").base_dist.mean.detach().square().mean(0).sqrt()


def test_irrelevant_inputs_shrink_as_a_group_and_relevant_ones_do_not():
    x = torch.randn(60, 20)
    truth = torch.zeros(20, 4)
    truth[:3] = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.7, 1.0, -1.0, 0.8], [-1.0, 0.8, 0.9, -0.7]])
    y = x @ truth + 0.5 * torch.randn(60, 4)
    sizes = {}
    for name, prior in {
        "normal": priors.Normal(),
        "hierarchical": priors.Hierarchical(),
        "groups": priors.GroupScale("in"),
        "horseshoe": priors.Horseshoe(groups="in"),
    }.items():
        guide, sizes[name] = trained(prior, x, y)
    assert all((size[:3] > 0.6).all() for size in sizes.values())
    irrelevant = {name: size[3:].square().mean().sqrt().item() for name, size in sizes.items()}
    assert irrelevant["horseshoe"] < 0.8 * irrelevant["hierarchical"] and irrelevant["horseshoe"] < irrelevant["groups"]
    local = guide.parameters_for("weight_prior_local")["loc"].flatten()
    assert local[:3].min() > local[3:].max() + 1.0


def test_a_layer_alone_has_a_scale_of_each_output():
    layer = ps.layers.ConvTranspose2d(2, 3, 2, prior=priors.Horseshoe(), name="up")
    assert {name: tuple(site.init.shape) for name, site in layer.sites.items()} == {
        "up.weight_prior_scale": (),
        "up.weight_prior_local": (1, 3, 1, 1),
        "up.weight": (2, 3, 2, 2),
    }
    inside = model_of(nn.Sequential(layer), None, ps.likelihoods.Categorical())
    assert tuple(inside.sites["0.weight_prior_local"].init.shape) == (1, 3, 1, 1)


def test_the_axis_of_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"'s': groups='out' needs the axis of its shape \(\)"):
        group_axis("out", "s", torch.Size(), [])
    assert group_axis("weight", "s", torch.Size(), []) is None

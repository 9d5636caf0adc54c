"""Guides: their distributions, their initial parameters, and subclasses of the base class."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.guides import Guide

F64 = {"dtype": torch.float64}


def model_of(net=None, prior=None):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)) if net is None else net
    return ps.BayesianModel(
        net,
        prior=ps.priors.LogUniform() if prior is None else prior,
        likelihood=ps.likelihoods.Categorical(),
        num_data=9,
    )


# How a guide is made, and the means and standard deviations it then has, from the network's weights.
CASES = {
    "additive": (lambda m: ps.guides.Additive(m, init_scale=0.2), lambda w: w, lambda w: torch.full_like(w, 0.2)),
    "weightwise": (
        lambda m: ps.guides.WeightwiseAlpha(m, init_log_alpha=-2.0),
        lambda w: w,
        lambda w: w.abs() * torch.e**-1,
    ),
    "neuronwise": (
        lambda m: ps.guides.NeuronwiseAlpha(m, init_log_alpha=-2.0),
        lambda w: w,
        lambda w: w.abs() * torch.e**-1,
    ),
    "layerwise": (
        lambda m: ps.guides.LayerwiseAlpha(m, init_log_alpha=-2.0),
        lambda w: w,
        lambda w: w.abs() * torch.e**-1,
    ),
    "variance": (ps.guides.VarianceOnly, torch.zeros_like, torch.abs),
    "bernoulli": (functools.partial(ps.guides.VarianceOnly, family="bernoulli"), torch.zeros_like, torch.abs),
    "uniform": (
        functools.partial(ps.guides.VarianceOnly, family="uniform"),
        torch.zeros_like,
        lambda w: w.abs() / 3**0.5,
    ),
}
ALPHA_SHAPES = {
    "weightwise": {"0.weight": (4, 2, 3, 3), "2.weight": (3, 16)},
    "neuronwise": {"0.weight": (4, 1, 1, 1), "2.weight": (3, 1)},
    "layerwise": {"0.weight": (1, 1, 1, 1), "2.weight": (1, 1)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_starts_at_the_networks_weights(case):
    make, mean, deviation = CASES[case]
    model = model_of()
    guide = make(model)
    for name in ("0.weight", "2.weight"):
        weight = model.net.get_parameter(name).detach()
        distribution = guide.site_distribution(name)
        assert distribution.event_shape == weight.shape and distribution.batch_shape == ()
        assert torch.allclose(distribution.base_dist.mean, mean(weight))
        assert torch.allclose(distribution.base_dist.stddev, deviation(weight), rtol=1e-5)


@pytest.mark.parametrize("case", ALPHA_SHAPES)
def test_alphas_are_shared_by_neuron_or_layer(case):
    guide = CASES[case][0](model_of())
    for name, shape in ALPHA_SHAPES[case].items():
        assert guide.parameters_for(name)["log_alpha"].shape == shape
    groups = guide.parameter_groups()
    assert len(groups["alpha"]) == 2 and len(groups["main"]) == 2


def test_a_neuron_of_a_transposed_convolution_is_its_output_channel():
    guide = ps.guides.NeuronwiseAlpha(model_of(nn.ConvTranspose2d(3, 5, 2)))
    assert guide.parameters_for("weight")["log_alpha"].shape == (1, 5, 1, 1)


def test_two_guides_of_one_class_share_nothing():
    model = model_of()
    first, second = ps.guides.Additive(model), ps.guides.Additive(model)
    first()
    second()
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert len(pyro.get_param_store()) == 0


def test_trained_weights_are_the_initial_means():
    net = nn.Linear(2, 3)
    model = model_of(net)
    net.weight.data.fill_(7.0)  # loaded after the model was made
    assert (ps.guides.Additive(model).site_distribution("weight").base_dist.mean == 7).all()


def test_initial_values_may_be_numbers_or_functions():
    model = model_of()
    guide = ps.guides.Additive(model, init_loc=0.5, init_scale=lambda site: 0.1 if site.name == "0.weight" else 0.3)
    assert (guide.site_distribution("0.weight").base_dist.mean == 0.5).all()
    assert torch.allclose(guide.site_distribution("0.weight").base_dist.stddev, torch.tensor(0.1))
    assert torch.allclose(guide.site_distribution("2.weight").base_dist.stddev, torch.tensor(0.3))
    alpha = ps.guides.NeuronwiseAlpha(
        model,
        init_log_alpha=lambda site: torch.arange(float(site.init.shape[0])).view(-1, *[1] * (site.init.dim() - 1)),
    )
    assert alpha.parameters_for("2.weight")["log_alpha"].flatten().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"init_scale at site '0.weight': expected a number or a shape"):
        ps.guides.Additive(model, init_scale=torch.ones(7))
    with pytest.raises(ValueError, match="expected positive standard deviations"):
        ps.guides.Additive(model, init_scale=-1.0)


def test_ten_lines_put_any_distribution_on_the_weights():
    class LaplaceGuide(Guide):
        def initial_parameters(self, site):
            return {"loc": site.init, "log_scale": torch.full_like(site.init, -3.0)}

        def distribution(self, site, loc, log_scale):
            return dist.Laplace(loc, log_scale.exp())

    model = model_of(prior=ps.priors.Normal())
    guide = LaplaceGuide(model)
    for estimator in ("local", "shared", "flipout"):
        loss = ps.ELBO(estimator)(model, guide)
        loss(torch.randn(5, 2, 4, 4), torch.zeros(5, dtype=torch.long)).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in guide.parameters())


def test_per_site():
    model = model_of()
    guide = ps.guides.PerSite(
        model,
        {"*": ps.guides.Additive, "2.*": functools.partial(ps.guides.VarianceOnly, family="uniform")},
    )
    assert type(guide.site_distribution("0.weight").base_dist).__name__ == "Normal"
    assert type(guide.site_distribution("2.weight").base_dist).__name__ == "SymmetricUniform"
    assert list(guide()) == ["0.weight", "2.weight"]
    loss = ps.ELBO()(model, guide)
    loss(torch.randn(5, 2, 4, 4), torch.zeros(5, dtype=torch.long)).backward()
    assert all(p.grad is not None for p in guide.parameters())
    with pytest.raises(ValueError, match=r"no pattern of '2.\*' matches site\(s\) '0.weight'"):
        ps.guides.PerSite(model, {"2.*": ps.guides.Additive})
    with pytest.raises(ValueError, match="'nothing' cover no site"):
        ps.guides.PerSite(model, {"*": ps.guides.Additive, "nothing": ps.guides.Additive})


def test_positive_scales_get_a_log_normal_distribution_whatever_the_guide():
    model = model_of(prior=ps.priors.Hierarchical())
    for make, _, _ in (CASES["additive"], CASES["layerwise"]):
        guide = make(model)
        assert type(guide.site_distribution("0.weight_prior_scale")).__name__ == "LogNormal"
        assert (guide()["0.weight_prior_scale"] > 0).all()
        loss = ps.ELBO()(model, guide)
        loss(torch.randn(5, 2, 4, 4), torch.zeros(5, dtype=torch.long)).backward()
        assert all(torch.isfinite(p.grad).all() for p in guide.parameters())


def test_wrong_arguments_are_named_in_the_error():
    with pytest.raises(TypeError, match="guide Additive: expected a BayesianModel"):
        ps.guides.Additive(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="guide PerSite: expected a BayesianModel"):
        ps.guides.PerSite(nn.Linear(2, 2), {"*": ps.guides.Additive})
    with pytest.raises(ValueError, match=r"no site\(s\) 'x' in the model"):
        ps.guides.Additive(model_of(), sites=["x"])
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        ps.guides.VarianceOnly(model_of(), family="gausian")
    with pytest.raises(ValueError, match="guide Additive: no site 'x'"):
        ps.guides.Additive(model_of()).site_distribution("x")


def test_a_scale_that_crosses_zero_keeps_a_distribution():
    model = model_of(nn.Linear(2, 2, bias=False))
    guide = ps.guides.VarianceOnly(model, init_scale=0.0)
    assert torch.isfinite(guide()["weight"]).all()
    loss = ps.ELBO()(model, guide)(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ["WeightwiseAlpha", "NeuronwiseAlpha", "LayerwiseAlpha"])
def test_log_alpha_is_clamped_where_only_the_kl_acts_on_it(name):
    # Inputs that are always zero: their weights have no data term, and the KL falls without end.
    x, y = torch.zeros(40, 3), torch.arange(40) % 2
    model = ps.BayesianModel(
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2)),
        prior={"0.weight": ps.priors.LogUniform()},
        likelihood=ps.likelihoods.Categorical(),
        num_data=40,
    )
    guide = getattr(ps.guides, name)(model, init_log_alpha=18.0)
    settings = {"epochs": 200, "batch_size": 40, "lr": 1e-3, "lr_alpha": 5.0, "schedule": "constant"}
    ps.fit(model, guide, (x, y), **settings, seed=0, progress=False)
    parameter = guide.parameters_for("0.weight")["log_alpha"]
    distribution = guide.site_distribution("0.weight").base_dist
    assert parameter.max() > 20.0 and distribution.log_alpha.max() == 20.0
    assert torch.isfinite(distribution.variance).all()
    with pytest.raises(ValueError, match=r"init_log_alpha at site '0.weight': expected values from -20 to 20.*got 25"):
        getattr(ps.guides, name)(model, init_log_alpha=25.0)


def test_histograms_of_log_alpha_are_those_of_the_distribution():
    from pyrostoch.runs.scores import posterior_histograms

    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    guide = ps.guides.WeightwiseAlpha(model)
    with torch.no_grad():
        guide.parameters_for("1.weight")["log_alpha"][0] = 1e30
    (histogram,) = posterior_histograms(guide, ["1.weight"])
    assert (histogram["edges"][0], histogram["edges"][-1], sum(histogram["counts"])) == (-5.0, 20.0, 48)

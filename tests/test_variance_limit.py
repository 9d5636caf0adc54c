"""The cost of zeroing the means, against Monte Carlo and loops, and the variance network that remains."""

from __future__ import annotations

import functools
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import Normal, kl_divergence

import pyrostoch as ps
from pyrostoch.guides import Guide, to_variance_only
from pyrostoch.guides.gap import ZeroMeanGap, zero_mean_gap

GUIDES = {
    "additive": functools.partial(ps.guides.Additive, init_scale=0.7),
    "weightwise": functools.partial(
        ps.guides.WeightwiseAlpha,
        init_log_alpha=lambda site: torch.linspace(-1, 3, site.init.numel()).view_as(site.init),
    ),
    "neuronwise": functools.partial(
        ps.guides.NeuronwiseAlpha,
        init_log_alpha=lambda site: torch.arange(float(len(site.init))).view(-1, *[1] * (site.init.dim() - 1)),
    ),
    "layerwise": functools.partial(ps.guides.LayerwiseAlpha, init_log_alpha=1.5),
}


class LaplaceGuide(Guide):
    def initial_parameters(self, site):
        return {"loc": site.init, "log_scale": torch.full_like(site.init, -3.0)}

    def distribution(self, site, loc, log_scale):
        return dist.Laplace(loc, log_scale.exp())


def model_of(net=None, prior=None, dtype=torch.float64):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)) if net is None else net
    prior = ps.priors.LogUniform() if prior is None else prior
    return ps.BayesianModel(net.to(dtype), prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=9)


def moments(guide, site):
    distribution = guide.site_distribution(site).base_dist
    return distribution.mean.detach(), distribution.stddev.detach()


@pytest.mark.parametrize("case", GUIDES)
def test_the_gap_is_the_divergence_in_either_direction(case):
    guide = GUIDES[case](model_of())
    gap = guide.zero_mean_gap()
    for row in gap.sites:
        mean, scale = moments(guide, row.site)
        pairs = list(zip(mean.flatten().tolist(), scale.flatten().tolist(), strict=True))
        assert row.weights == len(pairs)
        assert row.gap == pytest.approx(math.fsum(m**2 / (2 * s**2) for m, s in pairs), rel=1e-9)
        with_mean, without = Normal(mean, scale), Normal(0 * mean, scale)
        assert row.gap == pytest.approx(kl_divergence(without, with_mean).sum().item(), rel=1e-9)
        assert row.gap == pytest.approx(kl_divergence(with_mean, without).sum().item(), rel=1e-9)
        ratios = sorted(2 * math.log(s / abs(m)) for m, s in pairs)
        assert row.log_alpha == pytest.approx(ratios[(len(ratios) - 1) // 2], rel=1e-6)
    assert gap.total == pytest.approx(sum(row.gap for row in gap.sites))
    assert [row.site for row in gap.sites] == list(guide.site_names)


@pytest.mark.parametrize("case", GUIDES)
def test_the_gap_agrees_with_draws(case):
    """KL(Q || P) as the mean over draws of Q of log q - log p, within error bars from the draws themselves."""
    guide = GUIDES[case](model_of(nn.Linear(3, 2, bias=False)))
    mean, scale = moments(guide, "weight")
    without, with_mean = Normal(0 * mean, scale), Normal(mean, scale)
    draws = without.sample((40_000,))
    ratio = (without.log_prob(draws) - with_mean.log_prob(draws)).sum((1, 2))
    error = ratio.std().item() / math.sqrt(len(ratio))
    assert abs(ratio.mean().item() - guide.zero_mean_gap().total) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shared_alpha_costs_half_the_weights_over_alpha(dtype):
    model = model_of(nn.Linear(800, 500, bias=False), dtype=dtype)
    gap = ps.guides.LayerwiseAlpha(model, init_log_alpha=13.2).zero_mean_gap()
    log_alpha = torch.tensor(13.2, dtype=dtype).double().item()
    assert gap.total == pytest.approx(400_000 / (2 * math.exp(log_alpha)), rel=1e-10)
    assert gap.sites[0].log_alpha == log_alpha


def test_small_means_do_not_underflow():
    model = model_of(nn.Linear(4, 1, bias=False), dtype=torch.float32)
    guide = ps.guides.Additive(model, init_loc=3e-30, init_scale=1e-30)
    assert guide.zero_mean_gap().total == pytest.approx(18.0, rel=1e-5)


def test_means_of_zero_cost_nothing_and_small_variances_much():
    guide = ps.guides.LayerwiseAlpha(model_of(nn.Linear(4, 1, bias=False)), init_log_alpha=0.0)
    with torch.no_grad():
        guide.parameters_for("weight")["loc"][0, :2] = 0
    assert guide.zero_mean_gap().total == 1.0
    guide = ps.guides.LayerwiseAlpha(model_of(), init_log_alpha=-20.0)
    gap = guide.zero_mean_gap()
    assert gap.total > 1e8 and gap.bound == gap.total_variation == 1.0


@pytest.mark.parametrize("family", ["gaussian", "bernoulli", "uniform"])
def test_a_variance_network_has_no_means_to_lose(family):
    gap = ps.guides.VarianceOnly(model_of(), family=family).zero_mean_gap()
    assert gap.total == gap.bound == gap.total_variation == 0
    assert [row.log_alpha for row in gap.sites] == [math.inf, math.inf]


def test_parts_are_joined_and_scales_left_out():
    model = model_of(prior=ps.priors.Hierarchical())
    rules = {"*": GUIDES["additive"], "2.*": functools.partial(ps.guides.LayerwiseAlpha, init_log_alpha=2.0)}
    guide = ps.guides.PerSite(model, rules)
    gap = guide.zero_mean_gap()
    assert [row.site for row in gap.sites] == ["0.weight", "2.weight"]
    mean, scale = moments(guide, "0.weight")
    assert gap.sites[0].gap == pytest.approx(((mean / scale) ** 2).sum().item() / 2)
    assert gap.sites[1].gap == pytest.approx(48 / (2 * math.exp(2)))
    text = str(gap)
    assert "2.weight" in text and "total" in text and "log alpha" in text
    assert gap.to_dict()["sites"][1]["weights"] == 48
    text = " ".join(str(ZeroMeanGap(0.02, ())).split())  # erf(sqrt(0.02) / 2) and sqrt(0.02 / 2)
    assert "the expected accuracy of one draw of the weights changes by at most 7.97%, as does" in text
    assert "(Pinsker's bound: 10.00%); a gap of more than a few nats makes the bound vacuous" in text


def test_other_distributions_are_refused_by_name():
    model = model_of(prior=ps.priors.Normal())
    mixed = ps.guides.PerSite(model, {"*": ps.guides.Additive, "2.*": LaplaceGuide})
    with pytest.raises(
        TypeError, match=r"zero_mean_gap: expected a normal distribution .* at site '2.weight', got Laplace"
    ):
        mixed.zero_mean_gap()
    with pytest.raises(TypeError, match=r"at site '0.weight', got LogNormal"):
        ps.guides.Additive(model_of(nn.Sequential(nn.Linear(2, 1)), prior=dist.HalfNormal(1.0))).zero_mean_gap()
    with pytest.raises(TypeError, match="to_variance_only: .* at site '0.weight', got Laplace"):
        to_variance_only(LaplaceGuide(model))
    with pytest.raises(TypeError, match="at site '2.weight', got Laplace"):
        to_variance_only(mixed, sites=["2.weight"])
    with pytest.raises(ValueError, match="to_variance_only: no site '7.weight' among the guide's weights '0.weight'"):
        to_variance_only(mixed, sites=["7.weight"])
    for function in (to_variance_only, zero_mean_gap, ps.guides.prune):
        with pytest.raises(
            TypeError, match=f"^{function.__name__}: expected a guide of pyrostoch.guides, got AutoNorm"
        ):
            function(AutoNormal(model))


@pytest.mark.parametrize("distance", [0.01, 0.3, 1.0, 3.0])
def test_the_total_variation_is_exact_and_below_pinskers(distance):
    """Against quadrature of |p - q| / 2 along the one direction in which the two distributions differ."""
    gap = ZeroMeanGap(distance**2 / 2, ())
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    densities = [Normal(torch.tensor(m, dtype=torch.float64), 1.0).log_prob(grid).exp() for m in (0.0, distance)]
    exact = torch.trapezoid((densities[0] - densities[1]).abs(), grid).item() / 2
    assert gap.total_variation == pytest.approx(exact, rel=1e-6)
    assert exact <= gap.bound == pytest.approx(min(1.0, distance / 2))


def test_the_bound_is_reached_by_the_worst_function():
    """The indicator of the half-space that tells the two distributions apart best, by draws."""
    guide = GUIDES["layerwise"](model_of(nn.Linear(3, 2, bias=False)))
    mean, scale = moments(guide, "weight")
    direction, middle = mean / scale**2, (mean**2 / scale**2).sum() / 2
    noise = torch.randn(200_000, *mean.shape, dtype=torch.float64) * scale
    probability = [((draw * direction).sum((1, 2)) > middle).double().mean().item() for draw in (noise + mean, noise)]
    assert probability[0] - probability[1] == pytest.approx(guide.zero_mean_gap().total_variation, abs=0.01)


@pytest.mark.parametrize("case", GUIDES)
def test_the_variance_network_keeps_the_variances(case):
    guide = GUIDES[case](model_of())
    limit = to_variance_only(guide)
    assert type(limit) is ps.guides.VarianceOnly and limit.site_names == guide.site_names
    for name in guide.site_names:
        before, after = guide.site_distribution(name).base_dist, limit.site_distribution(name).base_dist
        assert (after.mean == 0).all() and after.stddev.dtype == torch.float64
        assert torch.allclose(after.stddev, before.stddev.detach(), rtol=1e-12)
    assert not {p.data_ptr() for p in guide.parameters()} & {p.data_ptr() for p in limit.parameters()}
    assert all(parameter.requires_grad for parameter in limit.parameters())
    assert limit.zero_mean_gap().total == 0
    again = pickle.loads(pickle.dumps(limit))
    assert torch.equal(again.site_distribution("2.weight").variance, limit.site_distribution("2.weight").variance)


def test_a_standard_deviation_of_zero_stays_near_zero():
    guide = ps.guides.WeightwiseAlpha(model_of(nn.Linear(3, 1, bias=False)))
    with torch.no_grad():
        next(p for name, p in guide.named_parameters() if name.endswith("loc"))[0, 0] = 0
    assert to_variance_only(guide).site_distribution("weight").base_dist.stddev[0, 0] < 1e-9


def test_scales_of_priors_are_copied():
    guide = GUIDES["additive"](model_of(prior=ps.priors.Hierarchical()))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1)
    limit = to_variance_only(guide)
    assert type(limit) is ps.guides.VarianceOnly and limit.site_names == guide.site_names
    scales = set(guide.site_names) - set(guide.weight_names)
    assert len(scales) == 2
    for name in scales:
        before, after = guide.site_distribution(name), limit.site_distribution(name)
        assert torch.equal(after.base_dist.loc, before.base_dist.loc)
        assert torch.equal(after.base_dist.scale, before.base_dist.scale)


def test_per_site_converts_normal_distributions_and_copies_the_rest():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model = model_of(net, prior=ps.priors.Normal())
    uniform = functools.partial(ps.guides.VarianceOnly, family="uniform")
    guide = ps.guides.PerSite(model, {"0.*": ps.guides.Additive, "1.*": LaplaceGuide, "2.*": uniform})
    limit = to_variance_only(guide)
    assert type(limit) is ps.guides.PerSite and limit.site_names == guide.site_names
    kinds = [type(limit.site_distribution(name).base_dist).__name__ for name in limit.site_names]
    assert kinds == ["CenteredNormal", "Laplace", "SymmetricUniform"]
    assert torch.allclose(limit.site_distribution("0.weight").variance, guide.site_distribution("0.weight").variance)
    assert torch.equal(limit.site_distribution("1.weight").mean, guide.site_distribution("1.weight").mean)
    assert not {p.data_ptr() for p in guide.parameters()} & {p.data_ptr() for p in limit.parameters()}


@pytest.mark.parametrize("sites", [["0.weight"], "0.weight"])
def test_only_the_sites_named_are_converted(sites):
    guide = GUIDES["neuronwise"](model_of())
    limit = to_variance_only(guide, sites=sites)
    assert type(limit) is ps.guides.PerSite and limit.site_names == guide.site_names
    assert type(limit.site_distribution("0.weight").base_dist).__name__ == "CenteredNormal"
    assert torch.equal(limit.site_distribution("2.weight").mean, guide.site_distribution("2.weight").mean)
    assert torch.equal(limit.site_distribution("2.weight").variance, guide.site_distribution("2.weight").variance)
    assert not {p.data_ptr() for p in guide.parameters()} & {p.data_ptr() for p in limit.parameters()}
    assert len(list(limit.parameters())) == 3 and list(limit()) == list(guide.site_names)
    assert len(list(guide.parameters())) == 4
    with pytest.raises(ValueError, match="guide NeuronwiseAlpha: no site '2.weight'; it has '0.weight'"):
        guide.restricted_to(["0.weight"]).site_distribution("2.weight")
    with pytest.raises(ValueError, match=r"guide NeuronwiseAlpha: no site\(s\) 'x'; it has '0.weight'"):
        guide.restricted_to(["x"])


def test_parts_of_a_per_site_guide_share_no_site():
    model = model_of()
    first, second = ps.guides.Additive(model), ps.guides.Additive(model, sites=["2.weight"])
    with pytest.raises(ValueError, match="expected parts that cover each of '0.weight', '2.weight' once"):
        ps.guides.PerSite.of([first, second], sites=first.site_names)


def digits(count=300):
    split = ps.data.load("digits", limit=count)
    return split.x_train.flatten(1), split.y_train


def single_draws(model, guide, x, y, draws=200):
    """Accuracy and probability of the label of each drawn network; the same standard noise for every guide."""
    noise = torch.Generator().manual_seed(7)
    mean, scale = moments(guide, "0.weight")
    rows = []
    for _ in range(draws):
        weight = mean + scale * torch.randn(mean.shape, generator=noise)
        with torch.no_grad():
            probs = model.outputs(x, {"0.weight": weight}).softmax(-1)
        rows.append([(probs.argmax(-1) == y).double().mean().item(), probs[torch.arange(len(y)), y].mean().item()])
    return torch.tensor(rows, dtype=torch.float64)


def trained(log_alpha, lr_alpha):
    """A layer-wise alpha on the hidden layer of a small classifier of digits."""
    torch.manual_seed(0)
    x, y = digits()
    net = nn.Sequential(nn.Linear(64, 100, bias=False), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10))
    prior = {"0.weight": ps.priors.LogUniform()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=len(y))
    guide = ps.guides.LayerwiseAlpha(model, init_log_alpha=log_alpha)
    ps.fit(model, guide, (x, y), epochs=40, batch_size=50, lr=1e-2, lr_alpha=lr_alpha, seed=0, progress=False)
    return model.eval(), guide, x, y


def test_at_a_large_alpha_the_means_can_be_zeroed():
    model, guide, x, y = trained(8.0, 1.0)
    gap = guide.zero_mean_gap()
    assert gap.sites[0].log_alpha > 10 and gap.total_variation < 0.05
    limit = to_variance_only(guide)
    before, after = single_draws(model, guide, x, y), single_draws(model, limit, x, y)
    change = before - after
    error = change.std(0) / math.sqrt(len(change))
    assert (change.mean(0).abs() <= gap.total_variation + 3 * error).all()
    assert after[:, 0].mean() > 0.8  # it works, which zeroed variances would not
    # The new guide can be used at once: for averaged predictions, for the parts of the ELBO, for training.
    averaged = [ps.predict(model, g, x, mode="mc", num_samples=50).probs for g in (guide, limit)]
    assert all((probs.argmax(-1) == y).double().mean() > 0.95 for probs in averaged)
    assert (averaged[0] - averaged[1]).abs().mean() < 0.03
    parts = [ps.decompose(model, g, (x, y), num_samples=20) for g in (guide, limit)]
    assert parts[1].kl == 0 and parts[0].kl < 0.01
    assert abs(parts[0].data - parts[1].data) < 5 * (parts[0].data_stderr + parts[1].data_stderr)
    history = ps.fit(model, limit, (x, y), epochs=3, batch_size=50, lr=1e-2, seed=0, progress=False).history
    assert history["elbo"][-1] > 1.5 * parts[1].data


def test_at_a_small_alpha_they_cannot_and_the_bound_is_vacuous():
    model, guide, x, y = trained(-4.0, 1e-4)
    gap = guide.zero_mean_gap()
    assert gap.bound == 1.0 and gap.total_variation == 1.0
    before, after = single_draws(model, guide, x, y, 20), single_draws(model, to_variance_only(guide), x, y, 20)
    assert before[:, 0].mean() > 0.9
    assert after[:, 0].mean() < before[:, 0].mean() - 0.3

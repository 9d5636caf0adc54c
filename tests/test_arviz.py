"""ArviZ data compared with their draws, ArviZ's functions, and NUTS compared with a guide and closed forms."""

from __future__ import annotations

import math
import sys
import types
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.diagnose import from_mcmc, to_arviz

F64 = {"dtype": torch.float64}
NOISE = 0.5


def groups_of(found):
    """Names of the groups: a method of ArviZ 0.x's InferenceData, a property of 1.x's DataTree."""
    return set(found.groups()) if callable(found.groups) else {name.strip("/") for name in found.groups} - {""}


@pytest.fixture
def az():
    """Import ArviZ with a plot backend that needs no screen; its settings are compared afterwards."""
    import matplotlib

    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    import arviz

    before = dict(arviz.rcParams)
    yield arviz
    assert dict(arviz.rcParams) == before
    matplotlib.pyplot.close("all")
    matplotlib.use(backend)


def regression(count=12, outputs=1, scale=0.3):
    """Linear regression with orthogonal inputs: its exact posterior has independent weights."""
    model = ps.BayesianModel(
        nn.Linear(3, outputs, bias=False, **F64),
        prior=ps.priors.Normal(),
        likelihood=ps.likelihoods.Gaussian(NOISE),
        num_data=count,
    )
    generator = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(count, 3, generator=generator, **F64))[0] * torch.tensor([2.0, 3.0, 1.0], **F64)
    y = x @ torch.tensor([[0.5], [-1.0], [0.2]], **F64) + 0.3 * torch.randn(count, outputs, generator=generator, **F64)
    return model, ps.guides.Additive(model, init_scale=scale), (x, y)


def exact_posterior(x, y):
    variance = 1 / (x.square().sum(0) / NOISE**2 + 1)
    return variance * (x.T @ y)[:, 0] / NOISE**2, variance.sqrt()


def test_all_groups_come_from_the_same_draws():
    model, guide, (x, y) = regression(outputs=2)
    found = to_arviz(model, guide, (x, y), draws=4, chains=2, batch_size=5)
    weights = torch.from_numpy(found.posterior["weight"].values)
    assert weights.shape == (2, 4, 2, 3)
    outputs = torch.einsum("cdoi,ni->cdno", weights, x)
    densities = dist.Normal(outputs, NOISE).log_prob(y).sum(-1)
    np.testing.assert_allclose(found.log_likelihood["obs"].values, densities.numpy(), rtol=1e-9)
    np.testing.assert_array_equal(found.observed_data["obs"].values, y.numpy())
    assert found.posterior_predictive["obs"].dims == ("chain", "draw", "example", "output")
    assert len(np.unique(weights.numpy())) == weights.numel()


def test_predictive_draws_have_the_exact_moments():
    model, guide, (x, y) = regression()
    found = to_arviz(model, guide, (x, y), draws=1500, log_likelihood=False)
    base = guide.site_distribution("weight").base_dist
    mean = (x @ base.mean.detach().T)[:, 0].numpy()
    variance = (x.square() @ base.variance.detach().T)[:, 0].numpy() + NOISE**2
    drawn = found.posterior_predictive["obs"].values[0, :, :, 0]
    assert (np.abs(drawn.mean(0) - mean) < 5 * np.sqrt(variance / 1500)).all()
    assert (np.abs(drawn.var(0) / variance - 1) < 5 * math.sqrt(2 / 1500)).all()
    assert "log_likelihood" not in groups_of(found)


def test_dimensions_have_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.word = nn.Embedding(5, 4)
            self.line = nn.Conv1d(4, 3, 2)
            self.up = nn.ConvTranspose2d(1, 2, 2)
            self.mix = nn.Bilinear(2, 2, 2)
            self.head = nn.Linear(2, 2)

        def forward(self, x):
            h = self.line(self.word(x).mT)
            h = self.up(h.unsqueeze(1)).mean((2, 3))
            return self.head(self.mix(h, h))

    likelihood, prior = ps.likelihoods.Gaussian(dist.HalfNormal(1.0)), {"*": ps.priors.Normal()}
    model = ps.BayesianModel(Net(), prior=prior, likelihood=likelihood, num_data=6)
    data = (torch.randint(5, (6, 7)), torch.zeros(6, 2))
    found = to_arviz(model, ps.guides.Additive(model), data, draws=2)
    dims = {str(name): [str(d) for d in found.posterior[name].dims[2:]] for name in found.posterior.data_vars}
    assert dims == {
        "word.weight": ["word.weight_index", "word.weight_feature"],
        "line.weight": ["line.weight_out", "line.weight_in", "line.weight_w"],
        "line.bias": ["line.bias_out"],
        "up.weight": ["up.weight_in", "up.weight_out", "up.weight_h", "up.weight_w"],
        "up.bias": ["up.bias_out"],
        "mix.weight": ["mix.weight_dim_0", "mix.weight_dim_1", "mix.weight_dim_2"],
        "mix.bias": ["mix.bias_out"],
        "head.weight": ["head.weight_out", "head.weight_in"],
        "head.bias": ["head.bias_out"],
        "likelihood.scale": [],
    }
    assert found.attrs["inference_library"] == "pyrostoch" and found.attrs["guide"] == "Additive"
    assert found.attrs["inference_library_version"] == ps.__version__ and found.attrs["model"] == "Net"


def test_classes_have_one_observation_per_example():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=9)
    found = to_arviz(model, ps.guides.Additive(model), (torch.randn(9, 3), torch.arange(9) % 3), draws=3)
    obs = found.posterior_predictive["obs"]
    assert obs.dims == ("chain", "draw", "example") and obs.dtype == np.int64 and set(obs.values.flat) <= {0, 1, 2}


def test_sites_are_chosen_and_draws_thinned():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model = ps.BayesianModel(net, prior={"*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(), num_data=5)
    guide, data = ps.guides.Additive(model), (torch.randn(5, 3), torch.zeros(5, 1))
    found = to_arviz(model, guide, data, draws=7, thin=3, sites=["1.*", "0.bias"])
    assert [str(name) for name in found.posterior.data_vars] == ["0.bias", "1.weight", "1.bias"]
    for group in (found.posterior, found.posterior_predictive, found.log_likelihood):
        assert group["draw"].values.tolist() == [0, 3, 6]
    assert list(to_arviz(model, guide, data, draws=1, sites="1.weight").posterior.data_vars) == ["1.weight"]
    with pytest.raises(ValueError, match=r"sites: '2\.\*' matches no site; there are '0.weight', '0.bias'"):
        to_arviz(model, guide, data, sites=["2.*"])
    with pytest.raises(ValueError, match="sites: expected at least one"):
        to_arviz(model, guide, data, sites=[])


def test_too_large_a_result_is_refused_before_it_is_drawn():
    model, guide, data = regression()
    calls = []
    guide.register_forward_hook(lambda *_: calls.append(1))
    # Per draw: 3 weights, 12 predictions, 12 log likelihoods, of 8 bytes each.
    with pytest.raises(ValueError, match=r"^1000 draws need 0.216 MB, more than max_bytes=0.1 MB: post") as e:
        to_arviz(model, guide, data, draws=1000, max_bytes=1e5)
    parts = ("posterior 0.024 MB", "'weight', 0.024 MB", "predictive 0.096 MB")
    for part in (*parts, "sites=", "keep 462 draws", "thin=3", "leave out posterior_predictive"):
        assert part in str(e.value)
    assert len(calls) == 1
    kept = to_arviz(model, guide, data, draws=1000, thin=3, max_bytes=1e5)
    assert kept.posterior.sizes["draw"] == 334


def test_the_order_of_the_data_must_not_change():
    model, guide, (x, y) = regression()
    dataset = TensorDataset(x, y)
    with pytest.raises(ValueError, match="shuffle=False"):
        to_arviz(model, guide, DataLoader(dataset, batch_size=4, shuffle=True), draws=3)
    with pytest.raises(ValueError, match="drop_last=False"):
        to_arviz(model, guide, DataLoader(dataset, batch_size=5, drop_last=True), draws=3)
    kept = to_arviz(model, guide, DataLoader(dataset, batch_size=5), draws=3)
    outputs = torch.einsum("cdoi,ni->cdno", torch.from_numpy(kept.posterior["weight"].values), x)
    densities = dist.Normal(outputs, NOISE).log_prob(y).sum(-1)
    np.testing.assert_allclose(kept.log_likelihood["obs"].values, densities.numpy(), rtol=1e-9)


def test_a_seed_repeats_and_nothing_else_changes():
    model, guide, data = regression()
    model.train()
    state = torch.get_rng_state()
    one, two = (to_arviz(model, guide, data, draws=3, seed=5).posterior["weight"].values for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.get_rng_state(), state) and model.net.training


def test_bad_input_is_refused():
    model, guide, (x, y) = regression()
    for name in ("draws", "chains", "thin"):
        with pytest.raises(ValueError, match=f"{name}: .* got 0"):
            to_arviz(model, guide, (x, y), **{name: 0})
    with pytest.raises(ValueError, match="targets of shape"):
        to_arviz(model, guide, (x, y[:, 0]))
    with pytest.raises(TypeError, match="expected a pyro.infer.MCMC after its run, got int"):
        from_mcmc(3, model, (x, y))


def test_arviz_works_on_it(az, tmp_path):
    model, guide, data = regression()
    found = to_arviz(model, guide, data, draws=100, chains=4, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loo = az.loo(found)
        assert math.isfinite(getattr(loo, "elpd_loo", None) or loo.elpd) and loo.n_data_points == 12
        summary = az.summary(found)
        assert len(summary) == 3 and list(summary.index)[0] == "weight[0, 0]"
        assert (summary["r_hat"].astype(float) < 1.1).all()
        az.plot_trace(found)
        az.plot_forest(found, var_names=["weight"])
        if hasattr(az, "plot_ppc_dist"):  # ArviZ 1.x
            az.plot_ppc_dist(found)
        else:
            az.plot_ppc(found, num_pp_samples=5)
        found.to_netcdf(str(tmp_path / "posterior.nc"))
        back = az.from_netcdf(str(tmp_path / "posterior.nc"))
    np.testing.assert_array_equal(back.posterior["weight"], found.posterior["weight"])
    assert back.attrs["guide"] == "Additive"


def test_autoguides_show_the_models_sites_only():
    model, _, (x, y) = regression()
    guide = AutoMultivariateNormal(model)
    guide(x, y)
    assert list(to_arviz(model, guide, (x, y), draws=2).posterior.data_vars) == ["weight"]


def test_nuts_guide_and_closed_form_agree():
    model, _, (x, y) = regression()
    mean, scale = exact_posterior(x, y)
    guide = ps.guides.Additive(model, init_loc=mean.reshape(1, 3), init_scale=scale.reshape(1, 3))
    mcmc = MCMC(NUTS(model), num_samples=200, warmup_steps=100, disable_progbar=True)
    mcmc.run(x, y)
    chain, ours = from_mcmc(mcmc, model, (x, y)), to_arviz(model, guide, (x, y), draws=200)
    assert chain.attrs["sampler"] == "NUTS" and groups_of(chain) == groups_of(ours)
    for found in (chain, ours):
        draws = found.posterior["weight"].values[0, :, 0]
        assert found.posterior["weight"].dims == ours.posterior["weight"].dims
        assert (np.abs(draws.mean(0) - mean.numpy()) < 6 * scale.numpy() / math.sqrt(200)).all()
        assert (np.abs(draws.std(0) / scale.numpy() - 1) < 6 * math.sqrt(0.5 / 200)).all()
    # All groups come from the same draws of the chain, and thinning keeps every second one.
    weights = torch.from_numpy(chain.posterior["weight"].values)
    densities = dist.Normal(torch.einsum("cdoi,ni->cdno", weights, x), NOISE).log_prob(y).sum(-1)
    np.testing.assert_allclose(chain.log_likelihood["obs"].values, densities.numpy(), rtol=1e-9)
    thinned = from_mcmc(mcmc, model, (x, y), thin=2, posterior_predictive=False)
    np.testing.assert_array_equal(thinned.posterior["weight"], chain.posterior["weight"][:, ::2])
    assert thinned.posterior["draw"].values[:2].tolist() == [0, 2]


def test_nuts_on_a_network_covers_its_hidden_units():
    net = nn.Sequential(nn.Linear(1, 3, **F64), nn.Tanh(), nn.Linear(3, 1, **F64))
    model = ps.BayesianModel(
        net, prior={"*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(dist.HalfNormal(1.0)), num_data=10
    )
    x = torch.linspace(-1, 1, 10, **F64).unsqueeze(1)
    mcmc = MCMC(NUTS(model, max_tree_depth=4), num_samples=15, warmup_steps=15, disable_progbar=True)
    mcmc.run(x, x.sin())
    found = from_mcmc(mcmc, model, (x, x.sin()))
    names = {str(name) for name in found.posterior.data_vars}
    assert names == {"0.weight", "0.bias", "2.weight", "2.bias", "likelihood.scale"}
    assert (found.posterior["likelihood.scale"] > 0).all() and found.log_likelihood["obs"].shape == (1, 15, 10)


@pytest.mark.parametrize("prior", [ps.priors.LogUniform(), ps.priors.ARD()])
def test_nuts_under_an_improper_prior_is_refused_by_name(prior):
    model = ps.BayesianModel(
        nn.Linear(3, 1, **F64), prior=prior, likelihood=ps.likelihoods.Gaussian(NOISE), num_data=12
    )
    x, y = regression()[2]
    refusal = f"{type(prior).__name__} is an improper prior and has no samples.*proper prior"
    with pytest.raises(ValueError, match=refusal):
        MCMC(NUTS(model), num_samples=2, warmup_steps=1, disable_progbar=True).run(x, y)
    chain = types.SimpleNamespace(get_samples=lambda group_by_chain: {"weight": torch.zeros(1, 5, 1, 3)})
    with pytest.raises(ValueError, match="prior of 'weight' is improper"):
        from_mcmc(chain, model, (x, y))
    chain.get_samples = lambda group_by_chain: {}
    with pytest.raises(ValueError, match="expected samples, got none"):
        from_mcmc(chain, regression()[0], (x, y))


def test_from_arviz_1_on_it_is_a_datatree(monkeypatch):
    calls = []
    base = types.ModuleType("arviz_base")
    base.from_dict = lambda groups, **options: calls.append((groups, options)) or "a DataTree"
    new = types.ModuleType("arviz")
    new.__version__ = "1.0.0"
    monkeypatch.setitem(sys.modules, "arviz", new)
    monkeypatch.setitem(sys.modules, "arviz_base", base)
    model, guide, data = regression()
    assert to_arviz(model, guide, data, draws=3, chains=2, thin=2) == "a DataTree"
    ((groups, options),) = calls
    shapes = {group: {name: value.shape for name, value in found.items()} for group, found in groups.items()}
    assert shapes == {
        "posterior": {"weight": (2, 2, 1, 3)},
        "posterior_predictive": {"obs": (2, 2, 12, 1)},
        "log_likelihood": {"obs": (2, 2, 12)},
        "observed_data": {"obs": (12, 1)},
    }
    assert set(options) == {"coords", "dims", "attrs"} and set(options["attrs"]) == {"/"}
    assert options["dims"]["weight"] == ["weight_out", "weight_in"] and options["dims"]["obs"] == ["example", "output"]
    assert options["coords"]["draw"].tolist() == [0, 2]

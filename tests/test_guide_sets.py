"""Guides that are points and sets: their draws, predictions and terms, beside those of their members."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor, nn

import pyrostoch as ps

PRIOR: dict[str, Any] = {"*": ps.priors.Normal(0.1, 0.7)}


def data(count: int = 30) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3).double()
    return x, torch.stack([x[:, 0].sin(), x.sum(1)], 1)


def model_of(prior: Any = None, net: nn.Module | None = None, num_data: int = 30) -> ps.BayesianModel:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)) if net is None else net
    noise = ps.likelihoods.Gaussian(0.3)
    return ps.BayesianModel(net.double(), prior=PRIOR if prior is None else prior, likelihood=noise, num_data=num_data)


def shaken(guide: Any) -> Any:
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def samples_of(model: ps.BayesianModel, count: int) -> ps.guides.Samples:
    return ps.guides.Samples(model, {name: torch.randn(count, *site.init.shape) for name, site in model.sites.items()})


def test_terms_of_a_point_are_the_log_joint_density() -> None:
    model, (x, y) = model_of(), data()
    guide = shaken(ps.guides.Delta(model))
    found = ps.decompose(model, guide, (x, y))
    weights = {name: guide.parameters_for(name)["loc"] for name in guide.site_names}
    with torch.no_grad():
        output = torch.func.functional_call(model.net, weights, x)
        prior = torch.distributions.Normal(0.1, 0.7)
        log_prior = sum(prior.log_prob(weight).sum() for weight in weights.values())
        log_data = torch.distributions.Normal(output, 0.3).log_prob(y).sum()
    assert found.data == pytest.approx(float(log_data))
    assert found.log_joint == pytest.approx(float(log_data + log_prior))
    assert math.isnan(found.elbo) and math.isnan(found.kl)
    assert {row.method for row in found.sites} == {"log prior"}
    text = str(found)
    assert "= log joint" in text and "+ log prior" in text and "No ELBO" in text and "= ELBO" not in text


def test_training_a_point_finds_the_ridge_estimate() -> None:
    x, y = torch.randn(40, 3).double(), torch.randn(40, 1).double()
    model = ps.BayesianModel(
        nn.Linear(3, 1, bias=False).double(),
        prior=ps.priors.Normal(0.0, 0.5),
        likelihood=ps.likelihoods.Gaussian(0.8),
        num_data=40,
    )
    guide = ps.guides.Delta(model)
    found = ps.fit(model, guide, (x, y), epochs=1500, batch_size=40, lr=0.03, progress=False, compile=False)
    exact = torch.linalg.solve(x.T @ x / 0.64 + torch.eye(3) / 0.25, x.T @ y / 0.64)
    torch.testing.assert_close(guide.parameters_for("weight")["loc"].detach(), exact.T, atol=1e-5, rtol=1e-5)
    assert not found.density and "log joint density" in str(found) and "ELBO" not in str(found).splitlines()[0]


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (ps.priors.LogUniform(), "expected a prior whose density has a maximum at site '0.weight', got LogUniform"),
        (ps.priors.Hierarchical(), "'0.weight_prior_scale', '2.weight_prior_scale' is random"),
        (ps.priors.EmpiricalBayes(), "'0.weight', '2.weight' is fitted"),
    ],
)
def test_a_point_under_a_prior_without_a_maximum_is_refused(prior: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ps.guides.Delta(model_of(prior))


@pytest.mark.parametrize("make", [ps.guides.Delta, ps.guides.Additive, ps.guides.LowRank])
def test_predictions_of_an_ensemble_are_the_average_over_its_members(make: Any) -> None:
    model, (x, _) = model_of(), data()
    guide = ps.guides.Ensemble(shaken(make(model)) for _ in range(3))
    if make is ps.guides.Delta:
        found = ps.predict(model, guide, x, mode="mc:6", seed=0)
        members = torch.stack([ps.predict(model, member, x, mode="mean").mean for member in guide.members])
        torch.testing.assert_close(found.mean, members.mean(0))
        torch.testing.assert_close(found.epistemic, members.var(0, unbiased=False))
        return
    found = ps.predict(model, guide, x[:3], mode="mc:1500", seed=0)
    drawn = ps.draws(model, guide, x[:3], num=1500, seed=1).means.double()
    error = (drawn.var(0) / 1500).sqrt() * 2**0.5
    assert ((found.mean - drawn.mean(0)).abs() < 6 * error).all()
    ratio = found.epistemic / drawn.var(0)
    assert 0.6 < ratio.min() and ratio.max() < 1.6


def test_draws_take_all_members_in_turn() -> None:
    model, (x, _) = model_of(), data()
    guide = samples_of(model, 7)
    outputs = ps.draws(model, guide, x, num=14).outputs
    expected = torch.stack(
        [torch.func.functional_call(model.net, {n: guide.values(n)[k] for n in guide.site_names}, x) for k in range(7)]
    )
    for half in (outputs[:7], outputs[7:]):
        order = torch.cdist(half.flatten(1), expected.flatten(1)).argmin(1)
        assert sorted(order.tolist()) == list(range(7))
        torch.testing.assert_close(half, expected[order])
    outside = {guide()["2.bias"].sum().item() for _ in range(200)}
    assert 1 < len(outside) <= 7 and guide._left is None


def test_terms_of_an_ensemble_bound_those_of_the_mixture() -> None:
    model, pair = model_of(), data()
    guide = ps.guides.Ensemble(shaken(ps.guides.Additive(model, init_scale=0.3)) for _ in range(3))
    found = ps.decompose(model, guide, pair, num_samples=4)
    assert len(found.members) == 3
    assert found.elbo == pytest.approx(sum(member.elbo for member in found.members) / 3)
    assert found.kl == pytest.approx(sum(member.kl for member in found.members) / 3)
    assert {row.method for row in found.sites} == {"exact"} and "Means over 3 members" in str(found)
    # The divergence of the mixture itself, from draws of it.
    prior, values = torch.distributions.Normal(0.1, 0.7), []
    with torch.no_grad():
        for _ in range(400):
            drawn = guide()
            log_q = torch.stack(
                [
                    sum(member.site_distribution(name).log_prob(value) for name, value in drawn.items())
                    for member in guide.members
                ]
            ).logsumexp(0) - math.log(3)
            values.append(log_q - sum(prior.log_prob(value).sum() for value in drawn.values()))
    mixture = torch.stack(values)
    error = 5 * float(mixture.std()) / 20
    assert found.kl - math.log(3) - error < float(mixture.mean()) < found.kl + error


def test_an_ensemble_of_points_has_no_elbo_and_is_one_row_of_a_comparison() -> None:
    model, pair = model_of(), data()
    guide = ps.guides.Ensemble.of(model, size=3)
    found = ps.decompose(model, guide, pair)
    assert math.isnan(found.elbo) and found.log_joint is not None
    assert [row.mode for row in ps.compare(model, guide, pair).rows] == ["mc:1", "mc:3"]
    for mode in ("mean", "moments", "moments:mc", "noise-free"):
        with pytest.raises(ValueError, match="mean of their weights is none of them; predict by mode='mc:3'"):
            ps.predict(model, guide, pair[0], mode=mode)


def test_members_start_apart_and_are_trained_as_they_would_be_alone() -> None:
    model, pair = model_of(), data()
    guide, alone = ps.guides.Ensemble.of(model, size=3), ps.guides.Delta(model)
    starts = [member.parameters_for("0.weight")["loc"].detach().clone() for member in guide.members]
    assert torch.equal(starts[0], model.net[0].weight) and not torch.equal(starts[0], starts[1])
    settings: Any = {"epochs": 4, "batch_size": 8, "lr": 1e-2, "seed": 0, "progress": False, "compile": False}
    ps.fit(model, guide, pair, **settings)
    ps.fit(model, alone, pair, **settings)
    for one, other in zip(guide.members[0].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [ps.guides.Delta, ps.guides.Additive])
def test_members_together_have_the_gradients_of_members_one_by_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pair = model_of(), data()
    origin = ps.guides.Ensemble.of(model, make, size=3)
    settings: Any = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "seed": 0, "progress": False, "compile": False}
    if make is ps.guides.Additive:  # the noise of the two differs, so that there must be nearly none
        settings["kl_warmup"] = (8.0, 9.0)
        origin = ps.guides.Ensemble(make(model, init_scale=1e-6) for _ in range(3))
    found = []
    for few in (20_000, 0):
        monkeypatch.setattr("pyrostoch.training.members._FEW_WEIGHTS", few)
        guide = copy.deepcopy(origin)
        ps.fit(model, guide, pair, **settings)
        found.append([parameter for name, parameter in guide.named_parameters() if name.endswith("loc")])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_members_with_data_of_their_own_order_end_apart_from_one_start() -> None:
    model, pair = model_of(), data()
    guide = ps.guides.Ensemble(ps.guides.Delta(model) for _ in range(2))
    ps.fit(model, guide, pair, epochs=2, batch_size=8, lr=1e-2, seed=0, progress=False, compile=False)
    first, second = (torch.cat([p.flatten() for p in member.parameters()]) for member in guide.members)
    assert not torch.allclose(first, second)


def test_an_ensemble_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise Stop

    model, pair = model_of(), data()
    origin = ps.guides.Ensemble.of(model, size=2)
    settings: Any = {"epochs": 4, "batch_size": 8, "lr": 1e-2, "seed": 0, "progress": False, "compile": False}
    whole, parts = copy.deepcopy(origin), copy.deepcopy(origin)
    ps.fit(model, whole, pair, validation=pair, **settings)
    settings["checkpoint"] = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        ps.fit(model, parts, pair, validation=pair, callback=stop, **settings)
    ps.fit(model, parts, pair, validation=pair, resume=True, **settings)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_members_would_share_is_refused() -> None:
    pair = data()
    model = model_of(ps.priors.Normal())
    with pytest.raises(ValueError, match="'net.0.bias', 'net.2.bias', which have no prior"):
        ps.fit(model, ps.guides.Ensemble.of(model, size=2), pair, epochs=1, progress=False)
    model = model_of()
    with pytest.raises(ValueError, match="clip= is the norm of one network's gradient"):
        ps.fit(model, ps.guides.Ensemble.of(model, size=2), pair, epochs=1, clip=1.0, progress=False)


def test_a_parameter_that_cannot_be_initialized_again_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    with pytest.raises(ValueError, match="all members would start at the same weights at site 'weight'"):
        ps.guides.Ensemble.of(model_of(net=Own()), size=2)


def test_ensembles_of_different_networks_are_refused() -> None:
    model, other = model_of(), model_of(net=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="members 0 and 1 differ in '0.bias', '0.weight', '2.weight'"):
        ps.guides.Ensemble([ps.guides.Delta(model), ps.guides.Delta(other)])
    member = ps.guides.Delta(model)
    with pytest.raises(ValueError, match="member 1 is there twice"):
        ps.guides.Ensemble([member, member])
    with pytest.raises(ValueError, match="at least one guide"):
        ps.guides.Ensemble([])
    for inner in (ps.guides.Ensemble.of(model, size=2), samples_of(model, 2)):
        with pytest.raises(ValueError, match="member 1 is a set, a (Ensemble|Samples); give the members of all sets"):
            ps.guides.Ensemble([member, inner])
    with pytest.raises(ValueError, match="got Linear"):
        ps.guides.Ensemble([nn.Linear(1, 1)])


def test_draws_that_do_not_fit_the_model_are_refused() -> None:
    model = model_of()
    good = {name: torch.randn(4, *site.init.shape) for name, site in model.sites.items()}
    for values, message in (
        ({name: value for name, value in good.items() if name != "0.bias"}, "missing '0.bias', unknown none"),
        ({**good, "other": torch.zeros(4)}, "missing none, unknown 'other'"),
        (
            {**good, "0.bias": torch.zeros(4, 6)},
            r"site '0.bias': expected draws of shape \(K, \*\(5,\)\), got \(4, 6\)",
        ),
        ({**good, "0.bias": torch.zeros(3, 5)}, r"as many draws of each site, got \[3, 4\]"),
        ({**good, "0.bias": torch.full((4, 5), math.nan)}, "site '0.bias'"),
    ):
        with pytest.raises(ValueError, match=message):
            ps.guides.Samples(model, values)
    scales = model_of(ps.priors.Hierarchical())
    values = {name: -torch.ones(2, *site.init.shape) for name, site in scales.sites.items()}
    with pytest.raises(ValueError, match="expected values within"):
        ps.guides.Samples(scales, values)


def test_draws_of_nuts_are_a_guide() -> None:
    # Conjugate regression: the posterior mean is known.
    x = torch.randn(25, 2).double()
    y = x @ torch.tensor([[0.8], [-0.5]]).double() + 0.5 * torch.randn(25, 1).double()
    model = ps.BayesianModel(
        nn.Linear(2, 1, bias=False).double(),
        prior=ps.priors.Normal(),
        likelihood=ps.likelihoods.Gaussian(0.5),
        num_data=25,
    )
    sampler = MCMC(NUTS(model), num_samples=400, warmup_steps=200, disable_progbar=True)
    sampler.run(x, y)
    guide = ps.guides.Samples.from_mcmc(sampler, model)
    assert len(guide) == 400
    precision = x.T @ x / 0.25 + torch.eye(2)
    exact = torch.linalg.solve(precision, x.T @ y / 0.25).T
    spread = torch.linalg.inv(precision).diagonal().sqrt()
    drawn = guide.values("weight")
    size = torch.as_tensor(pyro.ops.stats.effective_sample_size(drawn.unsqueeze(0), chain_dim=0, sample_dim=1))
    assert ((drawn.mean(0) - exact).abs() < 4 * spread / size.clamp(min=50).sqrt()).all()
    found = ps.predict(model, guide, x, mode="mc:400")
    torch.testing.assert_close(found.mean, x @ drawn.mean(0).T)
    assert "posterior" in ps.to_arviz(model, guide, (x, y), draws=20).groups()


@pytest.mark.parametrize("kind", ["ensemble", "samples"])
def test_sets_are_copied_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    def build() -> tuple[ps.BayesianModel, Any]:
        model = model_of()
        if kind == "samples":
            return model, samples_of(model, 4)
        return model, ps.guides.Ensemble(shaken(ps.guides.Additive(model)) for _ in range(3))

    (model, guide), (other_model, other) = build(), build()
    ps.save(tmp_path / "set.safetensors", model, guide)
    ps.load(tmp_path / "set.safetensors", other_model, other)
    x = data()[0]
    expected = ps.predict(model, guide, x, mode="mc:12", seed=0).mean
    for found_model, found in (
        (other_model, other),
        (model, copy.deepcopy(guide)),
        (model, pickle.loads(pickle.dumps(guide))),
    ):
        torch.testing.assert_close(ps.predict(found_model, found, x, mode="mc:12", seed=0).mean, expected)


def test_a_compiled_step_of_a_set_is_refused_and_runs_eagerly() -> None:
    model, (x, y) = model_of(), data()
    guide = ps.guides.Ensemble.of(model, ps.guides.Additive, size=2)
    optimizer = torch.optim.Adam(guide.parameters())
    step = ps.compile_step(ps.ELBO()(model, guide), optimizer)
    with pytest.warns(UserWarning, match="runs eagerly"):
        for _ in range(3):
            step(x, y)


def test_a_set_within_an_amortised_guide_is_not_trained() -> None:
    model = model_of()
    guide = ps.guides.Amortised(model, weights=ps.guides.Ensemble.of(model, size=2))
    with pytest.raises(ValueError, match="expected the Ensemble itself, got it within Amortised"):
        ps.fit(model, guide, data(), epochs=1, progress=False)

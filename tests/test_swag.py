"""SWAG: what is kept of the iterates, and the posterior made of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyrostoch as ps

SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "lr": 1e-4,
    "optimizer": partial(torch.optim.SGD, momentum=0.5),
    "schedule": "constant",
    "seed": 0,
    "progress": False,
    "compile": False,
}


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)).double()
    return x, x.sum(1, keepdim=True).sin()


def model_of(net: nn.Module | None = None, prior: Any = None) -> ps.BayesianModel:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)) if net is None else net
    prior = {"*": ps.priors.Normal(0.2, 0.6)} if prior is None else prior
    return ps.BayesianModel(net.double(), prior=prior, likelihood=ps.likelihoods.Gaussian(0.5), num_data=32)


def flat(guide: Any, name: str = "loc") -> Tensor:
    return torch.cat([guide.parameters_for(site)[name].detach().flatten() for site in guide.site_names])


def trained(rank: int = 3, start: int = 2, epochs: int = 9) -> tuple[ps.BayesianModel, ps.guides.Swag, list[Tensor]]:
    model = model_of()
    guide, seen = ps.guides.Swag(model, rank, start=start), list[Tensor]()
    ps.fit(model, guide, data(), epochs=epochs, callback=lambda row: seen.append(flat(guide).clone()), **SETTINGS)
    return model, guide, seen[start:]


def exact(iterates: list[Tensor], rank: int) -> MultivariateNormal:
    stacked = torch.stack(iterates)
    deviations = [value - stacked[: index + 1].mean(0) for index, value in enumerate(stacked)]
    factor = torch.stack(deviations[-rank:])
    kept = len(factor)
    covariance = torch.diag(stacked.var(0, unbiased=False)) / 2 + factor.T @ factor / (2 * (kept - 1))
    return MultivariateNormal(stacked.mean(0), covariance)


@pytest.mark.parametrize("epochs", [5, 9, 12])
def test_posterior_is_that_of_the_iterates(epochs: int) -> None:
    _, guide, iterates = trained(epochs=epochs)
    assert len(guide) == len(iterates) == epochs - 2
    expected = exact(iterates, 3)
    mean = torch.cat([guide.site_distribution(name).mean.flatten() for name in guide.site_names])
    variance = torch.cat([guide.site_distribution(name).variance.flatten() for name in guide.site_names])
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(variance, expected.variance)
    with torch.no_grad():
        drawn = torch.stack([torch.cat([v.flatten() for v in guide().values()]) for _ in range(4000)])
    whitened = torch.linalg.solve_triangular(expected.scale_tril, (drawn - expected.mean).T, upper=False)
    torch.testing.assert_close(torch.cov(whitened), torch.eye(len(mean)).double(), atol=0.15, rtol=0)


def test_divergence_is_exact_and_the_elbo_is_that_of_a_normal_posterior() -> None:
    model, guide, iterates = trained()
    found = ps.decompose(model, guide, data(), num_samples=2)
    size = len(iterates[0])
    prior = MultivariateNormal(torch.full((size,), 0.2).double(), 0.36 * torch.eye(size).double())
    assert found.kl == pytest.approx(float(kl_divergence(exact(iterates, 3), prior)), rel=1e-6)
    assert {row.method for row in found.sites} <= {"exact", "monte carlo"} and found.log_joint is None


def test_training_is_that_of_a_point() -> None:
    model, guide, _ = trained(epochs=9)
    point = ps.guides.Delta(model)
    found = ps.fit(model, point, data(), epochs=9, **SETTINGS)
    assert torch.equal(flat(point), flat(guide)) and not found.density


def test_an_interrupted_run_collects_the_same(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 5:
            raise Stop

    model = model_of()
    guide = ps.guides.Swag(model, 3, start=2)
    pair, path = data(), tmp_path / "run.safetensors"
    reference = ps.guides.Swag(model, 3, start=2)
    ps.fit(model, reference, pair, epochs=9, **SETTINGS)
    with pytest.raises(Stop):
        ps.fit(model, guide, pair, epochs=9, checkpoint=path, callback=stop, **SETTINGS)
    ps.fit(model, guide, pair, epochs=9, checkpoint=path, resume=True, **SETTINGS)
    for name, value in reference.state_dict().items():
        assert torch.equal(value, guide.state_dict()[name]), name


def test_without_iterates_it_is_refused() -> None:
    model = model_of()
    guide, (x, y) = ps.guides.Swag(model), data()
    for call in (
        lambda: guide(),
        lambda: ps.predict(model, guide, x, mode="mc:2"),
        lambda: guide.site_distribution("0.bias"),
    ):
        with pytest.raises(ValueError, match="expected at least two iterates, got 0"):
            call()
    for schedule in ("linear", "cosine"):
        with pytest.raises(ValueError, match=f"schedule='{schedule}' ends at a rate of 0"):
            ps.fit(model, guide, (x, y), epochs=3, **{**SETTINGS, "schedule": schedule})
    plain = model_of(prior=ps.priors.Normal())
    with pytest.raises(ValueError, match="the iterates of SWAG would share the parameters 'net.0.bias'"):
        ps.fit(plain, ps.guides.Swag(plain), (x, y), epochs=3, **SETTINGS)


def test_an_ensemble_of_swag_posteriors() -> None:
    model, pair = model_of(), data()
    guide = ps.guides.Ensemble.of(model, partial(ps.guides.Swag, rank=3), size=2)
    ps.fit(model, guide, pair, epochs=6, **SETTINGS)
    assert [len(member) for member in guide.members] == [6, 6]
    assert torch.isfinite(ps.predict(model, guide, pair[0], mode="mc:4").mean).all()
    assert len(ps.decompose(model, guide, pair).members) == 2


def test_predictions_agree_with_draws_of_whole_networks() -> None:
    model, guide, _ = trained()
    x = data()[0][:4]
    found = ps.predict(model, guide, x, mode="mc:2000", seed=0)
    with torch.no_grad():
        drawn = torch.stack([torch.func.functional_call(model.net, guide(), x) for _ in range(2000)])
    ratio = found.epistemic / drawn.var(0)
    assert 0.7 < ratio.min() and ratio.max() < 1.4
    assert ((found.mean - drawn.mean(0)).abs() < 6 * (drawn.var(0) / 1000).sqrt()).all()

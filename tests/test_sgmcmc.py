"""Chains by stochastic gradients: what they sample, when they take draws, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.training.sgmcmc import Dynamics

NOISE = 0.5


def data(count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([[0.8], [-0.5]], dtype=torch.float64) + NOISE * noise


def linear() -> ps.BayesianModel:
    net = nn.Linear(2, 1, bias=False).double()
    return ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(NOISE), num_data=20)


def run(guide: Any, model: ps.BayesianModel, **settings: Any) -> ps.Fit:
    options: dict[str, Any] = {"batch_size": 20, "lr": 2e-3, "seed": 0, "progress": False, "compile": False}
    return ps.fit(model, guide, data(), **{"sampler": ps.SGHMC(), **options, **settings})


@pytest.mark.parametrize("friction", [0.2, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_a_chain_samples_the_posterior(friction: float, temperature: float) -> None:
    model = linear()
    guide = ps.guides.Samples.chain(model, 1500)
    rate = 2e-3 if friction == 1.0 else 4e-4
    found = run(
        guide, model, epochs=3000, lr=rate, sampler=ps.SGHMC(friction=friction), temperature=temperature
    )  # fmt: skip
    x, y = data()
    precision = x.T @ x / (NOISE**2 * temperature) + torch.eye(2)
    covariance = torch.linalg.inv(precision)
    exact = covariance @ x.T @ y / (NOISE**2 * temperature)
    drawn = guide.values("weight")[:, 0]
    assert len(guide) == 1500 and not found.density
    # Batch means: draws of a chain depend on each other.
    means = drawn.reshape(15, 100, 2).mean(1)
    error = means.std(0) / math.sqrt(15)
    assert ((drawn.mean(0) - exact[:, 0]).abs() < 5 * error).all()
    ratio = drawn.var(0) / covariance.diagonal()
    assert 0.6 < ratio.min() and ratio.max() < 1.6


def test_without_noise_a_chain_ends_in_the_maximum() -> None:
    point = ps.guides.Delta(model := linear())
    optimizer = Dynamics(point.parameters(), lr=1e-3, friction=0.3)
    optimizer.noise = False
    loss = ps.ELBO()(model, point)
    x, y = data()
    for _ in range(400):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
    exact = torch.linalg.solve(x.T @ x / NOISE**2 + torch.eye(2).double(), x.T @ y / NOISE**2).T
    torch.testing.assert_close(point.parameters_for("weight")["loc"].detach(), exact, atol=1e-6, rtol=1e-6)


def test_draws_are_taken_at_the_ends_of_epochs() -> None:
    model = linear()
    guide, seen = ps.guides.Samples.chain(model, 4), list[Tensor]()
    sampler = ps.SGHMC(cycles=2)

    def note(row: dict[str, Any]) -> None:
        seen.append(guide.point.parameters_for("weight")["loc"].detach().clone())

    found = run(guide, model, epochs=12, sampler=sampler, callback=note)
    assert torch.equal(guide.values("weight"), torch.stack([seen[number - 1] for number in (5, 6, 11, 12)]))
    # The rate falls as a cosine in each cycle, from its start.
    rates = [0.5 * (1 + math.cos(math.pi * step / 6)) * 2e-3 for step in range(6)]
    assert found.history["lr"] == pytest.approx(rates * 2)


def test_every_number_of_draws_and_epochs_gives_as_many_draws() -> None:
    for cycles in (1, 2, 3):
        for explore in (0.0, 0.3, 0.8):
            for draws in (1, 2, 5):
                sampler = ps.SGHMC(cycles=cycles, explore=explore)
                for length in range(30, 34):
                    taken = [sampler.takes(n, length * cycles, draws * cycles) for n in range(1, length * cycles + 1)]
                    assert sum(taken) == draws * cycles and taken[-1]


def test_an_interrupted_chain_goes_on(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 7:
            raise Stop

    model = linear()
    whole, parts = ps.guides.Samples.chain(model, 6), ps.guides.Samples.chain(model, 6)
    run(whole, model, epochs=12, batch_size=5)
    settings: dict[str, Any] = {"epochs": 12, "batch_size": 5, "checkpoint": tmp_path / "chain.safetensors"}
    with pytest.raises(Stop):
        run(parts, model, callback=stop, **settings)
    run(parts, model, resume=True, **settings)
    assert torch.equal(whole.values("weight"), parts.values("weight")) and len(parts) == 6


def test_a_chain_is_read_by_all_verbs(tmp_path: Path) -> None:
    model = linear()
    guide = ps.guides.Samples.chain(model, 8)
    with pytest.raises(ValueError, match="expected draws, got none yet; run the chain"):
        ps.predict(model, guide, data()[0], mode="mc:2")
    run(guide, model, epochs=16, validation=data())
    assert ps.decompose(model, guide, data()).log_joint is not None
    other = ps.guides.Samples.chain(model, 8)
    ps.save(tmp_path / "chain.safetensors", model, guide)
    ps.load(tmp_path / "chain.safetensors", model, other)
    assert len(other) == 8
    found = [ps.predict(model, part, data()[0], mode="mc:8", seed=0).mean for part in (guide, other)]
    torch.testing.assert_close(*found)


def test_what_a_chain_cannot_be_run_with_is_refused() -> None:
    model = linear()
    guide = ps.guides.Samples.chain(model, 4)
    for settings, message in (
        ({"schedule": "cosine"}, "schedule='cosine' and a sampler contradict each other"),
        ({"clip": 1.0}, "clip=1.0 and a sampler contradict each other"),
        ({"optimizer": torch.optim.SGD}, "optimizer=.* and a sampler contradict each other"),
        ({"sampler": ps.SGHMC(cycles=3)}, "multiples of cycles=3, got 8 epochs and 4 draws"),
        ({"sampler": ps.SGHMC(explore=0.9)}, "expected at least 4 epochs of each cycle after the first 0.9"),
    ):
        with pytest.raises(ValueError, match=message):
            run(guide, model, epochs=8, **settings)
    with pytest.raises(TypeError, match=r"expected a guide made by guides.Samples.chain\(model, size\)"):
        run(ps.guides.Delta(model), model, epochs=8)
    for wrong in ({"friction": 0.0}, {"friction": 1.5}, {"explore": 1.0}, {"cycles": 0}):
        with pytest.raises(ValueError, match=f"SGHMC {next(iter(wrong))}"):
            ps.SGHMC(**wrong)  # type: ignore[arg-type]
    plain = ps.BayesianModel(
        nn.Linear(2, 1), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=20
    )
    with pytest.raises(ValueError, match="the draws of a chain would share the parameters 'net.bias'"):
        run(ps.guides.Samples.chain(plain, 4), plain, epochs=8)

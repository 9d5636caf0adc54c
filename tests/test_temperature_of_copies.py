"""What is made from a guide that was trained at a temperature says so, and what is trained anew does not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.guides.temperature import temperatures_of
from pyrostoch.training import NonFiniteLossError


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 12)[:, None]
    return x, x.sin()


def build() -> ps.BayesianModel:
    likelihood = ps.likelihoods.Gaussian(0.3)
    return ps.BayesianModel(nn.Linear(1, 1), prior={"*": ps.priors.Normal()}, likelihood=likelihood, num_data=12)


def run(model: ps.BayesianModel, guide: nn.Module, temperature: float = 0.25, **settings: Any) -> None:
    options = {"epochs": 2, "seed": 0, "progress": False, "compile": False, **settings}
    ps.fit(model, guide, data(), temperature=temperature, **options)


def test_draws_starts_and_limits_of_a_cold_guide_say_so() -> None:
    model = build()
    cold, warm = ps.guides.Additive(model), ps.guides.Additive(model)
    run(model, cold)
    run(model, warm, temperature=1.0)
    for source, expected in ((cold, (0.25,)), (warm, ())):
        made = {
            "draws": ps.guides.Samples.of(model, source, 3),
            "point": ps.guides.Delta(model, init_loc=source),
            "curvature": ps.guides.Laplace(model, "full", init_loc=source),
            "spread": ps.guides.FullCovariance(model, init_scale=source),
            "limit": ps.guides.to_variance_only(source),
            "part": source.restricted_to(["weight"]),
            "mixed": ps.guides.PerSite(model, {"*": partial(ps.guides.Additive, init_loc=source)}),
        }
        assert {name: temperatures_of(guide) for name, guide in made.items()} == dict.fromkeys(made, expected)
    assert "temperature 0.25" in str(ps.compare(model, ps.guides.Samples.of(model, cold, 3), data()))


def test_draws_of_members_at_several_temperatures_name_all_of_them_also_in_a_file(tmp_path: Path) -> None:
    model = build()
    members = [ps.guides.Delta(model) for _ in range(2)]
    for member, temperature in zip(members, (0.25, 4.0), strict=True):
        run(model, member, temperature)
    samples = ps.guides.Samples.of(model, ps.guides.Ensemble(members), 4)
    ps.save(tmp_path / "draws.safetensors", model, samples)
    other = build()
    fresh = ps.guides.Samples.of(other, ps.guides.Delta(other), 4)
    ps.load(tmp_path / "draws.safetensors", other, fresh)
    assert temperatures_of(samples) == temperatures_of(fresh) == (0.25, 4.0)


def test_a_member_of_a_cold_ensemble_says_so_by_itself() -> None:
    model = build()
    ensemble = ps.guides.Ensemble.of(model, size=2)
    run(model, ensemble)
    assert temperatures_of(ensemble.members[0]) == (0.25,)
    assert "temperature 0.25" in str(ps.compare(model, ensemble.members[1], data(), modes="mean"))
    run(model, ensemble, temperature=1.0)
    assert temperatures_of(ensemble) == temperatures_of(ensemble.members[0]) == ()


def test_training_from_a_cold_start_takes_the_note_away() -> None:
    model = build()
    cold = ps.guides.Additive(model)
    run(model, cold)
    guide = ps.guides.FullCovariance(model, init_loc=cold, init_scale=cold)
    run(model, guide, temperature=1.0)
    assert temperatures_of(guide) == ()


@pytest.mark.parametrize(("before", "after"), [(0.25, 1.0), (1.0, 0.25)])
def test_a_run_that_fails_in_its_first_epoch_leaves_the_note_with_the_guide(before: float, after: float) -> None:
    model = build()
    guide = ps.guides.Additive(model)
    run(model, guide, before)
    expected = temperatures_of(guide)
    with pytest.raises(NonFiniteLossError):
        run(model, guide, after, lr=1e30, batch_size=4)
    assert temperatures_of(guide) == expected


@pytest.mark.parametrize("learned", [False, True])
def test_an_exact_last_layer_is_cold_only_where_a_cold_run_trained_something_else(learned: bool) -> None:
    likelihood = ps.likelihoods.Gaussian(0.3, learn=learned)
    model = ps.BayesianModel(nn.Linear(1, 1), prior={"*": ps.priors.Normal()}, likelihood=likelihood, num_data=12)
    guide = ps.guides.LastLayer(model)
    run(model, guide)
    ps.fit_last_layer(model, guide, data())
    assert temperatures_of(guide) == ((0.25,) if learned else ())

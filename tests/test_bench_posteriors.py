"""The bench `posteriors`: distances between functions' distributions, references, and a guide's trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyrostoch import guides
from pyrostoch.bench import Setting
from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.nuts import Reference, read_reference, sample_reference, write_reference
from pyrostoch.bench.published.posterior_trial import distances, guide_trial, reference_file, rmse
from pyrostoch.bench.published.posteriors import POSTERIORS
from pyrostoch.bench.recipe import PosteriorRecipe
from pyrostoch.bench.speed.driver import PEERS, peer_python
from pyrostoch.data import DataSplit


def split(count: int = 40) -> DataSplit:
    x, x_test = torch.randn(count, 3), torch.randn(5, 3)
    return DataSplit(
        name="uci:yacht",
        title="Yacht",
        task="regression",
        x_train=x,
        y_train=x[:, :1],
        x_test=x_test,
        y_test=x_test[:, :1],
        num_classes=None,
        input_shape=(3,),
        source="made here",
        target_scale=(1.0, 2.0),
    )


def context(tmp_path: Path, case: str = "yacht/low-rank") -> TrialContext:
    found = POSTERIORS.case(case)
    recipe = dataclasses.replace(found.recipes["quick"], epochs=30, hidden=4)
    return TrialContext(found, recipe, Setting("quick", tmp_path), 0, lambda row: None, split(), tmp_path / "trial")


def reference() -> Reference:
    return Reference(torch.randn(50, 5), r_hat=1.0, ess=50.0, steps=7.0, divergences=0.0)


def test_distances_of_normal_distributions_are_the_exact_ones() -> None:
    # The Wasserstein distance of N(m, s^2) and N(0, 1) is |m| where s = 1, and |s - 1| E|z| where m = 0.
    z = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]
    for mean, deviation, exact in ((0.7, 1.0, 0.7), (0.0, 3.0, 2.0 * (2 / torch.pi) ** 0.5)):
        found = distances(mean + deviation * z, z)
        assert found["distance"] == pytest.approx(exact, rel=5e-3)
        assert found["shift"] == pytest.approx(mean, rel=1e-3, abs=1e-6)
        assert found["spread"] == pytest.approx(deviation, rel=1e-6)
    assert distances(5.0 * z, 5.0 * z)["distance"] == 0.0
    assert distances(5.0 * z + 5.0, 5.0 * z)["distance"] == pytest.approx(1.0, rel=1e-3)


def test_a_reference_comes_back_from_its_file(tmp_path: Path) -> None:
    made = reference()
    write_reference(tmp_path / "folder" / "nuts.safetensors", made)
    found = read_reference(tmp_path / "folder" / "nuts.safetensors")
    assert torch.equal(found.functions, made.functions)
    assert (found.r_hat, found.ess, found.steps, found.divergences) == (1.0, 50.0, 7.0, 0.0)


def test_a_trial_of_a_guide(tmp_path: Path) -> None:
    trial = context(tmp_path)
    with pytest.raises(FileNotFoundError, match="no reference .*--only 'yacht/nuts' --preset quick.*make peers"):
        guide_trial(trial, make=guides.LowRank)
    write_reference(reference_file(trial), reference())
    found = guide_trial(trial, make=guides.LowRank)
    assert set(found) == {
        "elbo",
        "elbo/error",
        "kl",
        "rmse",
        "steps",
        "ratio",
        *distances(torch.zeros(2, 1), torch.zeros(2, 1)),
    }
    assert all(np.isfinite(value) for value in found.values()) and found["ratio"] > 0
    # The ratio is kept, so that the trial takes as many steps when it is run again.
    assert guide_trial(trial, make=guides.LowRank) == found


def test_the_error_is_in_units_of_the_target() -> None:
    data = split()
    assert rmse(data.y_test[:, 0] + 1.5, data) == pytest.approx(3.0)


def test_every_set_has_a_reference_before_its_guides() -> None:
    names = [case.name for case in POSTERIORS.cases]
    assert [name for name in names if name.endswith("/nuts")] == ["yacht/nuts", "energy/nuts", "bostonHousing/nuts"]
    for name in ("yacht", "energy", "bostonHousing"):
        assert [part for part in names if part.startswith(name)][0] == f"{name}/nuts"
    trained = [case for case in POSTERIORS.cases if not case.name.startswith("steps/")]
    assert all(isinstance(case.recipes["cpu"], PosteriorRecipe) for case in trained)


def test_steps_are_timed_beside_the_additive_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.bench.published.posterior_steps._WIDTHS", (5, 4, 3))
    monkeypatch.setattr("pyrostoch.bench.published.posterior_steps.compile_step", lambda loss, optimizer: None)
    case = POSTERIORS.case("steps/matrix")
    recipe = dataclasses.replace(case.recipes["quick"], epochs=2)
    trial = TrialContext(case, recipe, Setting("quick", tmp_path), 0, lambda row: None, None, tmp_path / "trial")
    assert case.custom_trial is not None
    found = case.custom_trial(trial)
    assert set(found) == {f"{what}/{how}" for what in ("step", "milliseconds") for how in ("eager", "compiled")}
    assert all(value > 0 for value in found.values())


SAMPLER = {"noise": 0.3, "hidden": 3, "warmup": 20, "draws": 20, "chains": 2, "seed": 0}


def test_without_the_other_libraries_the_reference_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PEERS, str(tmp_path))
    data = split()
    with pytest.raises(FileNotFoundError, match="make peers"):
        sample_reference(data.x_train, data.y_train[:, 0], data.x_test, **SAMPLER)


def test_a_sampler_that_fails_shows_what_it_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="no module named numpyro")
    monkeypatch.setattr("pyrostoch.bench.nuts.reference.peer_python", lambda: Path("python"))
    monkeypatch.setattr("pyrostoch.bench.nuts.reference.subprocess.run", lambda *args, **kwargs: failed)
    data = split()
    with pytest.raises(RuntimeError, match="NumPyro failed:\nno module named numpyro"):
        sample_reference(data.x_train, data.y_train[:, 0], data.x_test, **SAMPLER)


@pytest.mark.skipif(peer_python() is None, reason="the other libraries are not installed: make peers")
def test_the_sampler_finds_the_function_where_there_are_many_data() -> None:
    data = split(200)
    found = sample_reference(data.x_train, data.y_train[:, 0], data.x_test, **{**SAMPLER, "draws": 200, "warmup": 200})
    assert found.functions.shape == (400, 5)
    assert (found.functions.mean(0) - data.y_test[:, 0]).abs().mean() < 0.5

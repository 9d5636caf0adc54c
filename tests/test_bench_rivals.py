"""The bench `rivals`: gaps, densities, and a trial of every method."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_bench_posteriors import split

from pyrostoch.bench import Setting
from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.files import read_json
from pyrostoch.bench.nuts import Reference, write_reference
from pyrostoch.bench.published.posterior_trial import distances, reference_file
from pyrostoch.bench.published.rivals import RIVALS
from pyrostoch.bench.published.rivals_picture import SETS, draw_methods
from pyrostoch.bench.published.rivals_stages import METHODS
from pyrostoch.bench.published.rivals_trial import gap_split, log_density, method_trial, reference_scores


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_STEPS", 5), ("_DRAWS", 30), ("_ELBO_DRAWS", 4)):
        monkeypatch.setattr(f"pyrostoch.bench.published.rivals_trial.{name}", value)


def context(tmp_path: Path, case: str, **setting: bool) -> TrialContext:
    found = RIVALS.case(case)
    recipe = dataclasses.replace(found.recipes["quick"], epochs=20, hidden=4)
    made = TrialContext(found, recipe, Setting("quick", tmp_path, **setting), 0, lambda row: None, split(), tmp_path)
    write_reference(reference_file(made), Reference(torch.randn(50, 5), 1.0, 50.0, 7.0, 0.0))
    return made


SCORES = {
    *("distance", "total_variation", "shift", "spread", "nll", "rmse", "gap/nll", "gap/rmse", "gap/spread"),
    *("steps", "ratio", "cpu_seconds", "finish_seconds"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_of_every_method(method: str, tmp_path: Path) -> None:
    found = method_trial(context(tmp_path, f"yacht/{method}"))
    assert all(np.isfinite(value) for value in found.values()), found
    own = {"evidence", "newton_gain"} if method.startswith("laplace") else set()
    if method in ("additive", "low-rank", "matrix", "ensemble-additive", "swag"):
        own = {"elbo"}
    assert set(found) == SCORES | own
    assert found["steps"] >= 20 and found["ratio"] > 0
    # A method is a distribution of functions, but for a point; that of dropout has noise of its own.
    assert (found["spread"] > 0) == (method != "point")
    if method not in ("additive", "point"):
        stages = [stage.name for stage in METHODS[method].stages if stage.name != "additive"]
        for stage in stages:
            noted = read_json(tmp_path / "references" / f"pace-yacht-{stage}-quick.json")
            assert noted["ratio"] > 0


def test_the_time_decides_the_number_of_steps(tmp_path: Path) -> None:
    trial = context(tmp_path, "yacht/ensemble")
    method_trial(trial)
    path = tmp_path / "references" / "pace-yacht-ensemble-quick.json"
    for ratio, steps in ((0.25, 80.0), (1.0, 20.0), (1000.0, 20.0)):  # at least four epochs of 5
        path.write_text(f'{{"ratio": {ratio}}}')
        assert method_trial(trial)["steps"] == steps


def test_held_out_examples_have_no_reference(tmp_path: Path) -> None:
    found = method_trial(context(tmp_path, "yacht/point", holdout=True))
    assert set(found) == SCORES - {"distance", "total_variation", "shift", "spread"}
    assert reference_scores(context(tmp_path, "yacht/nuts", holdout=True)) == {}


def test_the_reference_is_scored_too_and_a_missing_one_is_named(tmp_path: Path) -> None:
    trial = context(tmp_path, "yacht/nuts")
    assert set(reference_scores(trial)) == {"nll", "rmse"}
    reference_file(trial).unlink()
    for score in (reference_scores, method_trial):
        with pytest.raises(FileNotFoundError, match=r"no reference .*--only 'yacht/nuts'.*benchmarks/references"):
            score(trial)


@pytest.mark.parametrize("member", ["point", "additive"])
def test_an_ensemble_is_timed_beside_its_members(member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fake(model: Any, guide: Any, data: Any, *, compile: bool, **settings: Any) -> Any:
        calls.append((type(guide).__name__, compile))
        clock[0] += 3.0 if type(guide).__name__ == "Ensemble" else 2.0
        seconds = [100.0, 1.0, 1.0] if type(guide).__name__ == "Ensemble" else [50.0, 0.5, 0.5]
        return SimpleNamespace(history={"seconds": seconds})

    clock = [0.0]
    where = "pyrostoch.bench.published.rivals_fits"
    monkeypatch.setattr(f"{where}.fit", fake)
    monkeypatch.setattr(f"{where}.time.perf_counter", lambda: clock[0])
    case = RIVALS.case(f"fit/small-{member}")
    trial = TrialContext(case, case.recipes["quick"], Setting("quick", tmp_path), 0, lambda row: None, None, tmp_path)
    assert case.custom_trial is not None
    found = case.custom_trial(trial)
    assert found == pytest.approx({"fit/eager": 0.3, "fit/compiled": 0.3, "fit/compiled steps": 0.4})
    assert [name for name, _ in calls[:4]] == [calls[0][0], "Ensemble"] * 2  # in turns
    assert {compiled for _, compiled in calls} == {True, False}


def test_the_figure_shows_every_method_of_every_set() -> None:
    rows = {f"{data}/{name}": {"distance": 1.0, "gap/nll": 20.0} for data in SETS for name in ("point", "swag")}
    figure = draw_methods({**rows, "fit/small-point": {"fit/eager": 0.3}})
    assert figure is not None and draw_methods({"fit/small-point": {"fit/eager": 0.3}}) is None
    for axes in figure.axes:
        assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 2]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a point (MAP)", "SWAG, rank 20"]


def test_a_gap_holds_the_middle_third_of_one_feature() -> None:
    x = torch.stack([torch.arange(30.0).flip(0), torch.arange(30.0) % 3, torch.arange(30.0) // 2], 1)
    y = torch.arange(30.0)[:, None]
    for seed, feature in ((0, 0), (1, 2), (2, 1), (3, 0)):  # features by their numbers of values: 30, 15, 3
        (outer, y_outer), (middle, y_middle) = gap_split(x, y, seed)
        assert len(outer) == 20 and len(middle) == 10
        assert sorted(torch.cat([y_outer, y_middle])[:, 0].tolist()) == y[:, 0].tolist()
        low, high = middle[:, feature].min(), middle[:, feature].max()
        assert bool(((outer[:, feature] <= low) | (outer[:, feature] >= high)).all())
        rows = y_middle[:, 0].long()
        assert torch.equal(x[rows], middle)  # inputs and targets stay together


def test_the_log_density_is_that_of_the_mixture() -> None:
    functions, y = torch.randn(7, 4), torch.randn(4)
    exact = [
        math.log(sum(math.exp(-0.5 * ((target - f) / 0.3) ** 2) for f in column) / 7 / (0.3 * math.sqrt(2 * math.pi)))
        for target, column in zip(y.tolist(), functions.T.tolist(), strict=True)
    ]
    assert log_density(functions, y, 0.3).tolist() == pytest.approx(exact, rel=1e-9)


def test_the_total_variation_of_normal_distributions() -> None:
    # Of N(m, 1) and N(0, 1) it is 2 Phi(m / 2) - 1; from 20 bins a little less.
    z = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]
    for mean in (0.5, 2.0):
        exact = math.erf(mean / 2 / math.sqrt(2))
        found = distances(mean + z, z)["total_variation"]
        assert exact - 0.02 < found <= exact + 1e-3
    assert distances(z, z)["total_variation"] == 0.0
    assert distances(z + 100.0, z)["total_variation"] == pytest.approx(0.95, abs=1e-3)  # the last bin is open

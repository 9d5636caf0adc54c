"""The cases `progressive/*` of the bench `privacy` in small: each runs, and goes on from its checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pyrostoch.bench.case import Case, Setting
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.recipe import ProgressiveRecipe
from pyrostoch.bench.trial import run_trial, trial_folder
from pyrostoch.data import DataSplit

BENCH = BENCHES["privacy"]
CASES = {case.name: case for case in BENCH.cases if case.name.startswith("progressive/")}


def split() -> DataSplit:
    x, y = torch.rand(200, 1, 28, 28), torch.arange(200) % 10
    return DataSplit("mnist", "images", "classification", x, y, x[:50], y[:50], 10, (1, 28, 28), "bundled")


def tiny(case: Case) -> Case:
    recipe = case.recipes["quick"]
    assert isinstance(recipe, ProgressiveRecipe)
    changed = dataclasses.replace(recipe, examples=200, clean_epochs=1, layer_epochs=1, batch_size=50)
    return dataclasses.replace(case, recipes={"quick": changed})


@pytest.mark.filterwarnings("ignore:layer 'stochastic':UserWarning")
@pytest.mark.parametrize("name", list(CASES))
def test_every_case_runs_and_goes_on(name: str, tmp_path: Path) -> None:
    case, setting = tiny(CASES[name]), Setting("quick", tmp_path)
    data = split()
    first = run_trial(BENCH, case, 0, setting, data)["metrics"]
    assert 0.0 <= first["accuracy/result-5"] <= 1.0
    assert ("accuracy/result-25" in first) == (name not in ("progressive/bald", "progressive/distilled"))
    assert ("noise/ratio-5" in first) == ("accuracy/obfuscated" in first)
    (trial_folder(BENCH, case, 0, setting) / "trial.json").unlink()
    again = run_trial(BENCH, case, 0, setting, data)["metrics"]
    assert json.dumps(again, sort_keys=True) == json.dumps(first, sort_keys=True)


def test_all_cases_begin_with_the_same_clean_part(tmp_path: Path) -> None:
    """So that they are paired: the network of the clean part alone is the same, whatever comes behind it."""
    found = {
        name: run_trial(BENCH, tiny(CASES[name]), 1, Setting("quick", tmp_path), split())["metrics"]
        for name in ("progressive/clean-part", "progressive/pseudo-labels")
    }
    assert len({metrics["accuracy/alone-5"] for metrics in found.values()}) == 1

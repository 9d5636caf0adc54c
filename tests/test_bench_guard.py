"""What a benchmark must not do: replace results without --replace, stop at a failure, start warm cases elsewhere."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from test_bench_trial import SHORT, bench, case, setting
from torch import nn

from pyrostoch.bench import run
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.results import read_results
from pyrostoch.bench.run import results_file
from pyrostoch.bench.tables import tables
from pyrostoch.guides import LayerwiseAlpha
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.priors import LogUniform
from pyrostoch.training.trainer import NonFiniteLossError

ONE = bench(case("net/one", recipes={"cpu": SHORT}))


def test_results_of_other_settings_or_versions_are_only_replaced_on_request(tmp_path: Path) -> None:
    here = setting(tmp_path, preset="cpu")
    run(ONE, here, seeds=(0, 1))
    path = results_file(ONE, here)
    before = path.read_text()
    shutil.rmtree(tmp_path / "runs")  # as in a fresh checkout, which has the results only
    other = dataclasses.replace(here, precision="bf16")
    with pytest.raises(ValueError, match=r"net/one, preset cpu, seeds \[0, 1\], made with another recipe or precision"):
        run(ONE, other, seeds=(2,))
    assert path.read_text() == before
    run(ONE, here, seeds=(2,))
    assert read_results(path)[0]["seeds"] == [0, 1, 2]
    entries = json.loads(path.read_text())
    for entry in entries:
        entry["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"made with torch 1.0; this run would replace them: give another --out"):
        run(ONE, here, seeds=(3,))
    shutil.rmtree(tmp_path / "runs")
    run(ONE, other, seeds=(3,), replace=True)
    assert read_results(path)[0]["seeds"] == [3]


def test_a_failed_case_does_not_stop_the_others(tmp_path: Path) -> None:
    diverging = dataclasses.replace(SHORT, lr=1e30)
    many = bench(
        case("net/wild", recipes={"cpu": diverging}),
        case("net/after", recipes={"cpu": SHORT}, start="net/wild"),
        case("net/tame", recipes={"cpu": SHORT}),
    )
    here = setting(tmp_path, preset="cpu")
    with pytest.raises(NonFiniteLossError) as error:
        run(many, here, seeds=(0, 1))
    assert "Failed: net/wild, seed 0, net/wild, seed 1; the others are done." in error.value.__notes__[-1]
    entries = read_results(results_file(many, here))
    assert {entry["case"] for entry in entries} == {"net/tame"} and entries[0]["seeds"] == [0, 1]


WARM = [case for case in BENCHES["elbo"].cases if case.start is not None]


@pytest.mark.parametrize("warm", WARM, ids=[case.name for case in WARM])
def test_warm_cases_of_the_elbo_table_start_with_the_distributions_of_their_origin(warm) -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("dense1", nn.Linear(6, 4, bias=False))
    model = BayesianModel(net.double(), prior={"dense1.weight": LogUniform()}, likelihood=Categorical(), num_data=9)
    origin = LayerwiseAlpha(model, init_loc=lambda site: torch.randn(4, 6), init_log_alpha=3.0)
    assert BENCHES["elbo"].case(warm.start).guide is not None
    found = warm.guide(model, warm.recipes["cpu"], origin).site_distribution("dense1.weight").base_dist
    expected = origin.site_distribution("dense1.weight").base_dist
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.stddev, expected.stddev, rtol=1e-12, atol=0.0)


def test_a_check_on_few_images_is_marked_and_has_no_published_row(tmp_path: Path) -> None:
    few = dataclasses.replace(ONE, published={"net/one": {"accuracy/mean": 0.5}})
    here = setting(tmp_path, preset="cpu")
    run(few, here)
    text = tables(few, read_results(results_file(few, here)))
    assert f"Only the first {SHORT.examples} training and test images are used: a check that everything works" in text
    assert "*published*" not in text
    whole = dataclasses.replace(SHORT, examples=None)
    many = dataclasses.replace(few, cases=(case("net/one", recipes={"cpu": whole}),))
    there = setting(tmp_path / "whole", preset="cpu")
    run(many, there)
    entries = read_results(results_file(many, there))
    assert "*published*" in tables(many, entries) and "a check that" not in tables(many, entries)
    assert "*published*" not in tables(many, entries, held_out=True)

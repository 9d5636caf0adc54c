"""Result records: their statistics against NumPy, how they are merged, and several processes at once."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bench_trial import bench, case, folder_of, run_one, setting

from pyrostoch.bench import read_results, results, run
from pyrostoch.bench.results import collect, merge, value_of, write_results
from pyrostoch.bench.run import finished_trials, results_file

VERSIONS = {"pyrostoch": "0.1.0", "torch": "2.13.0", "pyro": "1.9.2", "python": "3.11.7"}
NEWER = {**VERSIONS, "torch": "2.14.0"}


def trial_record(seed: int, metrics: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The record of a finished trial."""
    record: dict[str, Any] = {"bench": "tiny", "case": "net/cold", "preset": "cpu", "seed": seed, "metrics": metrics}
    record |= {
        "settings": {"recipe": {"epochs": 2, "lr": 0.1}},
        "curve": {},
        "seconds": {"training": 3.0, "scoring": 1.0 + seed},
    }
    return record | {"device": "cpu (one)", "versions": VERSIONS, "date": "2026-01-02"} | changes


def result_of(trials: list[dict[str, Any]], metric: str = "elbo") -> dict[str, Any]:
    """The only result record of a metric."""
    (entry,) = (entry for entry in collect(trials) if entry["metric"] == metric)
    return entry


@pytest.mark.parametrize("order", [(0, 1, 2, 5), (5, 2, 0, 1)])
def test_statistics_against_numpy(order: tuple[int, ...]) -> None:
    values = {0: -10.5, 1: -1e6, 2: 3.25, 5: 0.1}
    seconds = {seed: 4.0 + seed for seed in values}
    entry = result_of([trial_record(seed, {"elbo": values[seed]}, date=f"2026-01-0{seed + 1}") for seed in order])
    assert entry.keys() == {
        *("bench", "case", "metric", "value", "stderr", "seeds", "values", "spent", "preset", "seconds"),
        *("device", "recipe", "settings", "versions", "date"),
    }
    array = np.array(list(values.values()))
    assert entry["value"] == pytest.approx(array.mean(), rel=1e-12)
    assert entry["stderr"] == pytest.approx(array.std(ddof=1) / math.sqrt(4), rel=1e-12)
    assert (entry["seeds"], entry["values"]) == ([0, 1, 2, 5], array.tolist())
    assert entry["seconds"] == pytest.approx(np.mean(list(seconds.values())))
    assert entry["spent"] == list(seconds.values())
    assert (entry["date"], entry["versions"], entry["device"]) == ("2026-01-06", VERSIONS, "cpu (one)")
    assert entry["recipe"] == {"epochs": 2, "lr": 0.1}


def test_one_seed_has_no_error_and_equal_values_have_error_zero() -> None:
    assert result_of([trial_record(3, {"elbo": 0.1})])["stderr"] is None
    assert result_of([trial_record(seed, {"elbo": 0.1}) for seed in range(7)])["stderr"] == 0.0


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_value_that_is_not_finite_makes_the_mean_none(bad: float | None, tmp_path: Path) -> None:
    trials = [trial_record(0, {"x": 1.0, "elbo": 2.0}), trial_record(1, {"x": bad, "elbo": 4.0})]
    entry = result_of(trials, "x")
    assert (entry["value"], entry["stderr"], entry["seeds"]) == (None, None, [0, 1])
    assert result_of(trials)["value"] == 3.0
    write_results(tmp_path / "x.json", trials)
    assert [entry["values"] for entry in read_results(tmp_path / "x.json")] == [[1.0, None], [2.0, 4.0]]


def test_metric_that_only_some_seeds_have() -> None:
    trials = [trial_record(0, {"elbo": 1.0}), trial_record(1, {"new": 5.0, "elbo": 2.0})]
    assert [(entry["metric"], entry["seeds"]) for entry in collect(trials)] == [("elbo", [0, 1]), ("new", [1])]


MERGES: dict[str, tuple[list[Any], list[Any], list[int], list[float]]] = {
    # Old and new trials as (seed, value, changes); the seeds and values of the record.
    "other seeds": ([(0, 1.0, {})], [(2, 3.0, {}), (1, 2.0, {})], [0, 1, 2], [1.0, 2.0, 3.0]),
    "same seed again": ([(0, 1.0, {}), (1, 5.0, {})], [(0, 2.0, {})], [0, 1], [2.0, 5.0]),
    "same trials": ([(0, 1.0, {})], [(0, 1.0, {})], [0], [1.0]),
    "newer versions": ([(0, 1.0, {}), (1, 2.0, {})], [(1, 9.0, {"versions": NEWER})], [1], [9.0]),
    "newer settings": ([(0, 1.0, {})], [(1, 9.0, {"settings": {"recipe": {"epochs": 2, "lr": 0.2}}})], [1], [9.0]),
    "both in one folder": (
        [],
        [(1, 1.0, {}), (2, 1.0, {}), (0, 9.0, {"versions": NEWER, "date": "2026-02-01"})],
        [0],
        [9.0],
    ),
    "older ones come last": (
        [],
        [(0, 9.0, {"versions": NEWER, "date": "2026-02-01"}), (1, 1.0, {}), (2, 1.0, {})],
        [0],
        [9.0],
    ),
    "file is newer than the folder": (
        [(0, 9.0, {"versions": NEWER, "date": "2026-02-01"})],
        [(0, 1.0, {})],
        [0],
        [9.0],
    ),
    "back and forth": ([], [(0, 1.0, {}), (1, 9.0, {"versions": NEWER}), (2, 2.0, {})], [0, 2], [1.0, 2.0]),
}


@pytest.mark.parametrize("merge_of", MERGES)
def test_what_is_merged_and_what_is_replaced(merge_of: str) -> None:
    *parts, seeds, values = MERGES[merge_of]
    old, new = ([trial_record(seed, {"elbo": value}, **changes) for seed, value, changes in part] for part in parts)
    merged = merge(collect(old), collect(new))
    assert [(entry["seeds"], entry["values"]) for entry in merged] == [(seeds, values)]
    assert merged[0]["value"] == pytest.approx(np.mean(values))


def test_joined_records_keep_times_devices_and_the_last_date() -> None:
    old = collect([trial_record(0, {"elbo": 1.0}, seconds={"all": 10.0}, date="2026-03-01")])
    new = [trial_record(seed, {"elbo": 2.0}, seconds={"all": 40.0}, device="A card, bf16") for seed in (1, 2)]
    entry = merge(old, collect(new))[0]
    assert (entry["seconds"], entry["date"], entry["device"]) == (30.0, "2026-03-01", "cpu (one); A card, bf16")
    assert merge([entry], collect(new)) == merge([entry], [entry]) == [entry]


def test_all_metrics_of_a_row_are_of_the_same_versions() -> None:
    old = collect([trial_record(0, {"elbo": 1.0, "gone": 2.0})])
    new = collect([trial_record(0, {"elbo": 3.0}, versions=NEWER)])
    assert [(entry["metric"], entry["value"]) for entry in merge(old, new)] == [("elbo", 3.0)]


def test_rows_keep_their_order_and_others_their_values() -> None:
    old = collect(
        [
            trial_record(0, {"b": 1.0, "a": 2.0}),
            trial_record(0, {"a": 3.0}, case="z"),
            trial_record(0, {"a": 4.0}, preset="full"),
        ]
    )
    new = collect([trial_record(1, {"a": 5.0}, case="y"), trial_record(1, {"a": 7.0}, case="z")])
    merged = [(entry["case"], entry["metric"], entry["preset"], entry["values"]) for entry in merge(old, new)]
    assert merged == [
        ("net/cold", "b", "cpu", [1.0]),
        ("net/cold", "a", "cpu", [2.0]),
        ("z", "a", "cpu", [3.0, 7.0]),
        ("net/cold", "a", "full", [4.0]),
        ("y", "a", "cpu", [5.0]),
    ]
    assert value_of(old, "z", "a", "cpu") == old[2] and value_of(old, "z", "b", "cpu") is None


def test_records_written_without_digest_and_single_times_are_read() -> None:
    old = collect([trial_record(0, {"x": 1.0})])[0]
    del old["settings"], old["spent"], old["recipe"]
    assert merge([old], collect([trial_record(1, {"x": 2.0})]))[0]["seeds"] == [1]
    joined = merge([old], [{**old, "seeds": [1], "values": [3.0], "seconds": 6.0}])[0]
    assert (joined["value"], joined["spent"], joined["seconds"]) == (2.0, [4.0, 6.0], 5.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not readable as JSON"),
        ("[{", "not readable as JSON"),
        ("{}", "a list of benchmark records"),
        ('[{"metric": 1}]', "a list"),
    ],
)
def test_damaged_results_file_is_reported(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        write_results(path, [trial_record(0, {"x": 1.0})])
    assert str(path) in str(error.value) and "remove the file" in str(error.value)
    assert path.read_text() == content
    path.unlink()
    assert read_results(path) == []


def test_several_processes_end_with_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process starts and ends between our reading of the folder and our writing."""
    small, write_json = bench(case("net/cold")), results.write_json
    here = setting(tmp_path)

    def write_after_another_process(path: Path, content: Any) -> None:
        monkeypatch.setattr(results, "write_json", write_json)
        run(small, here, seeds=(1,))
        assert read_results(path)[0]["seeds"] == [0, 1]
        write_json(path, content)

    monkeypatch.setattr(results, "write_json", write_after_another_process)
    run(small, here, seeds=(0,))
    assert {tuple(entry["seeds"]) for entry in read_results(tmp_path / "results" / "tiny.json")} == {(0, 1)}


def test_unfinished_trial_of_another_process_is_ignored(tmp_path: Path) -> None:
    small = bench(case("net/cold"), case("net/other"))
    here = setting(tmp_path)
    other = folder_of(tmp_path, small.cases[1]) / "trial.json"
    other.parent.mkdir(parents=True)
    record = {"bench": "tiny", "case": "net/other", "preset": "quick", "seed": 0, "settings": {}}
    other.write_text(json.dumps(record))
    stale = folder_of(tmp_path, case("net/gone")) / "trial.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps(trial_record(0, {"elbo": 0.0}, case="net/gone")))
    run(small, here, only=("net/cold",))
    assert {entry["case"] for entry in read_results(results_file(small, here))} == {"net/cold"}
    other.write_text("")
    with pytest.raises(ValueError, match=re.escape(f"{other}: not readable as JSON")):
        finished_trials(small, here)


def test_newest_trial_comes_last(tmp_path: Path) -> None:
    small = bench(case("net/cold"))
    for seed in (2, 0, 1):
        run_one(tmp_path, small.cases[0], seed)
    assert [record["seed"] for record in finished_trials(small, setting(tmp_path))] == [2, 0, 1]


def test_variants_of_a_preset_have_separate_results(tmp_path: Path) -> None:
    small = bench(case("net/cold"))
    run(small, setting(tmp_path, holdout=True), seeds=(0, 1))
    run(small, setting(tmp_path, holdout=True, changes=(("lr", "0.02"),)))
    assert list(tmp_path.iterdir()) == [tmp_path / "selection"]
    entries = read_results(tmp_path / "selection" / "tiny.json")
    assert {(entry["preset"], *entry["seeds"]) for entry in entries} == {("quick", 0, 1), ("quick,lr=0.02", 0)}

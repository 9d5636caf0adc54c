"""Runs a benchmark: its trials one after the other; the result records are written after each."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyrostoch._checks import check_choice, name_list
from pyrostoch._version import versions
from pyrostoch.bench.case import Bench, Case, Setting
from pyrostoch.bench.files import read_json
from pyrostoch.bench.results import digest, read_results, write_results
from pyrostoch.bench.trial import data_matches, run_trial, settings_of
from pyrostoch.data import DataNotFoundError, DataSplit, load
from pyrostoch.training.trainer import NonFiniteLossError

__all__ = ["HELD_OUT", "PRESETS", "RunCallback", "finished_trials", "results_file", "run", "select_cases"]

#: The presets: a check that everything works, a result within minutes a network, and the published recipe.
PRESETS = ("quick", "cpu", "full")

#: Share of the training data held out for choosing recipes: 10,000 of MNIST's 60,000 images.
HELD_OUT = 1 / 6


class RunCallback:
    """Hooks that a run calls; they do nothing here and are overridden to show progress."""

    def on_case_skipped(self, case: Case) -> None:
        """A case is not run, since the data set found under its name is not the one that it needs."""

    def on_trial_start(self, case: Case, seed: int, epochs: int) -> None:
        """A trial starts; it ends at once if it was finished before."""

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        """An epoch of a trial ends."""

    def on_trial_end(self, record: dict[str, Any]) -> None:
        """A trial ends; its record is given."""


def select_cases(bench: Bench, setting: Setting, only: Sequence[str] = ()) -> tuple[list[Case], list[Case]]:
    """Select the cases to run.

    Args:
        bench: The benchmark.
        setting: Preset and device.
        only: Shell patterns of case names; cases that the matching ones start from are added. No patterns select all
            cases of the preset.

    Returns:
        The cases to run, and those that are skipped since they need a GPU; both in the benchmark's order.

    Raises:
        ValueError: The preset is unknown, or a pattern matches no case of it.
    """
    check_choice("preset", setting.preset, PRESETS)
    # A case that generates its own data has nothing to hold out, and its recipe is not chosen this way.
    available = [c for c in bench.cases if setting.preset in c.recipes and not (setting.holdout and c.data is None)]
    for pattern in only:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in available):
            raise ValueError(
                f"bench {bench.name}: {pattern!r} matches no case of preset {setting.preset!r}"
                f"{' that has data to hold out' if setting.holdout else ''}, which has "
                f"{name_list(case.name for case in available)}"
            )
    wanted = {case.name for case in available if not only or any(fnmatch.fnmatchcase(case.name, p) for p in only)}
    # A case given by its full name is run on any device, and so are the cases that it starts from.
    named = set(only)
    for case in reversed(bench.cases):
        if case.start is not None:
            wanted |= {case.start} if case.name in wanted else set()
            named |= {case.start} if case.name in named else set()
    selected = [case for case in available if case.name in wanted]
    has_gpu = setting.device.startswith("cuda")
    skipped = [case for case in selected if setting.preset in case.needs_gpu and not has_gpu and case.name not in named]
    return [case for case in selected if case not in skipped], skipped


def run(
    bench: Bench,
    setting: Setting,
    *,
    seeds: Sequence[int] = (0,),
    only: Sequence[str] = (),
    data_dir: str | None = None,
    replace: bool = False,
    callback: RunCallback | None = None,
) -> list[dict[str, Any]]:
    """Run the trials of a benchmark; finished trials are kept, and an interrupted one is resumed.

    After every trial the result records are written to `<out>/results/<bench>.json`, or to
    `<out>/selection/<bench>.json` if training data are held out. Several processes may run different seeds in one
    folder. All data are read before anything is trained. A case that needs another data set than the one found under
    its name is skipped, unless `only` has its full name.

    Args:
        bench: The benchmark.
        setting: Preset, folder, device.
        seeds: Seeds.
        only: Shell patterns of case names; see `select_cases`.
        data_dir: Folder of the data; by default the one in the environment variable `PYROSTOCH_DATA`.
        replace: Whether results of other settings or versions may be replaced.
        callback: Its methods are called as the run proceeds.

    Returns:
        The records of the trials of this call, finished earlier or now.

    Raises:
        ValueError: Preset, seeds or patterns are wrong, or existing results of other settings or versions would be
            replaced.
        DataNotFoundError: A data set is not found.
        NonFiniteLossError: A loss became NaN; it is raised after the other cases have been run.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds: expected whole numbers from 0 up, each once, got {list(seeds)}")
    cases, _ = select_cases(bench, setting, only)
    if not cases:
        raise ValueError(
            f"bench {bench.name}: preset {setting.preset!r} has no case for device {setting.device!r}; to run one "
            "nevertheless, give its full name with --only, not a pattern"
        )
    callback = callback or RunCallback()
    splits = _load_data(cases, setting, data_dir)
    runnable, records = [], []
    for case in cases:
        if case.name in only or data_matches(case, splits[case.data]):
            runnable.append(case)
        else:
            callback.on_case_skipped(case)
    if not replace:
        _check_results(bench, setting, [(case, splits[case.data]) for case in runnable])
    failed: list[tuple[str, int]] = []
    last_error: NonFiniteLossError | None = None
    for seed in seeds:
        # If no case matches its data, the trial of the first one raises the error that says so.
        for case in runnable or cases[:1]:
            if (case.start, seed) in failed:
                continue
            callback.on_trial_start(case, seed, setting.recipe(case).epochs)
            try:
                record = run_trial(bench, case, seed, setting, splits[case.data], callback.on_epoch_end)
            except NonFiniteLossError as error:
                failed.append((case.name, seed))
                last_error = error
                continue
            records.append(record)
            _write_finished(bench, setting)
            callback.on_trial_end(record)
    if last_error is not None:
        failures = ", ".join(f"{case}, seed {seed}" for case, seed in failed)
        last_error.add_note(f"Failed: {failures}; the others are done.")
        raise last_error
    return records


def _check_results(bench: Bench, setting: Setting, cases: Sequence[tuple[Case, DataSplit | None]]) -> None:
    """Raise if results of these cases exist whose settings or versions differ from those of this run."""
    path = results_file(bench, setting)
    existing = {(entry["case"], entry["preset"]): entry for entry in read_results(path)}
    for case, split in cases:
        entry = existing.get((case.name, setting.variant))
        if entry is None:
            continue
        differences = [
            f"{package} {entry['versions'].get(package)}"
            for package, version in versions().items()
            if entry["versions"].get(package) != version
        ]
        if entry.get("settings") != digest(settings_of(case, setting, split)):
            differences.insert(0, f"another recipe or precision ({entry['device'].rpartition(', ')[2]})")
        if differences:
            raise ValueError(
                f"{path} has results of {case.name}, preset {setting.variant}, seeds {entry['seeds']}, made with "
                f"{', '.join(differences)}; this run would replace them: give another --out, or --replace to allow it"
            )


def results_file(bench: Bench, setting: Setting) -> Path:
    """The file of a benchmark's result records."""
    return setting.out / ("selection" if setting.holdout else "results") / f"{bench.name}.json"


def finished_trials(bench: Bench, setting: Setting) -> list[dict[str, Any]]:
    """The records of all finished trials of a benchmark in the folder, of all presets and of all processes.

    Returns:
        Trial records, ordered by case and preset, and for each of these the newest last.
    """
    paths = sorted(setting.trials(bench).glob("*/*/seed*/trial.json"), key=lambda path: path.stat().st_mtime_ns)
    order = {case.name: index for index, case in enumerate(bench.cases)}
    done = [record for record in map(read_json, paths) if "metrics" in record and record["case"] in order]
    return sorted(done, key=lambda record: (order[record["case"]], record["preset"]))


def _write_finished(bench: Bench, setting: Setting) -> None:
    """Write the result records of all finished trials.

    Another process may write between our reading of the folder and our writing. So the folder is read again after
    writing, until nothing is new: every process saves its trial before it writes results, so the last to write has
    seen all trials.
    """
    written = None
    while (trials := finished_trials(bench, setting)) != written:
        write_results(results_file(bench, setting), trials)
        written = trials


def _load_data(cases: Sequence[Case], setting: Setting, data_dir: str | None) -> dict[str | None, DataSplit | None]:
    """The data sets of some cases by name, with held-out training data in place of test data if the setting says so."""
    splits: dict[str | None, DataSplit | None] = {None: None}
    for case in cases:
        if case.data is not None and case.data not in splits:
            try:
                split = load(case.data, data_dir)
            except DataNotFoundError as error:
                error.add_note(f"It is needed for {case.name}; to run other cases only, name them with --only.")
                raise
            splits[case.data] = split.holdout(HELD_OUT, seed=0) if setting.holdout else split
    return splits

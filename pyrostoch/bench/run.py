"""Carrying out a benchmark: its trials one after the other, the records written after each."""

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
from pyrostoch.bench.trial import carry_out, fits, settings_of
from pyrostoch.data import DataNotFoundError, DataSplit, load
from pyrostoch.training.trainer import NonFiniteLossError

__all__ = ["HELD_OUT", "PRESETS", "Watch", "finished", "results_file", "run", "selected"]

#: Presets by what they are for: a check that all of it works; a figure in minutes; the published recipe.
PRESETS = ("quick", "cpu", "full")

#: Share of the training data on which choices are made: 10,000 of MNIST's 60,000 images.
HELD_OUT = 1 / 6


class Watch:
    """Told how a benchmark goes on; does nothing by itself."""

    def passed_over(self, case: Case) -> None:
        """A case is not run, since the data found are others of the same name than it is for."""

    def trial(self, case: Case, seed: int, epochs: int) -> None:
        """A trial begins, or is found done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is over."""

    def done(self, record: dict[str, Any]) -> None:
        """A trial is done."""


def selected(bench: Bench, setting: Setting, only: Sequence[str] = ()) -> tuple[list[Case], list[Case]]:
    """The cases that will be run, and those of this preset that make no sense on this device.

    Args:
        bench: The benchmark.
        setting: Preset and device.
        only: Name patterns; a case that another one starts from is run too. All cases where there are none.

    Returns:
        Both lists, in the benchmark's order.

    Raises:
        ValueError: The preset is unknown, or a pattern matches no case of it.
    """
    check_choice("preset", setting.preset, PRESETS)
    # What makes its own data has nothing to hold out, and no recipe to try.
    there = [c for c in bench.cases if setting.preset in c.recipes and not (setting.holdout and c.data is None)]
    for pattern in only:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in there):
            raise ValueError(
                f"bench {bench.name}: {pattern!r} matches no case of preset {setting.preset!r}"
                f"{' that has data to hold out' if setting.holdout else ''}, which has "
                f"{name_list(case.name for case in there)}"
            )
    wanted = {case.name for case in there if not only or any(fnmatch.fnmatchcase(case.name, p) for p in only)}
    # A case asked for by its own name is run wherever it is asked for, and so is what it starts from.
    named = set(only)
    for case in reversed(bench.cases):
        if case.start is not None:
            wanted |= {case.start} if case.name in wanted else set()
            named |= {case.start} if case.name in named else set()
    chosen = [case for case in there if case.name in wanted]
    has_gpu = setting.device.startswith("cuda")
    idle = [case for case in chosen if setting.preset in case.needs_gpu and not has_gpu and case.name not in named]
    return [case for case in chosen if case not in idle], idle


def run(
    bench: Bench,
    setting: Setting,
    *,
    seeds: Sequence[int] = (0,),
    only: Sequence[str] = (),
    data_dir: str | None = None,
    replace: bool = False,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """Carry out the trials of a benchmark; what is done already is kept, what was cut short is gone on with.

    The records go to `<out>/results/<bench>.json`, or to `<out>/selection/<bench>.json` where training data are held
    out, after every trial. Several processes may work on different seeds of one folder. All data are read before
    anything is trained; a case that is for other data of the same name is passed over, unless it is asked for by name.

    Args:
        bench: The benchmark.
        setting: Preset, folder, device.
        seeds: Seeds.
        only: Name patterns of the cases.
        data_dir: Folder of the data; else `PYROSTOCH_DATA`.
        replace: Whether records of other settings or versions may be replaced.
        watch: Told about progress.

    Returns:
        The records of the trials of this call.

    Raises:
        ValueError: Preset, seeds or patterns are wrong, or there are records that would be replaced.
        DataNotFoundError: A data set is not found.
        NonFiniteLossError: A loss became NaN; the other cases are carried out before it is raised.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds: expected whole numbers from 0 up, each once, got {list(seeds)}")
    cases, _ = selected(bench, setting, only)
    if not cases:
        raise ValueError(
            f"bench {bench.name}: preset {setting.preset!r} has no case for device {setting.device!r}; name one in "
            "full with --only (no pattern) to run it all the same"
        )
    watch = watch or Watch()
    splits = _read(cases, setting, data_dir)
    apt, made = [], []
    for case in cases:
        if case.name in only or fits(case, splits[case.data]):
            apt.append(case)
        else:
            watch.passed_over(case)
    if not replace:
        _check_records(bench, setting, [(case, splits[case.data]) for case in apt])
    failed: list[tuple[str, int]] = []
    fault: NonFiniteLossError | None = None
    for seed in seeds:
        # Where none is apt, the first says why.
        for case in apt or cases[:1]:
            if (case.start, seed) in failed:
                continue
            watch.trial(case, seed, setting.recipe(case).epochs)
            try:
                record = carry_out(bench, case, seed, setting, splits[case.data], watch.epoch)
            except NonFiniteLossError as error:
                failed.append((case.name, seed))
                fault = error
                continue
            made.append(record)
            _write_finished(bench, setting)
            watch.done(record)
    if fault is not None:
        fault.add_note(f"Failed: {', '.join(f'{case}, seed {seed}' for case, seed in failed)}; the others are done.")
        raise fault
    return made


def _check_records(bench: Bench, setting: Setting, cases: Sequence[tuple[Case, DataSplit | None]]) -> None:
    """Refuse to put records of other settings or versions in the place of those that are there."""
    path = results_file(bench, setting)
    there = {(entry["case"], entry["preset"]): entry for entry in read_results(path)}
    for case, split in cases:
        entry = there.get((case.name, setting.variant))
        if entry is None:
            continue
        other = [
            f"{key} {entry['versions'].get(key)}"
            for key, own in versions().items()
            if entry["versions"].get(key) != own
        ]
        if entry.get("settings") != digest(settings_of(case, setting, split)):
            other.insert(0, f"recipe or precision (theirs: {entry['device'].rpartition(', ')[2]})")
        if other:
            raise ValueError(
                f"{path}: it holds {case.name}, preset {setting.variant}, seeds {entry['seeds']}, made with other "
                f"{', '.join(other)}, which this run would replace; give another --out, or --replace to replace them"
            )


def results_file(bench: Bench, setting: Setting) -> Path:
    """The file of a benchmark's records."""
    return setting.out / ("selection" if setting.holdout else "results") / f"{bench.name}.json"


def finished(bench: Bench, setting: Setting) -> list[dict[str, Any]]:
    """The records of all finished trials in the folder, of all presets: other processes' too.

    Returns:
        Records by case and preset, the newest last.
    """
    paths = sorted(setting.trials(bench).glob("*/*/seed*/trial.json"), key=lambda path: path.stat().st_mtime_ns)
    order = {case.name: index for index, case in enumerate(bench.cases)}
    done = [record for record in map(read_json, paths) if "metrics" in record and record["case"] in order]
    return sorted(done, key=lambda record: (order[record["case"]], record["preset"]))


def _write_finished(bench: Bench, setting: Setting) -> None:
    """Write the records of all finished trials.

    Another process may write between our look at the folder and our writing. So the folder is looked at again after
    it: a process leaves its trial there before it writes, so that whoever writes last has seen them all.
    """
    written = None
    while (found := finished(bench, setting)) != written:
        write_results(results_file(bench, setting), found)
        written = found


def _read(cases: Sequence[Case], setting: Setting, data_dir: str | None) -> dict[str | None, DataSplit | None]:
    """The data sets of some cases by name, split as the setting wants them."""
    splits: dict[str | None, DataSplit | None] = {None: None}
    for case in cases:
        if case.data is not None and case.data not in splits:
            try:
                whole = load(case.data, data_dir)
            except DataNotFoundError as error:
                error.add_note(f"It is for {case.name}; to run other cases only, name them with --only.")
                raise
            splits[case.data] = whole.holdout(HELD_OUT, seed=0) if setting.holdout else whole
    return splits

"""Result records: one for each case and metric, with the values of all its seeds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrostoch.bench.files import read_json, write_json

__all__ = ["collect", "digest", "merge", "read_results", "value_of", "write_results"]

#: A result record.
Entry = dict[str, Any]

_FIELDS = {
    *("bench", "case", "metric", "value", "stderr", "seeds", "values"),
    *("preset", "seconds", "device", "versions", "date"),
}


def collect(trials: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Join the records of trials that differ in their seeds into one result record for each metric.

    A result record has `bench`, `case`, `metric`, `value` (the mean over seeds; `None` if one is not a finite
    number), `stderr` (the standard error of that mean; `None` with one seed), `seeds`, `values` and `spent` (value and
    seconds of each seed), `seconds` (the mean of `spent`, which covers training and scoring), `preset`, `device`,
    `recipe`, `settings` (a digest of all settings of the trials), `versions` and `date` (the last one). Only seeds of
    the same settings and versions are joined; see `merge`.

    Args:
        trials: Records of finished trials, the newest last.

    Returns:
        Result records, in the order in which cases and metrics first appear.

    Example:
        >>> trial = {"bench": "b", "case": "c", "preset": "cpu", "device": "cpu", "versions": {}, "date": "2026-01-01",
        ...          "settings": {"recipe": {"epochs": 9}}, "seconds": {"training": 2.0, "scoring": 1.0}}
        >>> both = [{**trial, "seed": seed, "metrics": {"accuracy": value}} for seed, value in ((0, 0.5), (1, 0.7))]
        >>> result = collect(both)[0]
        >>> result["value"], round(result["stderr"], 3), result["seeds"], result["seconds"]
        (0.6, 0.1, [0, 1], 3.0)
    """
    return merge((), [entry for trial in trials for entry in _entries(trial)])


def merge(old: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """Merge result records of the same settings and versions: seeds are united, and a seed run again has its new value.

    If a case was run under one preset with several settings or versions, only the group with the latest date is kept,
    with all its metrics; of groups with the same date, the one that comes last.

    Args:
        old: Existing result records.
        new: New ones.

    Returns:
        All result records, in the old order, new cases at the end.

    Example:
        >>> one = {"bench": "b", "case": "c", "metric": "m", "preset": "cpu", "versions": {}, "seeds": [0],
        ...        "values": [1.0], "seconds": 2.0, "device": "cpu", "date": "2026-01-01"}
        >>> merge([one], [{**one, "seeds": [1], "values": [3.0]}])[0]["value"]
        2.0
    """
    # For each row of the table, its groups of equal settings and versions; for each of these, entries by metric.
    rows: dict[tuple[str, ...], dict[str, dict[str, Entry]]] = {}
    for entry in (*old, *new):
        groups = rows.setdefault((entry["bench"], entry["case"], entry["preset"]), {})
        group = json.dumps([entry.get("settings"), entry["versions"]], sort_keys=True)
        # Removed and inserted again, so that the group that came last is the last of the dictionary.
        metrics = groups[group] = groups.pop(group, {})
        before = metrics.get(entry["metric"])
        metrics[entry["metric"]] = entry if before is None else _joined(before, entry)
    return [entry for groups in rows.values() for entry in max(reversed(groups.values()), key=_last_date).values()]


def read_results(path: Path) -> list[Entry]:
    """Read the result records of a file.

    Args:
        path: The file, `results/<bench>.json`; it need not exist.

    Returns:
        The result records; an empty list if there is no file.

    Raises:
        ValueError: The file holds something else.
    """
    if not path.is_file():
        return []
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(one, dict) and _FIELDS <= one.keys() for one in entries):
        raise ValueError(f"{path}: expected a list of benchmark records; remove the file, or give another --out")
    return entries


def write_results(path: Path, trials: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Merge the results of finished trials into a file.

    Args:
        path: The file.
        trials: Records of finished trials.

    Returns:
        All result records of the file.
    """
    entries = merge(read_results(path), collect(trials))
    write_json(path, entries)
    return entries


def digest(settings: Mapping[str, Any]) -> str:
    """A short hash of settings: equal settings have equal digests, whatever the order of their names.

    Args:
        settings: Plain data.

    Returns:
        Twelve hexadecimal digits.

    Example:
        >>> digest({"lr": 0.1, "epochs": 2}) == digest({"epochs": 2, "lr": 0.1}) != digest({"lr": 0.2, "epochs": 2})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _without_none(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that are not `None`."""
    return {name: value for name, value in recipe.items() if value is not None}


def value_of(entries: Iterable[Entry], case: str, metric: str, preset: str) -> Entry | None:
    """The result record of a case's metric under a preset; `None` if it was not run."""
    key = (case, metric, preset)
    return next((entry for entry in entries if (entry["case"], entry["metric"], entry["preset"]) == key), None)


def _entries(trial: Mapping[str, Any]) -> list[Entry]:
    """The result records of a single trial."""
    spent = math.fsum(trial["seconds"].values())
    return [
        {
            "bench": trial["bench"],
            "case": trial["case"],
            "metric": metric,
            **_statistics({trial["seed"]: (value, spent)}),
            "preset": trial["preset"],
            "device": trial["device"],
            "recipe": _without_none(trial["settings"]["recipe"]),
            "settings": digest(trial["settings"]),
            "versions": trial["versions"],
            "date": trial["date"],
        }
        for metric, value in trial["metrics"].items()
    ]


def _joined(before: Entry, entry: Entry) -> Entry:
    """Two result records of one metric as one."""
    devices = dict.fromkeys([*before["device"].split("; "), *entry["device"].split("; ")])
    date = max(before["date"], entry["date"])
    return {**entry, **_statistics(_by_seed(before) | _by_seed(entry)), "device": "; ".join(devices), "date": date}


def _by_seed(entry: Entry) -> dict[int, tuple[float | None, float]]:
    """Value and seconds of each seed; older files have no `spent`, only the mean of the seconds."""
    spent = entry.get("spent") or [entry["seconds"]] * len(entry["seeds"])
    return dict(zip(entry["seeds"], zip(entry["values"], spent, strict=True), strict=True))


def _last_date(metrics: Mapping[str, Entry]) -> str:
    return max(entry["date"] for entry in metrics.values())


def _statistics(seeds: Mapping[int, tuple[float | None, float]]) -> dict[str, Any]:
    """Mean and standard error of the values of some seeds, with the lists they come from."""
    values, spent = zip(*(seeds[seed] for seed in sorted(seeds)), strict=True)
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    mean = stderr = None
    if len(numbers) == len(values):
        mean = math.fsum(numbers) / len(numbers)
        if len(numbers) > 1:
            # From differences to the mean, so that equal values have an error of exactly 0.
            squares = math.fsum((number - mean) ** 2 for number in numbers)
            stderr = math.sqrt(squares / (len(numbers) - 1) / len(numbers))
    lists = {"seeds": sorted(seeds), "values": list(values), "spent": list(spent)}
    return {"value": mean, "stderr": stderr, **lists, "seconds": math.fsum(spent) / len(spent)}

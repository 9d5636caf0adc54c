"""Tidy records: one a case and metric, with the values of all its seeds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrostoch.bench.files import read_json, write_json

__all__ = ["collect", "digest", "merge", "read_results", "value_of", "write_results"]

Entry = dict[str, Any]

_FIELDS = {
    *("bench", "case", "metric", "value", "stderr", "seeds", "values"),
    *("preset", "seconds", "device", "versions", "date"),
}


def collect(trials: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Join trials that differ in their seeds into a record a metric.

    A record has `bench`, `case`, `metric`, `value` (the mean over seeds; `None` where one is not a finite number),
    `stderr` (the standard error of that mean; `None` with one seed), `seeds`, `values` and `spent` (value and seconds
    of each), `seconds` (their mean, of training and scoring), `preset`, `device`, `recipe`, `settings` (a digest of
    all settings of the trials), `versions` and `date` (the last one). Only seeds of the same settings and versions are
    joined; see `merge`.

    Args:
        trials: Records of finished trials, the newest last.

    Returns:
        Records, in the order in which cases and metrics first come.

    Example:
        >>> trial = {"bench": "b", "case": "c", "preset": "cpu", "device": "cpu", "versions": {}, "date": "2026-01-01",
        ...          "settings": {"recipe": {"epochs": 9}}, "seconds": {"training": 2.0, "scoring": 1.0}}
        >>> both = [{**trial, "seed": seed, "metrics": {"accuracy": value}} for seed, value in ((0, 0.5), (1, 0.7))]
        >>> found = collect(both)[0]
        >>> found["value"], round(found["stderr"], 3), found["seeds"], found["seconds"]
        (0.6, 0.1, [0, 1], 3.0)
    """
    return merge((), [entry for trial in trials for entry in _entries(trial)])


def merge(old: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """Join records: of the same settings and versions, seeds are added up; a seed run again has its new values.

    Where a case was run under one preset with several settings or versions, those with the latest date are kept, with
    all their metrics; of the same day, those that come last.

    Args:
        old: Records as they stood.
        new: Records that have been made now.

    Returns:
        All records, in the old order, new cases at the end.

    Example:
        >>> one = {"bench": "b", "case": "c", "metric": "m", "preset": "cpu", "versions": {}, "seeds": [0],
        ...        "values": [1.0], "seconds": 2.0, "device": "cpu", "date": "2026-01-01"}
        >>> merge([one], [{**one, "seeds": [1], "values": [3.0]}])[0]["value"]
        2.0
    """
    rows: dict[tuple[str, ...], dict[str, dict[str, Entry]]] = {}
    for entry in (*old, *new):
        kinds = rows.setdefault((entry["bench"], entry["case"], entry["preset"]), {})
        kind = json.dumps([entry.get("settings"), entry["versions"]], sort_keys=True)
        # Taken out and put back, so that the kind that came last is the last.
        metrics = kinds[kind] = kinds.pop(kind, {})
        before = metrics.get(entry["metric"])
        metrics[entry["metric"]] = entry if before is None else _joined(before, entry)
    return [entry for kinds in rows.values() for entry in max(reversed(kinds.values()), key=_last_date).values()]


def read_results(path: Path) -> list[Entry]:
    """Read the records of a file.

    Args:
        path: The file, `results/<bench>.json`; it need not be there.

    Returns:
        The records; none where there is no file.

    Raises:
        ValueError: The file holds something else.
    """
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(entry, dict) and _FIELDS <= entry.keys() for entry in found):
        raise ValueError(f"{path}: expected a list of benchmark records; remove the file, or give another --out")
    return found


def write_results(path: Path, trials: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Merge the records of trials into a file.

    Args:
        path: The file.
        trials: Finished trials.

    Returns:
        All records of the file.
    """
    entries = merge(read_results(path), collect(trials))
    write_json(path, entries)
    return entries


def digest(settings: Mapping[str, Any]) -> str:
    """A short text that is the same for the same settings.

    Args:
        settings: Plain data.

    Returns:
        Twelve hexadecimal digits.

    Example:
        >>> digest({"lr": 0.1, "epochs": 2}) == digest({"epochs": 2, "lr": 0.1}) != digest({"lr": 0.2, "epochs": 2})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _given(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that have a value."""
    return {name: value for name, value in recipe.items() if value is not None}


def value_of(entries: Iterable[Entry], case: str, metric: str, preset: str) -> Entry | None:
    """The record of a case's metric under a preset; `None` where it was not run."""
    key = (case, metric, preset)
    return next((entry for entry in entries if (entry["case"], entry["metric"], entry["preset"]) == key), None)


def _entries(trial: Mapping[str, Any]) -> list[Entry]:
    """The records of a single trial."""
    spent = math.fsum(trial["seconds"].values())
    return [
        {
            "bench": trial["bench"],
            "case": trial["case"],
            "metric": metric,
            **_statistics({trial["seed"]: (value, spent)}),
            "preset": trial["preset"],
            "device": trial["device"],
            "recipe": _given(trial["settings"]["recipe"]),
            "settings": digest(trial["settings"]),
            "versions": trial["versions"],
            "date": trial["date"],
        }
        for metric, value in trial["metrics"].items()
    ]


def _joined(before: Entry, entry: Entry) -> Entry:
    """Two records of one metric as one."""
    devices = dict.fromkeys([*before["device"].split("; "), *entry["device"].split("; ")])
    date = max(before["date"], entry["date"])
    return {**entry, **_statistics(_by_seed(before) | _by_seed(entry)), "device": "; ".join(devices), "date": date}


def _by_seed(entry: Entry) -> dict[int, tuple[float | None, float]]:
    """Value and seconds of each seed; in a file of before there were single seconds, only their mean."""
    spent = entry.get("spent") or [entry["seconds"]] * len(entry["seeds"])
    return dict(zip(entry["seeds"], zip(entry["values"], spent, strict=True), strict=True))


def _last_date(metrics: Mapping[str, Entry]) -> str:
    return max(entry["date"] for entry in metrics.values())


def _statistics(seeds: Mapping[int, tuple[float | None, float]]) -> dict[str, Any]:
    """Mean, standard error and lists of the values and seconds of some seeds."""
    values, spent = zip(*(seeds[seed] for seed in sorted(seeds)), strict=True)
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    mean = stderr = None
    if len(numbers) == len(values):
        mean = math.fsum(numbers) / len(numbers)
        if len(numbers) > 1:
            # Of differences, so that equal values have no error at all.
            squares = math.fsum((number - mean) ** 2 for number in numbers)
            stderr = math.sqrt(squares / (len(numbers) - 1) / len(numbers))
    lists = {"seeds": sorted(seeds), "values": list(values), "spent": list(spent)}
    return {"value": mean, "stderr": stderr, **lists, "seconds": math.fsum(spent) / len(spent)}

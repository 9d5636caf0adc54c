"""Tidy records: one a case and metric, with the values of all its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrostoch.bench.files import read_json, write_json

__all__ = ["collect", "merge", "read_results", "value_of", "write_results"]

Entry = dict[str, Any]


def collect(trials: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Join the trials of the same case, preset and versions into a record a metric.

    A record has `bench`, `case`, `metric`, `value` (the mean over seeds), `stderr` (the standard error of that mean;
    `None` with one seed), `seeds`, `values` (in their order), `preset`, `seconds` (mean time of training and scoring),
    `device`, `versions` and `date` (the last one).

    Args:
        trials: Records of finished trials.

    Returns:
        Records, in the order in which cases and metrics first come.

    Example:
        >>> trial = {"bench": "b", "case": "c", "preset": "cpu", "device": "cpu", "versions": {}, "date": "2026-01-01",
        ...          "seconds": {"training": 2.0, "scoring": 1.0}}
        >>> both = [{**trial, "seed": seed, "metrics": {"accuracy": value}} for seed, value in ((0, 0.5), (1, 0.7))]
        >>> found = collect(both)[0]
        >>> found["value"], round(found["stderr"], 3), found["seeds"], found["seconds"]
        (0.6, 0.1, [0, 1], 3.0)
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for trial in trials:
        key = (trial["bench"], trial["case"], trial["preset"], *sorted(trial["versions"].items()))
        groups.setdefault(key, []).append(trial)
    entries = []
    for group in groups.values():
        group.sort(key=lambda trial: int(trial["seed"]))
        for metric in group[0]["metrics"]:
            having = [trial for trial in group if metric in trial["metrics"]]
            values = {int(trial["seed"]): float(trial["metrics"][metric]) for trial in having}
            spent = [sum(map(float, trial["seconds"].values())) for trial in having]
            last = max(having, key=lambda trial: str(trial["date"]))
            entries.append(
                {
                    **{key: last[key] for key in ("bench", "case")},
                    "metric": metric,
                    **_statistics(values),
                    "preset": last["preset"],
                    "seconds": math.fsum(spent) / len(spent),
                    **{key: last[key] for key in ("device", "versions", "date")},
                }
            )
    return entries


def merge(old: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """Put new records in the place of old ones; of the same preset and versions, seeds run before are kept.

    Args:
        old: Records as they stood.
        new: Records that have been made now.

    Returns:
        All records, in the old order, new cases at the end.

    Example:
        >>> one = {"bench": "b", "case": "c", "metric": "m", "preset": "cpu", "versions": {}, "seeds": [0],
        ...        "values": [1.0]}
        >>> merge([one], [{**one, "seeds": [1], "values": [3.0]}])[0]["value"]
        2.0
    """
    merged = {_key(entry): entry for entry in old}
    for entry in new:
        before = merged.get(_key(entry))
        if before is not None and before["versions"] == entry["versions"]:
            values = dict(zip(before["seeds"], before["values"], strict=True))
            values |= dict(zip(entry["seeds"], entry["values"], strict=True))
            entry = {**entry, **_statistics(values)}
        merged[_key(entry)] = entry
    return list(merged.values())


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
    if not isinstance(found, list) or any(not isinstance(entry, dict) or "metric" not in entry for entry in found):
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


def value_of(entries: Iterable[Entry], case: str, metric: str, preset: str) -> Entry | None:
    """The record of a case's metric under a preset; `None` where it was not run."""
    key = (case, metric, preset)
    return next((entry for entry in entries if (entry["case"], entry["metric"], entry["preset"]) == key), None)


def _key(entry: Entry) -> tuple[str, ...]:
    return tuple(entry[name] for name in ("bench", "case", "metric", "preset"))


def _statistics(values: Mapping[int, float]) -> dict[str, Any]:
    """Mean, its standard error, seeds and values; means and not sums of squares, so that equal values give 0."""
    seeds = sorted(values)
    numbers = [values[seed] for seed in seeds]
    mean = math.fsum(numbers) / len(numbers)
    stderr = None
    if len(numbers) > 1:
        squares = math.fsum((number - mean) ** 2 for number in numbers)
        stderr = math.sqrt(squares / (len(numbers) - 1) / len(numbers))
    return {"value": mean, "stderr": stderr, "seeds": seeds, "values": numbers}

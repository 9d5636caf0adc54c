"""The page of all benchmark results, made from their records; nothing in it is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyrostoch.bench.case import Bench, Case
from pyrostoch.bench.files import write_text
from pyrostoch.bench.results import Entry, read_results, value_of

__all__ = ["markdown", "section", "tables", "write_page"]

_SHARES = ("accuracy", "sparsity", "error")
_NO_NUMBER = "-"


def write_page(out: Path, benches: Iterable[Bench]) -> Path:
    """Write `RESULTS.md` from the records in a folder.

    Args:
        out: The benchmarks' folder, with its `results`.
        benches: The benchmarks, in the page's order.

    Returns:
        The page's path.
    """
    path = out / "RESULTS.md"
    write_text(path, markdown(out, benches))
    return path


def markdown(out: Path, benches: Iterable[Bench]) -> str:
    """The page: for each benchmark and preset a table, what was published, and what was not run.

    Args:
        out: The benchmarks' folder, with its `results`.
        benches: The benchmarks, in the page's order.

    Returns:
        Markdown.
    """
    parts = ["# Benchmark results", "", "Made by `pyrostoch bench` from `results/*.json`; do not edit."]
    for bench in benches:
        parts += ["", section(bench, read_results(out / "results" / f"{bench.name}.json"), _figures(bench, out))]
    return "\n".join(parts) + "\n"


def section(bench: Bench, entries: Sequence[Entry], figures: Iterable[str] = ()) -> str:
    """The part of one benchmark.

    Args:
        bench: The benchmark.
        entries: Its records.
        figures: Files of its figures, relative to the page.

    Returns:
        Markdown.
    """
    parts = [f"## {bench.title}: `pyrostoch bench {bench.name}`", tables(bench, entries)]
    parts += [f"Published: {bench.source}."] if bench.source else []
    parts += [*bench.notes, *(f"![{bench.title}]({figure})" for figure in figures)]
    for preset in ("cpu", "full"):
        missing = _not_run(bench, entries, preset)
        if missing:
            parts.append(f"Not run, preset `{preset}`: {'; '.join(case.name for case in missing)}.")
    return "\n\n".join(part for part in parts if part)


def tables(bench: Bench, entries: Sequence[Entry], *, held_out: bool = False) -> str:
    """The tables of one benchmark, one a preset: full, cpu and quick first, then those with settings of their own.

    Args:
        bench: The benchmark.
        entries: Its records; those of cases that it no longer has are left out.
        held_out: Whether they are scores on held-out training data.

    Returns:
        Markdown.
    """
    names = {case.name for case in bench.cases}
    groups: dict[str, list[Entry]] = {preset: [] for preset in ("full", "cpu", "quick")}
    for entry in entries:
        if entry["case"] in names:
            groups.setdefault(entry["preset"], []).append(entry)
    where = ", scored on held-out training data" if held_out else ""
    parts = [
        (
            f"### Preset `{preset}`{where}",
            _across(bench, own, preset) if bench.across else _table(bench, own, preset, held_out),
        )
        for preset, own in groups.items()
        if own
    ]
    return "\n\n".join(text for part in parts for text in part)


def _across(bench: Bench, entries: Sequence[Entry], preset: str) -> str:
    """Cases beside each other, a row a metric, and a table for those whose names begin alike."""
    groups: dict[str, list[Case]] = {}
    for case in bench.cases:
        if any(entry["case"] == case.name for entry in entries):
            groups.setdefault(case.name.partition("/")[0], []).append(case)
    parts, machines = [], dict[str, None]()
    for cases in groups.values():
        rows = [["", *(case.title for case in cases)], ["---", *["---:"] * len(cases)]]
        for metric, title in bench.columns:
            cells = [_across_cell(bench, entries, case.name, metric, preset) for case in cases]
            rows += [[title, *cells]] if any(cells) else []
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        for case in cases:
            machines[_machine(next(entry for entry in entries if entry["case"] == case.name))] = None
    there = {entry["metric"] for entry in entries}
    # A ratio is not run by itself.
    idle = [title for metric, title in bench.columns if metric not in there and not metric.startswith("ratio/")]
    words = f"Run on: {'; '.join(machines)}."
    return "\n\n".join([*parts, f"{words} Not run: {'; '.join(idle)}." if idle else words])


def _across_cell(bench: Bench, entries: Sequence[Entry], case: str, metric: str, preset: str) -> str:
    """A value with its lowest and highest round, and what it is meant to be at most."""
    text = _cell(value_of(entries, case, metric, preset), metric)
    ends = [value_of(entries, case, f"{metric}/{end}", preset) for end in ("low", "high")]
    if text and all(ends):
        text += f" ({' to '.join(_cell(end, metric) for end in ends)})"
    target = bench.targets.get(case, {}).get(metric)
    return f"{text}, target {target:g}" if text and target is not None else text


def _table(bench: Bench, entries: Sequence[Entry], preset: str, held_out: bool) -> str:
    rows: list[_Row] = []
    machines: dict[str, None] = {}
    recipes: dict[str, list[str]] = {}
    few: list[int | None] = []
    for case in bench.cases:
        own = [entry for entry in entries if entry["case"] == case.name]
        if not own:
            continue
        found = {metric: _cell(value_of(own, case.name, metric, preset), metric) for metric, _ in bench.columns}
        recipe = own[0].get("recipe", {})
        ends = [", ".join(map(str, own[0]["seeds"])), str(recipe.get("epochs", "")), f"{own[0]['seconds']:.0f}"]
        row = _Row(case.title, {metric: text for metric, text in found.items() if text}, ends)
        rows.append(row)
        recipes.setdefault(_recipe(recipe), []).append(case.name)
        few.append(recipe.get("examples"))
        if case.name in bench.published and not held_out and recipe.get("examples") is None:
            # As it was published, without digits that were not.
            known = bench.published[case.name].items()
            row.published = {metric: f"*{value * _unit(metric):.6g}*" for metric, value in known}
        machines[_machine(own[0])] = None
    words = ["Mean ± standard error over the seeds; a single seed has none."]
    if any(_NO_NUMBER in row.cells.values() for row in rows):
        words.append(f"{_NO_NUMBER}: not a finite number.")
    if any(few):
        count = max(number for number in few if number)
        words.insert(
            0, f"Networks see the first {count:,} training and test images only: a check that it works, and no result."
        )
    words.append(f"Run on: {'; '.join(machines)}.")
    parts = [*(_rendered(bench, group) for group in _kinds(rows)), " ".join(words)]
    told = [f"- {', '.join(names)}: {text}." for text, names in recipes.items() if text]
    return "\n\n".join([*parts, *(["Recipes:", "\n".join(told)] if told else [])])


@dataclass
class _Row:
    """A row of a table: what it is called, its cells by metric, what stands at its end, and what was published."""

    title: str
    cells: dict[str, str]
    ends: list[str]
    published: dict[str, str] = field(default_factory=dict)


def _kinds(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Rows by kind: in one table stand those that share half of their metrics at least, if only through others."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, row in enumerate(rows):
        metrics, members = set(row.cells), [number]
        for group in [one for one in groups if 2 * len(one[0] & metrics) >= min(len(one[0]), len(metrics))]:
            groups.remove(group)
            metrics, members = metrics | group[0], members + group[1]
        groups.append((metrics, members))
    return [[rows[number] for number in members] for members in sorted(sorted(group[1]) for group in groups)]


def _rendered(bench: Bench, rows: Sequence[_Row]) -> str:
    """A table of rows of one kind, with the columns that they have."""
    columns = [
        column for column in bench.columns if any(column[0] in row.cells or column[0] in row.published for row in rows)
    ]
    lines = [["", *(title for _, title in columns), "seeds", "epochs", "training and scoring, s"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        lines.append([row.title, *(row.cells.get(metric, "") for metric, _ in columns), *row.ends])
        if row.published:
            lines.append(["*published*", *(row.published.get(metric, "") for metric, _ in columns), "", "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(entry: Entry) -> str:
    versions = entry["versions"]
    return (
        f"{entry['device']}, torch {versions['torch']}, pyro-ppl {versions['pyro']}, Python {versions['python']}, "
        f"pyrostoch {versions['pyrostoch']}, {entry['date']}"
    )


def _recipe(recipe: Mapping[str, Any]) -> str:
    """A recipe in words, by the names of its settings."""
    return ", ".join(f"{name} {_plain(value)}" for name, value in recipe.items() if name != "epochs")


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(entry: Entry | None, metric: str) -> str:
    if entry is None:
        return ""
    if entry["value"] is None:
        return _NO_NUMBER
    # A count that every seed has is no estimate.
    if entry["stderr"] is None or (entry["stderr"] == 0.0 and metric.startswith("cost/")):
        return _number(entry["value"], metric)
    # An error has two digits, and its value as many places.
    size = min(abs(entry["value"]), 10 * entry["stderr"] or math.inf)
    return " ± ".join(_number(number, metric, size) for number in (entry["value"], entry["stderr"]))


def _number(value: float, metric: str, size: float | None = None) -> str:
    """Shares in percent, counts whole; nats and the like with as many places as their size deserves."""
    if _unit(metric) == 100:
        return f"{100 * value:.2f}"
    if metric.startswith("cost/"):
        return f"{value:,.0f}"
    places = sum((abs(value) if size is None else size) < limit for limit in (100, 10, 1, 0.1))
    return f"{value:.{places}f}"


def _unit(metric: str) -> int:
    return 100 if metric.partition("/")[0] in _SHARES else 1


def _not_run(bench: Bench, entries: Sequence[Entry], preset: str) -> list[Case]:
    done: set[Any] = {entry["case"] for entry in entries if entry["preset"] == preset}
    return [case for case in bench.cases if preset in case.recipes and case.name not in done]


def _figures(bench: Bench, out: Path) -> list[str]:
    return [str(path.relative_to(out).as_posix()) for path in sorted((out / "figures").glob(f"{bench.name}-*.png"))]

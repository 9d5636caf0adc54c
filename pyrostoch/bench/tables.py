"""The page of all benchmark results, made from result records and the benches' own text; nothing is typed by hand."""

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

# First parts of metrics that are shown in percent.
_PERCENT = ("accuracy", "sparsity", "error")
_NOT_FINITE = "-"


def write_page(out: Path, benches: Iterable[Bench]) -> Path:
    """Write `RESULTS.md` from the result records in a folder.

    Args:
        out: The benchmarks' folder, with `results` and `figures` in it.
        benches: The benchmarks, in the page's order.

    Returns:
        The page's path.
    """
    path = out / "RESULTS.md"
    write_text(path, markdown(out, benches))
    return path


def markdown(out: Path, benches: Iterable[Bench]) -> str:
    """The results page: for each benchmark a table for each preset, the source of published values, and the notes.

    Args:
        out: The benchmarks' folder, with `results` and `figures` in it.
        benches: The benchmarks, in the page's order.

    Returns:
        Markdown.
    """
    parts = ["# Benchmark results", "", "Made by `pyrostoch bench` from `results/*.json`; do not edit."]
    for bench in benches:
        parts += ["", section(bench, read_results(out / "results" / f"{bench.name}.json"), _figures(bench, out))]
    return "\n".join(parts) + "\n"


def section(bench: Bench, entries: Sequence[Entry], figures: Iterable[str] = ()) -> str:
    """The section of one benchmark: its tables, notes and figures, and the cases that were not run.

    Args:
        bench: The benchmark.
        entries: Its result records.
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
    """The tables of one benchmark, one for each preset: full, cpu and quick first, then those with a changed recipe.

    Args:
        bench: The benchmark.
        entries: Its result records; those of cases that it no longer has are left out.
        held_out: Whether the scores are on held-out training data.

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
            _transposed(bench, group, preset) if bench.transposed else _table(bench, group, preset, held_out),
        )
        for preset, group in groups.items()
        if group
    ]
    return "\n\n".join(text for part in parts for text in part)


def _transposed(bench: Bench, entries: Sequence[Entry], preset: str) -> str:
    """Tables with a column for each case and a row for each metric, one for each first part of the cases' names."""
    groups: dict[str, list[Case]] = {}
    for case in bench.cases:
        if any(entry["case"] == case.name for entry in entries):
            groups.setdefault(case.name.partition("/")[0], []).append(case)
    parts, machines = [], dict[str, None]()
    for cases in groups.values():
        rows = [["", *(case.title for case in cases)], ["---", *["---:"] * len(cases)]]
        for metric, title in bench.columns:
            cells = [_transposed_cell(bench, entries, case.name, metric, preset) for case in cases]
            rows += [[title, *cells]] if any(cells) else []
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        for case in cases:
            machines[_machine(next(entry for entry in entries if entry["case"] == case.name))] = None
    present = {entry["metric"] for entry in entries}
    # A ratio is computed from other metrics and is not run by itself.
    missing = [title for metric, title in bench.columns if metric not in present and not metric.startswith("ratio/")]
    caption = f"Run on: {'; '.join(machines)}."
    return "\n\n".join([*parts, f"{caption} Not run: {'; '.join(missing)}." if missing else caption])


def _transposed_cell(bench: Bench, entries: Sequence[Entry], case: str, metric: str, preset: str) -> str:
    """A value with that of its lowest and highest round, and its target."""
    text = _cell(value_of(entries, case, metric, preset), metric)
    ends = [value_of(entries, case, f"{metric}/{end}", preset) for end in ("low", "high")]
    if text and all(ends):
        text += f" ({' to '.join(_cell(end, metric) for end in ends)})"
    target = bench.targets.get(case, {}).get(metric)
    return f"{text}, target {target:g}" if text and target is not None else text


def _table(bench: Bench, entries: Sequence[Entry], preset: str, held_out: bool) -> str:
    """Tables with a row for each case and a column for each metric, with a caption and the recipes."""
    rows: list[_Row] = []
    machines: dict[str, None] = {}
    recipes: dict[str, list[str]] = {}
    limits: list[int | None] = []
    for case in bench.cases:
        of_case = [entry for entry in entries if entry["case"] == case.name]
        if not of_case:
            continue
        cells = {metric: _cell(value_of(of_case, case.name, metric, preset), metric) for metric, _ in bench.columns}
        first, recipe = of_case[0], of_case[0].get("recipe", {})
        trailing = [", ".join(map(str, first["seeds"])), str(recipe.get("epochs", "")), f"{first['seconds']:.0f}"]
        row = _Row(case.title, {metric: text for metric, text in cells.items() if text}, trailing)
        rows.append(row)
        recipes.setdefault(_recipe(recipe), []).append(case.name)
        limits.append(recipe.get("examples"))
        if case.name in bench.published and not held_out and recipe.get("examples") is None:
            # With the digits that were published, and no more.
            published = bench.published[case.name].items()
            row.published = {metric: f"*{value * _unit(metric):.6g}*" for metric, value in published}
        machines[_machine(first)] = None
    caption = ["Mean ± standard error over the seeds; a single seed has none."]
    if any(_NOT_FINITE in row.cells.values() for row in rows):
        caption.append(f"{_NOT_FINITE}: not a finite number.")
    if any(limits):
        count = max(number for number in limits if number)
        caption.insert(
            0,
            f"Only the first {count:,} training and test images are used: a check that everything works, not a result.",
        )
    caption.append(f"Run on: {'; '.join(machines)}.")
    parts = [*(_markdown_table(bench, group) for group in _group_by_metrics(rows)), " ".join(caption)]
    lines = [f"- {', '.join(names)}: {text}." for text, names in recipes.items() if text]
    return "\n\n".join([*parts, *(["Recipes:", "\n".join(lines)] if lines else [])])


@dataclass
class _Row:
    """A row of a table: its title, cells by metric, the last cells (seeds, epochs, seconds), and published values."""

    title: str
    cells: dict[str, str]
    trailing: list[str]
    published: dict[str, str] = field(default_factory=dict)


def _group_by_metrics(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Split rows into tables: rows with at least half of their metrics in common, directly or through other rows."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, row in enumerate(rows):
        metrics, members = set(row.cells), [number]
        for group in [g for g in groups if 2 * len(g[0] & metrics) >= min(len(g[0]), len(metrics))]:
            groups.remove(group)
            metrics, members = metrics | group[0], members + group[1]
        groups.append((metrics, members))
    return [[rows[number] for number in members] for members in sorted(sorted(group[1]) for group in groups)]


def _markdown_table(bench: Bench, rows: Sequence[_Row]) -> str:
    """A table of some rows, with the columns that at least one of them has."""
    columns = [
        column for column in bench.columns if any(column[0] in row.cells or column[0] in row.published for row in rows)
    ]
    lines = [["", *(title for _, title in columns), "seeds", "epochs", "training and scoring, s"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        lines.append([row.title, *(row.cells.get(metric, "") for metric, _ in columns), *row.trailing])
        if row.published:
            lines.append(["*published*", *(row.published.get(metric, "") for metric, _ in columns), "", "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(entry: Entry) -> str:
    """Device, versions and date of a result."""
    versions = entry["versions"]
    return (
        f"{entry['device']}, torch {versions['torch']}, pyro-ppl {versions['pyro']}, Python {versions['python']}, "
        f"pyrostoch {versions['pyrostoch']}, {entry['date']}"
    )


def _recipe(recipe: Mapping[str, Any]) -> str:
    """The fields of a recipe but its epochs, which have a column."""
    return ", ".join(f"{name} {_field(value)}" for name, value in recipe.items() if name != "epochs")


def _field(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_field, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(entry: Entry | None, metric: str) -> str:
    if entry is None:
        return ""
    if entry["value"] is None:
        return _NOT_FINITE
    # A cost that is the same for all seeds is exact and has no error.
    if entry["stderr"] is None or (entry["stderr"] == 0.0 and metric.startswith("cost/")):
        return _number(entry["value"], metric)
    # Decimal places so that the error has two digits; the value has as many places.
    size = min(abs(entry["value"]), 10 * entry["stderr"] or math.inf)
    return " ± ".join(_number(number, metric, size) for number in (entry["value"], entry["stderr"]))


def _number(value: float, metric: str, size: float | None = None) -> str:
    """Shares in percent, costs as whole numbers, everything else with places that depend on the size."""
    if _unit(metric) == 100:
        return f"{100 * value:.2f}"
    if metric.startswith("cost/"):
        return f"{value:,.0f}"
    places = sum((abs(value) if size is None else size) < limit for limit in (100, 10, 1, 0.1))
    return f"{value:.{places}f}"


def _unit(metric: str) -> int:
    return 100 if metric.partition("/")[0] in _PERCENT else 1


def _not_run(bench: Bench, entries: Sequence[Entry], preset: str) -> list[Case]:
    """The cases of a preset that have no results."""
    done: set[Any] = {entry["case"] for entry in entries if entry["preset"] == preset}
    return [case for case in bench.cases if preset in case.recipes and case.name not in done]


def _figures(bench: Bench, out: Path) -> list[str]:
    """The figures of a benchmark, relative to the page."""
    return [str(path.relative_to(out).as_posix()) for path in sorted((out / "figures").glob(f"{bench.name}-*.png"))]

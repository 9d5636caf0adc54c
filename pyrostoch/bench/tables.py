"""The page of all benchmark results, made from their records; nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyrostoch.bench.case import Bench, Case
from pyrostoch.bench.plan import BENCHES
from pyrostoch.bench.results import Entry, read_results, value_of

__all__ = ["markdown", "write_page"]

_SHARES = ("accuracy", "sparsity", "error")


def write_page(out: Path) -> Path:
    """Write `RESULTS.md` from the records in a folder.

    Args:
        out: The benchmarks' folder, with its `results`.

    Returns:
        The page's path.
    """
    path = out / "RESULTS.md"
    path.write_text(markdown(out), encoding="utf-8")
    return path


def markdown(out: Path) -> str:
    """The page: for each benchmark and preset a table, what was published, and what was not run.

    Args:
        out: The benchmarks' folder, with its `results`.

    Returns:
        Markdown.
    """
    parts = ["# Benchmark results", "", "Made by `pyrostoch bench` from `results/*.json`; do not edit."]
    for bench in BENCHES.values():
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
    presets = list(dict.fromkeys(str(entry["preset"]) for entry in entries))
    known = [preset for preset in ("full", "cpu", "quick") if preset in presets]
    lines = [f"## {bench.title}: `pyrostoch bench {bench.name}`"]
    for preset in [*known, *(preset for preset in presets if preset not in known)]:
        lines += [
            "",
            f"### Preset `{preset}`",
            "",
            *_table(bench, [e for e in entries if e["preset"] == preset], preset),
        ]
    lines += ["", f"Published: {bench.source}.", *(f"\n{note}" for note in bench.notes)]
    lines += [f"\n![{bench.title}]({figure})" for figure in figures]
    missing = [(preset, _not_run(bench, entries, preset)) for preset in ("cpu", "full")]
    for preset, cases in missing:
        if cases:
            lines += ["", f"Not run, preset `{preset}`: {'; '.join(case.name for case in cases)}."]
    return "\n".join(lines)


def _table(bench: Bench, entries: Sequence[Entry], preset: str) -> list[str]:
    heads = ["", *(title for _, title in bench.columns), "seeds", "epochs", "s a network"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    machines: dict[str, None] = {}
    for case in bench.cases:
        own = [entry for entry in entries if entry["case"] == case.name]
        if not own:
            continue
        cells = [_cell(value_of(own, case.name, metric, preset), metric) for metric, _ in bench.columns]
        seeds = ", ".join(map(str, own[0]["seeds"]))
        name = preset.partition(",")[0]
        epochs = str(case.recipes[name].epochs) if name in case.recipes else ""
        rows.append([case.title, *cells, seeds, epochs, f"{own[0]['seconds']:.0f}"])
        if case.name in bench.published:
            known = bench.published[case.name]
            cells = [f"*{_number(known[metric], metric)}*" if metric in known else "" for metric, _ in bench.columns]
            rows.append(["*published*", *cells, "", "", ""])
        versions = own[0]["versions"]
        machines[
            f"{own[0]['device']}, torch {versions['torch']}, pyro-ppl {versions['pyro']}, Python {versions['python']}, "
            f"pyrostoch {versions['pyrostoch']}, {own[0]['date']}"
        ] = None
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [
        *lines,
        "",
        "Mean ± standard error over the seeds; a single seed has none. Run on: " + "; ".join(machines) + ".",
    ]


def _cell(entry: Entry | None, metric: str) -> str:
    if entry is None:
        return ""
    text = _number(entry["value"], metric)
    return text if entry["stderr"] is None else f"{text} ± {_number(entry['stderr'], metric)}"


def _number(value: float, metric: str) -> str:
    """Shares in percent; nats and the like with as many places as their size deserves."""
    if metric.partition("/")[0] in _SHARES:
        return f"{100 * value:.2f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _not_run(bench: Bench, entries: Sequence[Entry], preset: str) -> list[Case]:
    done: set[Any] = {entry["case"] for entry in entries if entry["preset"] == preset}
    return [case for case in bench.cases if preset in case.recipes and case.name not in done]


def _figures(bench: Bench, out: Path) -> list[str]:
    return [str(path.relative_to(out).as_posix()) for path in sorted((out / "figures").glob(f"{bench.name}-*.png"))]

"""Tables and progress bars on the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pyrostoch.runs import Config, Watch

__all__ = ["Screen", "bars", "comparison", "console", "facts", "scores"]

_PLAIN_WIDTH = 120


def console() -> Console:
    """The standard output; where it is no terminal, wide enough for the tables."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH, highlight=False)


def bars(on: Console, description: str = "{task.description}") -> Progress:
    """Progress bars with the epochs, the time, what is left of it, and each task's own `note`.

    Args:
        on: Where they are shown.
        description: Format of what stands before a bar.

    Returns:
        The bars, not started.
    """
    return Progress(
        TextColumn(description),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=on,
    )


class Screen(Watch):
    """Shows a run: what it does, a bar a guide with the time left, or a line a guide where there is no terminal."""

    def __init__(self, config: Config, out: str, quiet: bool) -> None:
        self._config, self._out, self._quiet = config, out, quiet
        self._console = console()
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._current = ""
        self.finished: list[str] = []

    def started(self, record: dict[str, Any]) -> None:
        """Print what the run will do, and put up the bars."""
        self.finished = [entry["name"] for entry in record["guides"]]
        if self._quiet:
            return
        self._console.print(facts(self._lines(record)))
        if self.finished:
            self._console.print(f"Finished before: {', '.join(self.finished)}.")
        self._console.print()
        if not self._console.is_terminal:
            return
        self._progress = bars(self._console, "{task.description:<18}")
        names = [name for name in self._config.guides if name not in self.finished]
        epochs = self._config.epochs
        if len(names) > 1:
            self._bars["all"] = self._progress.add_task("all guides", total=epochs * len(names), note="")
        for name in names:
            self._bars[name] = self._progress.add_task(name, total=epochs, start=False, note="")
        self._progress.start()

    def guide(self, name: str) -> None:
        """Start the guide's bar."""
        self._current = name
        if self._progress is not None:
            self._progress.start_task(self._bars[name])

    def epoch(self, row: dict[str, Any]) -> None:
        """Move the bars."""
        if self._progress is None:
            return
        bar = self._bars[self._current]
        position = self._config.guides.index(self._current)
        self._progress.update(bar, completed=row["epoch"], note=f"ELBO {row['elbo']:,.1f}")
        if "all" in self._bars:
            waiting = [name for name in self._config.guides if name in self._bars]
            done = waiting.index(self._config.guides[position]) * self._config.epochs + row["epoch"]
            self._progress.update(self._bars["all"], completed=done)

    def scoring(self, name: str) -> None:
        """Say that the guide is being scored."""
        if self._progress is not None:
            self._progress.update(self._bars[name], completed=self._config.epochs, note="scoring")

    def scored(self, entry: dict[str, Any]) -> None:
        """Say how the guide has done."""
        self.finished.append(entry["name"])
        elbo = float(entry["decomposition"]["elbo"])
        if self._progress is not None:
            self._progress.update(self._bars[entry["name"]], note=f"ELBO {elbo:,.1f}")
            self._progress.stop_task(self._bars[entry["name"]])
        elif not self._quiet:
            self._console.print(f"{entry['name']}: ELBO {elbo:,.1f} nats, {entry['seconds']:.1f} s")

    def drawing(self, name: str) -> None:
        """Take the bars down, and say what is left to do."""
        self.close()
        if not self._quiet:
            why = ", which has the highest ELBO" if len(self._config.guides) > 1 else ""
            self._console.print(f"Writing posterior.nc: draws from the posterior of {name}{why}.")

    def close(self) -> None:
        """Take the bars down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _lines(self, record: dict[str, Any]) -> list[tuple[str, str]]:
        config, data, model = self._config, record["data"], record["model"]
        kind = f"{data['classes']} classes" if data["classes"] else "regression"
        several = len(config.guides) > 1
        prior = f"{record['prior']['text']}{', one for all guides' if several else ''}"
        lines = [
            ("data", f"{data['title']}: {data['train']:,} training and {data['test']:,} test examples, {kind}"),
            ("network", f"{model['name']}: {model['description']}; {model['parameters']:,} parameters"),
            ("random", f"{', '.join(model['random'])}; the rest is fitted by maximum likelihood"),
            ("prior", prior),
        ]
        if record["prior"]["improper"]:
            lines.append(
                ("", "improper: the ELBO is defined up to a constant per weight; compare it within this run only")
            )
        epochs = f"{config.epochs} epoch{'' if config.epochs == 1 else 's'}"
        training = (
            f"{epochs}, batches of {config.batch_size}, lr {config.lr:g} (log alpha {config.lr_alpha:g})"
            f", estimator {config.estimator}, seed {config.seed}, {config.device}, {config.dtype}"
        )
        return [*lines, ("guides", ", ".join(config.guides)), ("training", training), ("output", self._out)]


def facts(lines: Iterable[tuple[str, str]]) -> Table:
    """Names and what they are, in two columns.

    Args:
        lines: Pairs.

    Returns:
        A table without rules.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(Text(name), Text(text))
    return table


def comparison(record: dict[str, Any]) -> Table:
    """The guides of a run side by side.

    Args:
        record: The run's record.

    Returns:
        A table; the best of a column is bold where there are several guides.
    """
    entries = record["guides"]
    regression = record["data"]["task"] == "regression"
    key, digits, factor, better = ("rmse", 4, 1.0, min) if regression else ("accuracy", 2, 100.0, max)
    modes = [row["mode"] for row in entries[0]["rows"]]
    columns: list[tuple[str, list[Any], int, Any]] = [
        ("ELBO", [entry["decomposition"]["elbo"] for entry in entries], 1, max),
        ("data", [entry["decomposition"]["data"] for entry in entries], 1, None),
        ("KL", [entry["decomposition"]["kl"] for entry in entries], 1, None),
    ]
    for mode in modes:
        values = [factor * _number(_row(entry, mode).get(key)) for entry in entries]
        columns.append((_short(mode), values, digits, better))
    best_mode = modes[-1]
    for name in ("nll",) if regression else ("nll", "ece"):
        columns.append((name.upper(), [_row(entry, best_mode).get(name) for entry in entries], 3, min))
    columns.append(("seconds", [entry["seconds"] for entry in entries], 1, None))
    score = "test RMSE" if regression else "test accuracy, %"
    words = (
        f"ELBO, data term and KL: nats, whole training set. {', '.join(map(_short, modes))}: {score}. "
        f"{'NLL' if regression else 'NLL and ECE'}: by {_short(best_mode)}."
    )
    if regression:
        words += " ELBO and data term are those of the standardized target; RMSE and NLL are in its original units."
    table = Table(box=box.SIMPLE_HEAD, caption=words, caption_justify="left", pad_edge=False, padding=(0, 1))
    table.add_column("guide", no_wrap=True)
    cells = []
    for name, values, places, choose in columns:
        table.add_column(name, justify="right", no_wrap=True)
        numbers = [_number(value) for value in values]
        rounded = [round(x, places) for x in numbers if math.isfinite(x)]
        best = choose(rounded) if choose and len(entries) > 1 and rounded else None
        cells.append(
            [
                Text(_text(x, places), style="bold" if best is not None and round(x, places) == best else "")
                if math.isfinite(x)
                else Text(str(x), style="red")
                for x in numbers
            ]
        )
    for index, entry in enumerate(entries):
        table.add_row(entry["name"], *(column[index] for column in cells))
    return table


def scores(rows: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Test scores by guide and mode.

    Args:
        rows: Name of the guide, and its scores in one mode.

    Returns:
        A table.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("guide", no_wrap=True)
    table.add_column("mode", no_wrap=True)
    regression = "rmse" in rows[0][1]
    for name in ("RMSE", "NLL", "seconds") if regression else ("accuracy, %", "NLL", "Brier", "ECE", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for guide, row in rows:
        if regression:
            cells = [f"{row['rmse']:.4f} ± {row['rmse_stderr']:.4f}", f"{row['nll']:.4f}"]
        else:
            cells = [f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_stderr']:.2f}"]
            cells += [f"{row[name]:.4f}" for name in ("nll", "brier", "ece")]
        table.add_row(guide, row["mode"], *cells, f"{row['seconds']:.2f}")
    return table


def _row(entry: dict[str, Any], mode: str) -> dict[str, Any]:
    return next((row for row in entry["rows"] if row["mode"] == mode), {})


def _short(mode: str) -> str:
    name, _, count = mode.partition(":")
    return name if not count else "1 sample" if count == "1" else f"{count} samples"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _text(x: float, places: int) -> str:
    text = f"{x:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text

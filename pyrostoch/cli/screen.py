"""Tables and progress bars for the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
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

from pyrostoch.runs import Config, RunCallback
from pyrostoch.runs.registry import short_name

__all__ = ["RunScreen", "bars", "comparison_table", "console", "score_table", "two_column_table"]

#: Width of the output where it is not a terminal.
_PLAIN_WIDTH = 120


def console() -> Console:
    """A console on stdout; if stdout is not a terminal, wide enough for the tables."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH, highlight=False)


def bars(on: Console, description: str = "{task.description}") -> Progress:
    """Progress bars with the epochs, the elapsed and the remaining time, and the field `note` of each task.

    Args:
        on: Console to show them on.
        description: Format of the text before a bar.

    Returns:
        The progress display, not started.
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


class RunScreen(RunCallback):
    """Prints the settings of a run, and shows a progress bar per guide; without a terminal, prints a line per guide.

    Args:
        config: The settings.
        out: Folder of the run.
        quiet: Whether to show nothing.
    """

    def __init__(self, config: Config, out: str, quiet: bool) -> None:
        self._config, self._out, self._quiet = config, out, quiet
        self._console = console()
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._current = ""
        self.finished: list[str] = []
        self._epochs = config.epochs * (2 if config.conditional else 1)

    def on_run_start(self, record: dict[str, Any]) -> None:
        """Print the settings, and show the bars."""
        self.finished = [result["name"] for result in record["guides"]]
        if self._quiet:
            return
        self._console.print(two_column_table(self._settings(record)))
        if self.finished:
            self._console.print(f"Already finished: {', '.join(self.finished)}.")
        self._console.print()
        if not self._console.is_terminal:
            return
        self._progress = bars(self._console, "{task.description:<18}")
        names = [name for name in self._config.guides if name not in self.finished]
        epochs = self._epochs
        if len(names) > 1:
            self._bars["all"] = self._progress.add_task("all guides", total=epochs * len(names), note="")
        for name in names:
            self._bars[name] = self._progress.add_task(short_name(name), total=epochs, start=False, note="")
        self._progress.start()

    def on_guide_start(self, name: str) -> None:
        """Start the bar of the guide."""
        self._current = name
        if self._progress is None:
            return
        if name not in self._bars:  # a guide that was finished, and whose checkpoint is gone
            self._bars[name] = self._progress.add_task(short_name(name), total=self._epochs, start=False, note="")
        self._progress.start_task(self._bars[name])

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        """Advance the bars."""
        if self._progress is None:
            return
        bar = self._bars[self._current]
        self._progress.update(bar, completed=row["epoch"], note=f"ELBO {row['elbo']:,.1f}")
        if "all" in self._bars:
            with_bars = [name for name in self._config.guides if name in self._bars]
            done = with_bars.index(self._current) * self._epochs + row["epoch"]
            self._progress.update(self._bars["all"], completed=done)

    def on_scoring_start(self, name: str) -> None:
        """Show that the guide is being scored."""
        if self._progress is not None:
            self._progress.update(self._bars[name], completed=self._epochs, note="scoring")

    def on_guide_end(self, result: dict[str, Any]) -> None:
        """Show the ELBO of the guide."""
        self.finished.append(result["name"])
        elbo = float(result["decomposition"]["elbo"])
        if self._progress is not None:
            self._progress.update(self._bars[result["name"]], note=f"ELBO {elbo:,.1f}")
            self._progress.stop_task(self._bars[result["name"]])
        elif not self._quiet:
            self._console.print(f"{short_name(result['name'])}: ELBO {elbo:,.1f} nats, {result['seconds']:.1f} s")

    def on_posterior_start(self, name: str) -> None:
        """Stop the bars, and print that posterior draws are being written."""
        self.close()
        if not self._quiet:
            reason = ", which has the highest ELBO" if len(self._config.guides) > 1 else ""
            self._console.print(f"Writing posterior.nc: draws from the posterior of {short_name(name)}{reason}.")

    def close(self) -> None:
        """Stop the bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _settings(self, record: dict[str, Any]) -> list[tuple[str, str]]:
        config, data, model = self._config, record["data"], record["model"]
        kind = f"{data['classes']} classes" if data["classes"] else "regression"
        several = len(config.guides) > 1
        prior = f"{record['prior']['text']}{', the same for all guides' if several else ''}"
        random = ", ".join(model["random"]) or "none"
        lines = [
            ("data", f"{data['title']}: {data['train']:,} training and {data['test']:,} test examples, {kind}"),
            ("network", f"{model['name']}: {model['description']}; {model['parameters']:,} parameters"),
            ("random", f"{random}; all other parameters are fitted by maximum likelihood"),
            ("prior", prior),
        ]
        if record["prior"]["improper"]:
            lines.append(
                ("", "improper: the ELBO is defined up to a constant per weight; compare it within this run only")
            )
        if config.stochastic:
            lines.append(("stochastic", f"{config.stochastic}; weight of the rate {config.rate_weight:g}"))
        if config.conditional:
            lines.append(
                ("conditional", f"{config.conditional}; first the classes, labels known, then their selection")
            )
        epochs = (
            f"{config.epochs} epoch{'' if config.epochs == 1 else 's'}{' for each step' * bool(config.conditional)}"
        )
        training = (
            f"{epochs}, batches of {config.batch_size}, lr {config.lr:g} (log alpha {config.lr_alpha:g})"
            f", estimator {config.estimator}, seed {config.seed}, {config.device}, {config.dtype}"
        )
        guides = ", ".join(map(short_name, config.guides))
        return [*lines, ("guides", guides), ("training", training), ("output", self._out)]


def two_column_table(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and their values, in two columns.

    Args:
        rows: Pairs of a name and a value.

    Returns:
        A table without header and rules.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return table


def comparison_table(record: dict[str, Any]) -> Table:
    """The ELBO, its terms and the test scores of the guides of a run, one row per guide.

    Args:
        record: The run's record.

    Returns:
        A table; with several guides, the best value of a column is bold.
    """
    guides = record["guides"]
    regression = record["data"]["task"] == "regression"
    key, digits, factor, better = ("rmse", 4, 1.0, min) if regression else ("accuracy", 2, 100.0, max)
    modes = [row["mode"] for row in guides[0]["rows"]]
    columns: list[tuple[str, list[Any], int, Any]] = [
        ("ELBO", [guide["decomposition"]["elbo"] for guide in guides], 1, max),
        ("data", [guide["decomposition"]["data"] for guide in guides], 1, None),
        ("KL", [guide["decomposition"]["kl"] for guide in guides], 1, None),
    ]
    if any(guide["decomposition"].get("rates") for guide in guides):
        columns.append(("rate", [guide["decomposition"].get("rate", 0.0) for guide in guides], 1, None))
    for mode in modes:
        values = [factor * _number(_row(guide, mode).get(key)) for guide in guides]
        columns.append((_mode_title(mode), values, digits, better))
    last_mode = modes[-1]
    for name in ("nll",) if regression else ("nll", "ece"):
        columns.append((name.upper(), [_row(guide, last_mode).get(name) for guide in guides], 3, min))
    columns.append(("seconds", [guide["seconds"] for guide in guides], 1, None))
    reasons = [guide["without_moments"] for guide in guides if guide.get("without_moments")]
    why = "" if "moments" in modes else " No moments: layers of several classes have no rule."
    columns_left_out = f" No moments: {reasons[0]}." if reasons else why
    score = "test RMSE" if regression else "test accuracy, %"
    caption = (
        f"ELBO, data term and KL: nats, whole training set. {', '.join(map(_mode_title, modes))}: {score}. "
        f"{'NLL' if regression else 'NLL and ECE'}: {_mode_title(last_mode)}.{columns_left_out}"
    )
    if regression:
        caption += " ELBO and data term are those of the standardized target; RMSE and NLL are in its original units."
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False, padding=(0, 1))
    table.add_column("guide", no_wrap=True)
    cells = []
    for name, values, most, choose in columns:
        table.add_column(name, justify="right", no_wrap=True)
        numbers = [_number(value) for value in values]
        # Of large numbers fewer places, so that the table keeps its width.
        digits_before = max((len(f"{abs(x):.0f}") for x in numbers if math.isfinite(x)), default=1)
        places = most if most < 2 else max(0, min(most, 6 - digits_before))
        rounded = [round(x, places) for x in numbers if math.isfinite(x)]
        best = choose(rounded) if choose and len(guides) > 1 and rounded else None
        cells.append(
            [
                Text(_text(x, places), style="bold" if best is not None and round(x, places) == best else "")
                if math.isfinite(x)
                else Text(str(x), style="red")
                for x in numbers
            ]
        )
    for index, guide in enumerate(guides):
        table.add_row(short_name(guide["name"]), *(column[index] for column in cells))
    return table


def print_whole(output: Console, table: Table) -> None:
    """Print a table with all of its digits, also on a narrower terminal, where its lines then wrap.

    Args:
        output: The console.
        table: The table.
    """
    terminal = output.width
    needed = Measurement.get(output, output.options.update(max_width=10_000), table).maximum
    output.width = max(terminal, needed)
    try:
        output.print(table, crop=False)
    finally:
        output.width = terminal


def score_table(rows: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Test scores by guide and predictive mode.

    Args:
        rows: Pairs of the name of a guide and its scores in one mode.

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
        mode = f"{row['mode']}, labels known" if row.get("labels") else row["mode"]
        table.add_row(guide, mode, *cells, f"{row['seconds']:.2f}")
    return table


def _row(guide: dict[str, Any], mode: str) -> dict[str, Any]:
    return next((row for row in guide["rows"] if row["mode"] == mode), {})


def _mode_title(mode: str) -> str:
    name, _, count = mode.partition(":")
    return name if not count else "1 sample" if count == "1" else f"{count} samples"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _text(x: float, places: int) -> str:
    text = f"{x:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text

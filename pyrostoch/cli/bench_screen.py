"""A benchmark on the terminal: what will be run, a bar a trial, and a line when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.progress import Progress

from pyrostoch.bench import Bench, Case, Setting
from pyrostoch.bench.run import RunCallback
from pyrostoch.cli.screen import bars, console

__all__ = ["BenchScreen"]


class BenchScreen(RunCallback):
    """Shows how a benchmark goes on.

    Args:
        bench: The benchmark.
        setting: Preset, folder, device.
        cases: The cases that will be run.
        skipped: Those that will not, since they need a GPU.
        seeds: Seeds.
        quiet: Whether to show nothing.
    """

    def __init__(
        self,
        bench: Bench,
        setting: Setting,
        cases: Sequence[Case],
        skipped: Sequence[Case],
        seeds: Sequence[int],
        quiet: bool,
    ) -> None:
        self._bench, self._setting, self._cases, self._skipped = bench, setting, cases, skipped
        self._seeds, self._quiet = seeds, quiet
        self._console = console()
        self._progress: Progress | None = None
        self._bar: Any = None

    def plan(self) -> None:
        """Print what will be run, and what will not."""
        if self._quiet:
            return
        held = ", on held-out training data" if self._setting.holdout else ""
        seeds = ", ".join(map(str, self._seeds))
        where = f"{self._setting.device}, {self._setting.precision}{held}"
        head = f"{self._bench.title}: preset {self._setting.variant}, seeds {seeds}, {where}"
        self._console.print(head, markup=False, soft_wrap=True)
        for case in self._cases:
            recipe = self._setting.recipe(case)
            unit = "rounds" if self._bench.transposed else "epochs"
            self._console.print(f"  {case.name}: {recipe.epochs} {unit}", markup=False, soft_wrap=True)
        for case in self._skipped:
            self._console.print(
                f"  {case.name}: not run, needs a GPU (or --only {case.name})", markup=False, soft_wrap=True
            )

    def on_case_skipped(self, case: Case) -> None:
        """Say what the data folder lacks."""
        if not self._quiet:
            words = f"{case.name}: not run, is for {case.data_title}, and the data folder holds another one"
            self._console.print(words, markup=False, soft_wrap=True)

    def on_trial_start(self, case: Case, seed: int, epochs: int) -> None:
        """Put up a bar."""
        if self._quiet or not self._console.is_terminal:
            return
        if self._progress is None:
            self._progress = bars(self._console)
            self._progress.start()
        self._bar = self._progress.add_task(f"{case.name}, seed {seed}", total=epochs, note="")

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        """Move the bar."""
        if self._progress is not None:
            note = row["note"] if "note" in row else f"ELBO {row['elbo']:,.1f}"
            self._progress.update(self._bar, completed=row["epoch"], note=note, refresh=True)

    def on_trial_end(self, record: dict[str, Any]) -> None:
        """Say how a trial has done."""
        if self._quiet:
            return
        shown = {name: record["metrics"].get(name) for name in ("accuracy/mean", "accuracy/mc:1", "accuracy/mc:20")}
        scores = ", ".join(f"{name} {100 * value:.2f} %" for name, value in shown.items() if value is not None)
        elbo = record["metrics"].get("elbo")
        words = ", ".join(part for part in (scores, "" if elbo is None else f"ELBO {elbo:,.1f}") if part) or "done"
        seconds = sum(record["seconds"].values())
        self._console.print(
            f"{record['case']}, seed {record['seed']}: {words}; {seconds:.0f} s", markup=False, soft_wrap=True
        )
        if self._progress is not None:
            self._progress.remove_task(self._bar)

    def close(self) -> None:
        """Take the bars down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

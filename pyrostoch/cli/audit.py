"""The command that audits what the network of a run sends."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrostoch.cli import options as opt
from pyrostoch.cli.errors import guarded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["audit"]


@guarded
def audit(
    run: opt.RunName,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            help="Modules whose outputs are sent, separated by commas; default: the stochastic layer, if there is one.",
            metavar="NAME",
        ),
    ] = "",
    private: Annotated[
        list[Path] | None,
        typer.Option(
            "--private",
            help="A private attribute: NumPy file with arrays train and test of whole numbers, in the order of the "
            "run's examples, named as the attribute, such as age.npz; may be repeated.",
            metavar="FILE",
        ),
    ] = None,
    labels: opt.Labels = None,
    queries: Annotated[
        str,
        typer.Option("--queries", help="Numbers of queries whose mean is read, separated by commas.", metavar="COUNTS"),
    ] = "1,10,100",
    epochs: Annotated[
        int,
        typer.Option("--epochs", help="The attackers' budget without noise, where ten times as many are tried.", min=1),
    ] = 10,
    most_epochs: Annotated[
        int, typer.Option("--most-epochs", help="The largest number of epochs on noise.", min=1)
    ] = 100,
    inverted: Annotated[
        int, typer.Option("--inverted", help="Test examples that are attacked by optimization, too.", min=0)
    ] = 100,
    guide: Annotated[
        str | None,
        typer.Option("--guide", help="A guide of the run; default: the one with the highest ELBO.", metavar="NAME"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of noise and attackers; default: that of the run.", min=0)
    ] = None,
    data_dir: opt.DataDir = None,
    quiet: opt.Quiet = False,
) -> None:
    """Attack what the network of a run sends at a layer, and add that to its report; on the CPU."""
    from pyrostoch.cli.screen import console
    from pyrostoch.report import write
    from pyrostoch.runs import SavedRun
    from pyrostoch.runs.audits import AuditSettings, audit_run, with_audits
    from pyrostoch.runs.private_files import read_private

    saved, output = SavedRun.open(run), console()
    settings = AuditSettings(
        labels == "known",
        _counts(queries),
        epochs,
        most_epochs,
        inverted,
        saved.config.seed if seed is None else seed,
    )
    screen = _Screen(output, quiet)
    try:
        found, file = audit_run(
            saved,
            [name.strip() for name in at.split(",") if name.strip()],
            settings,
            guide=guide,
            private=read_private(private or ()),
            data_dir=data_dir,
            callback=screen.begin,
        )
    finally:
        screen.close()
    write(with_audits(saved.folder, saved.record), saved.folder / "report.html")
    output.print(str(found), markup=False, soft_wrap=True)
    if not quiet:
        output.print(f"Wrote {file} and report.html, after {screen.seconds:.1f} s.", markup=False)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise ValueError(f"queries: expected numbers from 1 up, separated by commas, such as 1,10,100, got {text!r}")
    return tuple(sorted(counts))


class _Screen:
    """A progress bar over the parts of an audit; without a terminal, a line for each part."""

    def __init__(self, output: Console, quiet: bool) -> None:
        self._output, self._quiet, self._start = output, quiet, perf_counter()
        self._progress: Progress | None = None
        self._bar: Any = None

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self._start

    def begin(self, part: str, done: int, total: int) -> None:
        """Show what begins.

        Args:
            part: Its name.
            done: Number of parts that are done.
            total: Number of all parts.
        """
        from pyrostoch.cli.screen import bars

        if self._quiet:
            return
        if not self._output.is_terminal:
            self._output.print(f"{done + 1}/{total} {part}, after {self.seconds:.0f} s", markup=False)
            return
        if self._progress is None:
            self._progress = bars(self._output)
            self._bar = self._progress.add_task("audit", total=total, note="")
            self._progress.start()
        self._progress.update(self._bar, completed=done, note=part)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

"""The commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrostoch.cli import options as opt
from pyrostoch.cli.bench import bench
from pyrostoch.cli.errors import DEBUG, guarded

__all__ = ["app", "main"]

app = typer.Typer(
    name="pyrostoch",
    help="Stochastic and Bayesian neural networks in Pyro.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Options that name the folder rather than the computation.
_PLACES = ("out", "name", "resume", "quiet")


def main() -> None:
    """Run the command line."""
    app(prog_name="pyrostoch")


def _version(asked: bool) -> None:
    if asked:
        from pyrostoch._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _top(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; so does the variable PYROSTOCH_DEBUG=1.", metavar="")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True, metavar="")
    ] = False,
) -> None:
    DEBUG.set(debug)


@app.command()
@guarded
def compare(
    ctx: typer.Context,
    data: opt.Data = None,
    data_dir: opt.DataDir = None,
    split: opt.Split = None,
    model: opt.Model = None,
    hidden: opt.Hidden = None,
    random: opt.Random = None,
    prior: opt.Prior = None,
    estimator: opt.Estimator = None,
    epochs: opt.Epochs = None,
    batch_size: opt.Batch = None,
    lr: opt.Lr = None,
    lr_alpha: opt.LrAlpha = None,
    init_log_alpha: opt.InitLogAlpha = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out: opt.Out = None,
    name: opt.Name = None,
    resume: opt.Resume = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train one network under each of the five guides, and set them side by side."""
    _carry_out("compare", ctx.params)


@app.command()
@guarded
def train(
    ctx: typer.Context,
    guide: opt.OneGuide = None,
    data: opt.Data = None,
    data_dir: opt.DataDir = None,
    split: opt.Split = None,
    model: opt.Model = None,
    hidden: opt.Hidden = None,
    random: opt.Random = None,
    prior: opt.Prior = None,
    estimator: opt.Estimator = None,
    epochs: opt.Epochs = None,
    batch_size: opt.Batch = None,
    lr: opt.Lr = None,
    lr_alpha: opt.LrAlpha = None,
    init_log_alpha: opt.InitLogAlpha = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out: opt.Out = None,
    name: opt.Name = None,
    resume: opt.Resume = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train a network under one guide."""
    _carry_out("train", ctx.params)


@app.command()
@guarded
def evaluate(
    run: opt.RunName,
    modes: Annotated[
        str, typer.Option("--modes", help="Ways to predict, by commas: mean, moments, mc:K.", metavar="MODES")
    ] = "mean,moments,mc:1,mc:20",
    guide: opt.SomeGuides = None,
    seed: opt.DrawSeed = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
) -> None:
    """Score the guides of a run on its test data, from their checkpoints."""
    from pyrostoch.cli.screen import console, scores
    from pyrostoch.runs import Run
    from pyrostoch.runs.scores import score
    from pyrostoch.runs.threads import suited_threads

    opened = Run.open(run)
    names = [mode.strip() for mode in modes.split(",") if mode.strip()]
    rows = []
    for name in opened.finished(guide or ()):
        party = opened.party(name, data_dir=data_dir, device=device)
        with suited_threads(party.model.net):
            found = score(party, names, seed=opened.config.seed if seed is None else seed)
        rows += [(name, row) for row in found.rows]
    console().print(scores(rows))


@app.command()
@guarded
def decompose(
    run: opt.RunName,
    samples: Annotated[int, typer.Option("--samples", help="Draws for the data term.", min=1)] = 10,
    guide: opt.SomeGuides = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
) -> None:
    """Split the ELBO of the guides of a run into its terms, site by site."""
    from pyrostoch.cli.screen import console
    from pyrostoch.runs import Run
    from pyrostoch.runs.names import GUIDES
    from pyrostoch.runs.scores import terms
    from pyrostoch.runs.threads import suited_threads

    opened, screen = Run.open(run), console()
    for name in opened.finished(guide or ()):
        party = opened.party(name, data_dir=data_dir, device=device)
        with suited_threads(party.model.net):
            found = terms(party, samples, seed=opened.config.seed)
        screen.print(f"[bold]{GUIDES[name].title}[/bold]")
        screen.print(f"{found}\n", markup=False, soft_wrap=True)


@app.command()
@guarded
def report(run: opt.RunName) -> None:
    """Write the report of a run again."""
    from pyrostoch.report import write
    from pyrostoch.runs import Run

    opened = Run.open(run)
    opened.finished()
    typer.echo(f"wrote {write(opened.record, opened.folder / 'report.html')}")


@app.command()
@guarded
def info(data_dir: opt.DataDir = None) -> None:
    """Show versions, devices, and which data sets are found where."""
    from pyrostoch.cli.inventory import data_sets, devices, versions
    from pyrostoch.cli.screen import console, facts

    screen = console()
    for title, lines in (("Versions", versions()), ("Devices", devices()), ("Data sets", data_sets(data_dir))):
        screen.print(f"[bold]{title}[/bold]")
        screen.print(facts(lines))
        screen.print()


@app.command()
@guarded
def download(
    name: Annotated[str, typer.Argument(help="mnist or fashion-mnist.", metavar="NAME")],
    data_dir: opt.DataDir = None,
    quiet: opt.NoBar = False,
) -> None:
    """Fetch a data set from its public mirrors, and check it."""
    from pyrostoch.data import download as fetch

    root = data_dir or os.environ.get("PYROSTOCH_DATA")
    if not root:
        raise ValueError("download: no data folder was given: say where to put the files with --data-dir DIR")
    typer.echo(f"{name} is in {fetch(name, root, progress=not quiet)}")


app.command()(bench)


def _carry_out(kind: str, params: dict[str, Any]) -> None:
    """Run `compare` or `train` as its options say, and print the result."""
    from pyrostoch.cli.screen import Screen, comparison, console
    from pyrostoch.report import write
    from pyrostoch.runs import execute
    from pyrostoch.runs.scores import lesson
    from pyrostoch.training.trainer import NonFiniteLossError

    given = {key: value for key, value in params.items() if value is not None and key not in _PLACES}
    command = " ".join([f"pyrostoch {kind}", *(f"--{key.replace('_', '-')} {value}" for key, value in given.items())])
    if "hidden" in given:
        given["hidden"] = _widths(given["hidden"])
    if "guide" in given:
        given["guides"] = (given.pop("guide"),)
    config, folder = _place(kind, given, params)
    screen = Screen(config, str(folder), params["quiet"])
    try:
        record = execute(config, folder, resume=params["resume"], command=command, watch=screen)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what is finished is kept in {folder}; go on with: pyrostoch {kind} --resume --out {folder}"
        ) from None
    except (FloatingPointError, OSError) as error:
        if isinstance(error, NonFiniteLossError):
            error.add_note(
                f"Of these, the command line has --lr (it was {config.lr:g}) and --lr-alpha ({config.lr_alpha:g}); "
                "clip and kl_warmup are arguments of pyrostoch.fit."
            )
        if screen.finished:
            error.add_note(f"Finished before, and kept in {folder}: {', '.join(screen.finished)}.")
        raise
    finally:
        screen.close()
    write(record, folder / "report.html")
    output = console()
    output.print(comparison(record))
    if not params["quiet"]:
        for sentence in lesson(record):
            output.print(sentence)
        output.print(f"Wrote {folder}: report.html, results.json, posterior.nc, a checkpoint for each guide.")


def _place(kind: str, given: dict[str, Any], params: dict[str, Any]) -> tuple[Any, Path]:
    """Settings and folder of a run; a resumed run's own settings stand where none are given."""
    from pyrostoch.cli.screen import console
    from pyrostoch.runs import fill_defaults
    from pyrostoch.runs.folder import claim, latest
    from pyrostoch.runs.reopen import recorded, unfinished

    resume, out = params["resume"], params["out"]
    if out is not None:
        folder = Path(out).expanduser()
        return fill_defaults(kind, {**recorded(folder, kind), **given} if resume else given), folder
    config = fill_defaults(kind, given)
    parts = [config.data.lower().replace(":", "-"), config.model, kind, *(config.guides if kind == "train" else ())]
    base = Path("runs") / (params["name"] or "-".join(parts))
    if not resume:
        return config, claim(base)
    folder = unfinished(base, config, given) or latest(base)
    if not params["quiet"] and folder.is_dir():
        console().print(f"Resuming {folder}.")
    return fill_defaults(kind, {**recorded(folder, kind), **given}), folder


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"hidden: expected whole numbers separated by commas, such as 100,100, got {text!r}") from None

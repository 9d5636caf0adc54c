"""The commands of the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrostoch.cli import options as opt
from pyrostoch.cli.audit import audit
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

#: Options that are not settings of the run.
_NOT_SETTINGS = ("out", "name", "resume", "quiet", "config")


def main() -> None:
    """Run the command line."""
    app(prog_name="pyrostoch")


def _print_version(requested: bool) -> None:
    if requested:
        from pyrostoch._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks, as with PYROSTOCH_DEBUG=1 in the environment.", metavar="")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True, metavar="")
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
    target: opt.Target = None,
    task: opt.Task = None,
    drop: opt.Drop = None,
    categorical: opt.Categorical = None,
    test: opt.Test = None,
    image_size: opt.ImageSize = None,
    model: opt.Model = None,
    model_args: opt.ModelArgs = None,
    hidden: opt.Hidden = None,
    random: opt.Random = None,
    prior: opt.Prior = None,
    stochastic: opt.Stochastic = None,
    rate_weight: opt.RateWeight = None,
    conditional: opt.Conditional = None,
    estimator: opt.Estimator = None,
    epochs: opt.Epochs = None,
    batch_size: opt.Batch = None,
    lr: opt.Lr = None,
    lr_alpha: opt.LrAlpha = None,
    init_log_alpha: opt.InitLogAlpha = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    config: opt.ConfigFile = None,
    out: opt.Out = None,
    name: opt.Name = None,
    resume: opt.Resume = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train one network under each of five guides, and compare them."""
    _train_guides("compare", ctx.params)


@app.command()
@guarded
def train(
    ctx: typer.Context,
    guide: opt.OneGuide = None,
    data: opt.Data = None,
    data_dir: opt.DataDir = None,
    split: opt.Split = None,
    target: opt.Target = None,
    task: opt.Task = None,
    drop: opt.Drop = None,
    categorical: opt.Categorical = None,
    test: opt.Test = None,
    image_size: opt.ImageSize = None,
    model: opt.Model = None,
    model_args: opt.ModelArgs = None,
    hidden: opt.Hidden = None,
    random: opt.Random = None,
    prior: opt.Prior = None,
    stochastic: opt.Stochastic = None,
    rate_weight: opt.RateWeight = None,
    conditional: opt.Conditional = None,
    estimator: opt.Estimator = None,
    epochs: opt.Epochs = None,
    batch_size: opt.Batch = None,
    lr: opt.Lr = None,
    lr_alpha: opt.LrAlpha = None,
    init_log_alpha: opt.InitLogAlpha = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    config: opt.ConfigFile = None,
    out: opt.Out = None,
    name: opt.Name = None,
    resume: opt.Resume = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train a network under one guide."""
    _train_guides("train", ctx.params)


@app.command()
@guarded
def evaluate(
    run: opt.RunName,
    modes: Annotated[
        str | None,
        typer.Option(
            "--modes",
            help="Predictive modes, separated by commas: mean, moments, mc:K. Default: mean,mc:1,mc:20, and moments "
            "where the guide has rules for them.",
            metavar="MODES",
        ),
    ] = None,
    guide: opt.SomeGuides = None,
    seed: opt.DrawSeed = None,
    labels: opt.Labels = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
) -> None:
    """Score the guides of a run on its test data, from their checkpoints."""
    from pyrostoch.cli.screen import console, score_table
    from pyrostoch.runs import SavedRun
    from pyrostoch.runs.registry import short_name
    from pyrostoch.runs.scores import modes_for, score
    from pyrostoch.runs.threads import limit_threads

    saved = SavedRun.open(run)
    named = None if modes is None else [mode.strip() for mode in modes.split(",") if mode.strip()]
    rows = []
    for name in saved.finished_guides(guide or ()):
        experiment = saved.load_guide(name, data_dir=data_dir, device=device)
        with limit_threads(experiment.model.net):
            draw_seed = saved.config.seed if seed is None else seed
            mode_names = modes_for(saved.config, experiment)[0] if named is None else named
            scores = score(experiment, mode_names, seed=draw_seed, labels=labels)
        rows += [(short_name(name), row) for row in scores.rows]
    console().print(score_table(rows))


@app.command()
@guarded
def predict(
    run: opt.RunName,
    rows: Annotated[
        Path,
        typer.Argument(help="CSV file with the columns of the training, or images, as the run has.", metavar="FILE"),
    ],
    out: Annotated[Path, typer.Option("--out", help="The CSV file to write.", metavar="FILE")],
    guide: opt.OneGuide = None,
    samples: Annotated[int, typer.Option("--samples", help="Draws that are averaged.", min=2)] = 100,
    seed: opt.DrawSeed = None,
    device: opt.Device = None,
) -> None:
    """Predict the rows of a CSV file, or images, by a network that was trained on such."""
    from pyrostoch.cli.screen import console
    from pyrostoch.data import ImageSchema
    from pyrostoch.runs import SavedRun
    from pyrostoch.runs.rows import predict_images, predict_rows
    from pyrostoch.runs.threads import limit_threads

    saved = SavedRun.open(run)
    chosen = saved.chosen_guide(guide)
    experiment, schema = saved.load_for_rows(chosen, device)
    with limit_threads(experiment.model.net):
        draw_seed = saved.config.seed if seed is None else seed
        unseen: dict[str, list[str]] = {}
        others = 0
        if isinstance(schema, ImageSchema):
            others = predict_images(experiment, schema, rows, out, samples=samples, seed=draw_seed)
        else:
            unseen = predict_rows(experiment, schema, rows, out, samples=samples, seed=draw_seed)
    output = console()
    if others:
        output.print(f"{others} file(s) that are no images were left out.", markup=False)
    for name, values in unseen.items():
        shown = ", ".join(values[:5]) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
        output.print(f"Column {name}: no training row had {shown}; they count as none of its categories.", markup=False)
    output.print(f"Wrote {out}, by guide {chosen}.", markup=False)


@app.command()
@guarded
def decompose(
    run: opt.RunName,
    samples: Annotated[int, typer.Option("--samples", help="Draws for the data term.", min=1)] = 10,
    guide: opt.SomeGuides = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
) -> None:
    """Show the terms of the ELBO of each guide of a run, site by site, and the noise of stochastic layers."""
    from pyrostoch.cli.screen import console
    from pyrostoch.prediction import activation_noise
    from pyrostoch.runs import SavedRun
    from pyrostoch.runs.registry import guide_kind
    from pyrostoch.runs.scores import elbo_terms
    from pyrostoch.runs.threads import limit_threads

    saved, output = SavedRun.open(run), console()
    for name in saved.finished_guides(guide or ()):
        experiment = saved.load_guide(name, data_dir=data_dir, device=device)
        with limit_threads(experiment.model.net):
            terms = elbo_terms(experiment, samples, seed=saved.config.seed)
        output.print(f"[bold]{guide_kind(name).title}[/bold]")
        output.print(f"{terms}\n", markup=False, soft_wrap=True)
        if saved.config.stochastic:
            noise = activation_noise(experiment.model, experiment.guide, experiment.train)
            output.print(f"{noise}\n", markup=False, soft_wrap=True)


@app.command()
@guarded
def report(run: opt.RunName) -> None:
    """Write the HTML report of a run again."""
    from pyrostoch.report import write
    from pyrostoch.runs import SavedRun
    from pyrostoch.runs.audits import with_audits

    saved = SavedRun.open(run)
    saved.finished_guides()  # raises an error if there are none
    typer.echo(f"wrote {write(with_audits(saved.folder, saved.record), saved.folder / 'report.html')}")


@app.command()
@guarded
def info(data_dir: opt.DataDir = None) -> None:
    """Show versions, devices, and where data sets are found."""
    from pyrostoch.cli.inventory import data_sets, devices, versions
    from pyrostoch.cli.screen import console, two_column_table

    output = console()
    for title, rows in (("Versions", versions()), ("Devices", devices()), ("Data sets", data_sets(data_dir))):
        output.print(f"[bold]{title}[/bold]")
        output.print(two_column_table(rows))
        output.print()


@app.command()
@guarded
def download(
    name: Annotated[str, typer.Argument(help="mnist or fashion-mnist.", metavar="NAME")],
    data_dir: opt.DataDir = None,
    quiet: opt.NoBar = False,
) -> None:
    """Download a data set from its public mirrors, and verify it."""
    from pyrostoch.data import download as download_files

    root = data_dir or os.environ.get("PYROSTOCH_DATA")
    if not root:
        raise ValueError(
            "download: no data folder was given: set it with --data-dir DIR or the environment variable PYROSTOCH_DATA"
        )
    typer.echo(f"{name} is in {download_files(name, root, progress=not quiet)}")


app.command()(audit)
app.command()(bench)


def _train_guides(kind: str, params: dict[str, Any]) -> None:
    """Execute the run of `compare` or `train`, write its report, and print the results."""
    from pyrostoch.cli.screen import RunScreen, comparison_table, console, print_whole
    from pyrostoch.report import write
    from pyrostoch.runs import execute
    from pyrostoch.runs.audits import with_audits
    from pyrostoch.runs.scores import result_notes
    from pyrostoch.runs.settings_file import read_settings
    from pyrostoch.training.trainer import NonFiniteLossError

    given = {key: value for key, value in params.items() if value is not None and key not in _NOT_SETTINGS}
    given["model_args"] = tuple(given.get("model_args") or ()) or None
    given = {key: value for key, value in given.items() if value is not None}
    shown = {"config": params["config"], **given} if params["config"] else given
    command = " ".join([f"pyrostoch {kind}", *_as_options(shown)])
    if "hidden" in given:
        given["hidden"] = _parse_widths(given["hidden"])
    if "guide" in given:
        given["guides"] = (given.pop("guide"),)
    if params["config"]:
        given = {**read_settings(params["config"], kind), **given}
    config, folder = _config_and_folder(kind, given, params)
    screen = RunScreen(config, str(folder), params["quiet"])
    try:
        record = execute(config, folder, resume=params["resume"], command=command, callback=screen)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the results so far are kept in {folder}; resume the run by: pyrostoch {kind} --resume --out {folder}"
        ) from None
    except (FloatingPointError, OSError) as error:
        if isinstance(error, NonFiniteLossError):
            error.add_note(
                f"Of these, the command line has --lr (it was {config.lr:g}) and --lr-alpha ({config.lr_alpha:g}); "
                "clip and kl_warmup are arguments of pyrostoch.fit."
            )
        if screen.finished:
            error.add_note(f"Already finished, and kept in {folder}: {', '.join(screen.finished)}.")
        raise
    finally:
        screen.close()
    write(with_audits(folder, record), folder / "report.html")
    output = console()
    print_whole(output, comparison_table(record))
    if not params["quiet"]:
        for sentence in result_notes(record):
            output.print(sentence)
        files = ["report.html", "results.json", "config.toml"] + ["posterior.nc"] * bool(record["model"]["random"])
        output.print(f"Wrote {folder}: {', '.join(files)}, a checkpoint for each guide.")


def _as_options(given: dict[str, Any]) -> list[str]:
    """The options as they were given."""
    found = []
    for key, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        found += [f"--{key.replace('_', '-').replace('model-args', 'model-arg')} {part}" for part in values]
    return found


def _config_and_folder(kind: str, given: dict[str, Any], params: dict[str, Any]) -> tuple[Any, Path]:
    """Settings and folder of a run; settings that are not given are those of the resumed run, else the defaults."""
    from pyrostoch.cli.screen import console
    from pyrostoch.runs import fill_defaults
    from pyrostoch.runs.folder import free_folder, latest_folder
    from pyrostoch.runs.saved_run import file_stem, find_unfinished, saved_settings

    resume, out = params["resume"], params["out"]
    if out is not None:
        folder = Path(out).expanduser()
        return fill_defaults(kind, {**saved_settings(folder, kind), **given} if resume else given), folder
    config = fill_defaults(kind, given)
    names = [Path(name).name.lower().replace(":", "-") for name in (config.data, config.model)]
    parts = [*names, kind, *(map(file_stem, config.guides) if kind == "train" else ())]
    base = Path("runs") / (params["name"] or "-".join(parts))
    if not resume:
        return config, free_folder(base)
    folder = find_unfinished(base, config, given) or latest_folder(base)
    if not params["quiet"] and folder.is_dir():
        console().print(f"Resuming {folder}.")
    return fill_defaults(kind, {**saved_settings(folder, kind), **given}), folder


def _parse_widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"hidden: expected whole numbers separated by commas, such as 100,100, got {text!r}") from None

"""The command that runs the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyrostoch.cli import options as opt
from pyrostoch.cli.errors import guarded

__all__ = ["bench"]


@guarded
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="variance, elbo, pruning, speed, moments, homeostasis, trident, layers, conditional, privacy, "
            "posteriors or rivals.",
            metavar="NAME",
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="quick (a check), cpu (minutes a network) or full (published recipe); default: cpu, or full on a GPU.",
            metavar="NAME",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, by commas.", metavar="SEEDS")] = "0",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", help="Only cases whose name matches this shell pattern; may be repeated.", metavar="PATTERN"
        ),
    ] = None,
    gradients: Annotated[
        bool,
        typer.Option("--gradients", help="Only trident's estimators of gradients: --only 'gradient/*'.", metavar=""),
    ] = False,
    data_dir: opt.DataDir = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of checkpoints, records and the table.", metavar="DIR")
    ] = Path("benchmarks"),
    device: Annotated[str, typer.Option("--device", help="auto (default), cpu or cuda.", metavar="NAME")] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="float32 (default), or bf16 to train under autocast.", metavar="NAME")
    ] = "float32",
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of torch on the CPU.", min=1)] = None,
    holdout: Annotated[
        bool,
        typer.Option(
            "--holdout", help="Score on a sixth of the training data, held out: for making choices.", metavar=""
        ),
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Try a setting of the recipe, such as lr=0.01; needs --holdout.", metavar="NAME=VALUE"
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace records of other settings or versions in OUT.", metavar=""),
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the cases and stop.", metavar="")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the final table only.", metavar="")] = False,
) -> None:
    """Run a benchmark: train its networks, score them, and write records and a table.

    What is done already is kept, what was cut short is gone on with. Records go to OUT/results, the table of all
    benchmarks to OUT/RESULTS.md.
    """
    import torch

    from pyrostoch._checks import check_choice
    from pyrostoch.bench import Setting, run
    from pyrostoch.bench.draw import write_figures
    from pyrostoch.bench.published import BENCHES
    from pyrostoch.bench.results import read_results
    from pyrostoch.bench.run import results_file, select_cases
    from pyrostoch.bench.tables import section, tables, write_page
    from pyrostoch.cli.bench_screen import BenchScreen
    from pyrostoch.runs.defaults import choose_device

    chosen = BENCHES[check_choice("bench", name, BENCHES)]
    where = choose_device(device)
    changes = _changes(change or [])
    if changes and not holdout:
        raise ValueError(
            "--set tries other settings than the recipe's: add --holdout, so that choices are not made on test data"
        )
    setting = Setting(
        preset=preset or ("full" if where.startswith("cuda") else "cpu"),
        out=out,
        device=where,
        precision=check_choice("precision", precision, ("float32", "bf16")),  # type: ignore[arg-type]
        holdout=holdout,
        changes=changes,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    only = [*(only or []), *(["gradient/*"] if gradients else [])]
    cases, skipped = select_cases(chosen, setting, only)
    screen = BenchScreen(chosen, setting, cases, skipped, _numbers(seeds), quiet and not show)
    screen.plan()
    if show:
        return
    try:
        run(chosen, setting, seeds=_numbers(seeds), only=only, data_dir=data_dir, replace=replace, callback=screen)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"finished trials are kept in {out}, and the one under way up to its last epoch; the same command goes on"
        ) from None
    finally:
        screen.close()
    entries = read_results(results_file(chosen, setting))
    if holdout:
        typer.echo(tables(chosen, entries, held_out=True))
        typer.echo(f"\nWrote {results_file(chosen, setting)}.")
        return
    typer.echo(section(chosen, entries))
    write_figures(chosen, setting)
    typer.echo(f"\nWrote {results_file(chosen, setting)} and {write_page(out, BENCHES.values())}.")


def _changes(texts: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, sign, value) in zip(texts, pairs, strict=True):
        if not (name and sign and value):
            raise ValueError(f"--set: expected NAME=VALUE, such as lr=0.01, got {text!r}")
    changes = [(name.strip(), value.strip()) for name, _, value in pairs]
    if len(dict(changes)) < len(changes):
        raise ValueError(f"--set: expected each setting once, got {', '.join(texts)}")
    return tuple(changes)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--seeds: expected whole numbers separated by commas, such as 0,1,2, got {text!r}") from None

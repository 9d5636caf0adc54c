"""Measures every network of the zoo and writes the table: `make zoo`."""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pyrostoch.guides import Additive

from . import ZOO
from .measure import MODES, Row, measure

_SEED = 1
_PAGE = Path(__file__).parent / "RESULTS.md"


def measured(name: str, draws: int, seed: int = _SEED, make: Callable[..., Any] = Additive) -> list[Row]:
    """The rows of one network; none where a package that it needs is missing.

    Args:
        name: Its name.
        draws: Number of draws, for each mode and for the whole networks.
        seed: Seed of its weights, its inputs and the draws.
        make: Makes the guide.
    """
    entry = ZOO[name]
    if entry.requires and importlib.util.find_spec(entry.requires) is None:
        return []
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other packages
        return measure(entry, draws, make)


def page(results: dict[str, list[Row]], draws: int) -> str:
    """The table as Markdown.

    Args:
        results: The rows of each network.
        draws: Number of draws.
    """
    head = [
        "# The zoo: treatments of random weights against draws of whole networks",
        "",
        f"`make zoo` made this page: {len(results)} of {len(ZOO)} networks, {draws} draws for each number, torch "
        f"{torch.__version__}. The variance ratio is the variance of all outputs under a mode, divided by that of "
        "draws of the whole network; the data term is the difference of the expected log-likelihood in nats; both with "
        "standard errors. `†` marks what promises no exact marginal distributions: `local` over the positions of a "
        "convolution, moments, batch normalization in training. `–` marks a mode that refuses the network by name.",
        "",
        f"| network | random | treatment under `local` | {' | '.join(f'`{mode}`' for mode in MODES)} |",
        f"| --- | --- | --- |{' --- |' * len(MODES)}",
    ]
    ratios, terms = [], []
    for name, rows in results.items():
        entry = ZOO[name]
        random = ", ".join(f"`{pattern}`" for pattern in entry.random) or "all"
        marks = ["" if row.is_exact and not entry.approximate else "†" for row in rows]
        cells = [
            "–" if row.refused else f"{row.ratio:.3f} ± {row.ratio_error:.3f}{mark}"
            for row, mark in zip(rows, marks, strict=True)
        ]
        ratios.append(f"| {name} | {random} | {'; '.join(rows[0].treatments)} | {' | '.join(cells)} |")
        cells = [
            "–" if row.refused else f"{row.data:+.2f} ± {row.data_error:.2f}{mark}"
            for row, mark in zip(rows, marks, strict=True)
        ]
        terms.append(f"| {name} | {' | '.join(cells)} |")
    between = [
        "",
        "## Difference of the data term, nats",
        "",
        f"| network | {' | '.join(f'`{mode}`' for mode in MODES)} |",
        f"| --- |{' --- |' * len(MODES)}",
    ]
    return "\n".join([*head, *ratios, *between, *terms, ""])


def main() -> None:
    """Measure all networks on all cores, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", default="", help="part of a name; nothing is written then")
    options = parser.parse_args()
    names = [name for name in ZOO if options.only in name]
    start = time.perf_counter()
    results: dict[str, list[Row]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,)) as pool:
        found = {name: pool.submit(measured, name, options.draws) for name in names}
        for name, future in found.items():
            rows = future.result()
            for row in rows:
                wrong = row.is_exact and not ZOO[name].approximate and not row.agrees
                print(f"{name:45} {row}{'   <- WRONG' if wrong else ''}", flush=True)
            if rows:
                results[name] = rows
    print(f"{len(results)} of {len(names)} networks in {time.perf_counter() - start:.0f} s")
    if not options.only:
        _PAGE.write_text(page(results, options.draws), encoding="utf-8")


if __name__ == "__main__":
    main()

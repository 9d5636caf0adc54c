"""The results page: its exact text, that it depends on files only, that data are named right; and the figures."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_bench_results import trial_record
from test_bench_trial import SHORT, bench, case, folder_of, run_one, setting

from pyrostoch.bench import Bench, draw, markdown
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.results import collect
from pyrostoch.bench.tables import section, tables, write_page
from pyrostoch.report import figures


def entry(name: str, metric: str, values: list[float | None], preset: str = "cpu", **changes: Any) -> dict[str, Any]:
    trials = [
        trial_record(seed, {metric: value}, case=name, preset=preset, **changes) for seed, value in enumerate(values)
    ]
    return collect(trials)[0]


PAGE = Bench(
    name="tiny",
    title="Tiny",
    cases=(
        case("net/one", title="First", recipes={"cpu": SHORT, "full": dataclasses.replace(SHORT, epochs=9)}),
        case("net/two", title="Second", recipes={"quick": SHORT, "cpu": SHORT, "full": SHORT}),
        case("net/three", title="Third", recipes={"cpu": SHORT}),
    ),
    columns=(("accuracy/mean", "mean, %"), ("elbo", "ELBO"), ("compression", "x")),
    published={"net/one": {"accuracy/mean": 0.113, "elbo": -9.4}, "net/three": {"elbo": 1.0}},
    notes=("A note.", "Another."),
    source="Somebody 2018",
)

ENTRIES = [
    entry("net/one", "accuracy/mean", [0.9925, 0.9935]),
    entry("net/one", "elbo", [-287.1, -293.5]),
    entry("net/two", "accuracy/mean", [0.1], seconds={"all": 61.6}, device="A card, bf16"),
    entry("net/two", "compression", [None]),
    entry("net/two", "elbo", [-0.5], "full"),
    entry("net/two", "elbo", [-0.25], "quick,epochs=7,lr=0.1", settings={"recipe": {"epochs": 7}}),
    entry("net/gone", "elbo", [-0.25], "quick"),
]

RAN = "torch 2.13.0, pyro-ppl 1.9.2, Python 3.11.7, pyrostoch 0.1.0, 2026-01-02"
SECTION = f"""\
## Tiny: `pyrostoch bench tiny`

### Preset `full`

|  | ELBO | seeds | epochs | training and scoring, s |
| --- | ---: | ---: | ---: | ---: |
| Second | -0.500 | 0 | 2 | 4 |

Mean ± standard error over the seeds; a single seed has none. Run on: cpu (one), {RAN}.

Recipes:

- net/two: lr 0.1.

### Preset `cpu`

|  | mean, % | ELBO | x | seeds | epochs | training and scoring, s |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| First | 99.30 ± 0.05 | -290.3 ± 3.2 |  | 0, 1 | 2 | 4 |
| *published* | *11.3* | *-9.4* |  |  |  |  |
| Second | 10.00 |  | - | 0 | 2 | 62 |

Mean ± standard error over the seeds; a single seed has none. -: not a finite number. Run on: cpu (one), {RAN}; \
A card, bf16, {RAN}.

Recipes:

- net/one, net/two: lr 0.1.

### Preset `quick,epochs=7,lr=0.1`

|  | ELBO | seeds | epochs | training and scoring, s |
| --- | ---: | ---: | ---: | ---: |
| Second | -0.250 | 0 | 7 | 4 |

Mean ± standard error over the seeds; a single seed has none. Run on: cpu (one), {RAN}.

Published: Somebody 2018.

A note.

Another.

![Tiny](figures/tiny-x.png)

Not run, preset `cpu`: net/three.

Not run, preset `full`: net/one."""


def test_section_word_for_word() -> None:
    text = section(PAGE, ENTRIES, ["figures/tiny-x.png"])
    assert text == SECTION
    start, end = SECTION.index("### Preset"), SECTION.index("\n\nPublished")
    assert tables(PAGE, ENTRIES) == SECTION[start:end]


def test_rows_of_different_kinds_stand_in_different_tables() -> None:
    entries = [
        entry("net/one", "accuracy/mean", [0.5]),
        entry("net/two", "compression", [3.0]),
        entry("net/three", "accuracy/mean", [0.25]),
    ]
    text = section(dataclasses.replace(PAGE, published={}), entries)
    heads = [line for line in text.splitlines() if line.startswith("|  |")]
    assert heads == [
        "|  | mean, % | seeds | epochs | training and scoring, s |",
        "|  | x | seeds | epochs | training and scoring, s |",
    ]
    first, second = (text.index(f"| {title} |") for title in ("First", "Third"))
    assert first < second < text.index(heads[1]) < text.index("| Second |")
    # A row that shares a column with both brings them together.
    joined = section(PAGE, [*entries, entry("net/one", "compression", [1.0])])
    assert joined.count("\n|  |") == 1


def test_rows_that_share_a_small_part_of_their_metrics_stand_apart() -> None:
    columns = tuple((name, name.upper()) for name in ("accuracy/mean", "elbo", "kl", "time", "gap", "draws"))
    page = dataclasses.replace(PAGE, published={}, columns=columns)
    kinds = {"net/one": ("accuracy/mean", "elbo", "kl", "time"), "net/two": ("time", "gap", "draws")}
    text = section(page, [entry(name, metric, [1.0]) for name, metrics in kinds.items() for metric in metrics])
    heads = [line for line in text.splitlines() if line.startswith("|  |")]
    assert len(heads) == 2 and all("| TIME |" in head for head in heads)


def test_nothing_run_is_said() -> None:
    text = section(PAGE, [])
    assert "|" not in text and text.startswith("## Tiny: `pyrostoch bench tiny`\n\nPublished: ")
    assert text.endswith("`cpu`: net/one; net/two; net/three.\n\nNot run, preset `full`: net/one; net/two.")


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("accuracy/mc:20", [0.99431], "99.43"),
        ("cost/additions", [1026755.0], "1,026,755"),
        ("cost/multiplications", [10.0, 10.0], "10"),
        ("error/alpha", [0.0075], "0.75"),
        ("sparsity/conv1", [1.0, 1.0], "100.00 ± 0.00"),
        ("ece/mc:20", [0.01234], "0.0123"),
        ("nll/mc:20", [0.0321, 0.0325], "0.0323 ± 0.0002"),
        ("elbo", [-9.4], "-9.40"),
        ("elbo", [-57.3], "-57.3"),
        ("elbo", [-287.4], "-287"),
        ("elbo", [-287.0, -288.0], "-287.50 ± 0.50"),
        ("elbo", [-2000.0, -4000.0], "-3000 ± 1000"),
        ("compression", [280.0, 280.0], "280 ± 0"),
        ("kl", [0.36], "0.360"),
    ],
)
def test_a_cell_has_the_places_it_deserves(metric: str, values: list[float], text: str) -> None:
    table = tables(dataclasses.replace(PAGE, columns=((metric, "x"),)), [entry("net/two", metric, list(values))])
    assert table.splitlines()[4].split(" | ")[1] == text


def test_page_is_made_again_from_its_files(tmp_path: Path) -> None:
    benches = [PAGE, dataclasses.replace(PAGE, name="other")]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "figures").mkdir()
    for name in ("tiny-x.png", "tinyx.png", "tiny-x.txt"):
        (tmp_path / "figures" / name).touch()
    path = write_page(tmp_path, benches)
    head = "# Benchmark results\n\nMade by `pyrostoch bench` from `results/*.json`; do not edit.\n\n"
    assert path.read_text(encoding="utf-8").startswith(f"{head}{SECTION}\n\n## Tiny: `pyrostoch bench other`\n\nPub")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "results", copy / "results")
    shutil.copytree(tmp_path / "figures", copy / "figures")
    assert write_page(copy, benches).read_bytes() == path.read_bytes() == markdown(tmp_path, benches).encode()


def test_page_of_the_jpeg_archive_never_says_cifar10_alone() -> None:
    variance = BENCHES["variance"]
    entries = [entry(one.name, "accuracy/mean", [0.5], "full") for one in variance.cases if "jpeg" in one.name]
    rows = [line for line in tables(variance, entries).splitlines() if "CIFAR" in line]
    assert len(rows) == len(entries) > 2
    assert all(re.search(r"CIFAR-10 \(JPEG q75\)", row) and not re.search(r"CIFAR-10(?! \(JPEG)", row) for row in rows)
    assert "*published*" not in tables(variance, entries)


def test_figure_of_the_training_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    original = figures.phase_transition
    monkeypatch.setattr(figures, "phase_transition", lambda curves, **words: drawn.append(curves) or original(curves))
    here = setting(tmp_path)
    follow = {"recipes": {"quick": SHORT}, "curve": True}
    small = bench(
        case("net/add", **follow), case("net/add/more", **follow), case("net/sub", **follow), case("net/dull")
    )
    assert draw.write_figures(small, here) == []
    run_one(tmp_path / "one", small.cases[0])
    assert draw.write_figures(small, setting(tmp_path / "one")) and drawn.pop()[0]["label"] == "add"
    for seed, which in ((3, 0), (2, 0), (2, 1), (2, 2), (2, 3), (1, 3)):
        run_one(tmp_path, small.cases[which], seed)
    paths = draw.write_figures(small, here)
    assert paths == [tmp_path / "figures" / "tiny-transition-quick.png"] and paths[0].stat().st_size > 5000
    assert [curve["label"] for curve in drawn[0]] == ["add", "add/more", "sub"]
    assert (
        drawn[0][0]["elbo"]
        == json.loads((folder_of(tmp_path, small.cases[0], 2) / "trial.json").read_text())["curve"]["elbo"]
    )
    first = paths[0].read_bytes()
    assert draw.write_figures(small, here)[0].read_bytes() == first
    assert draw.write_figures(small, setting(tmp_path, preset="cpu")) == []

"""`pyrostoch bench`: what it lists, runs, writes, displays and refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_bench_trial import SHORT, TINY, bench, case
from typer.testing import CliRunner

from pyrostoch.bench import read_results
from pyrostoch.bench.published import BENCHES, toy
from pyrostoch.bench.tables import markdown
from pyrostoch.cli import app, bench_screen
from pyrostoch.cli.bench_screen import BenchScreen

TOY = ("bench", "variance", "--only", "toy/gaussian", "--preset", "quick")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, with only the bundled data set, and with a benchmark that takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROSTOCH_DATA", raising=False)
    monkeypatch.delenv("PYROSTOCH_DEBUG", raising=False)
    tiny = bench(
        *(dataclasses.replace(one, recipes={"quick": SHORT, "cpu": SHORT}) for one in TINY.cases),
        case("net/gpu", recipes={"full": SHORT}, needs_gpu=("full",)),
        case("net/true", data_title="CIFAR-10", recipes={"cpu": SHORT}),
    )
    monkeypatch.setitem(BENCHES, "tiny", tiny)


def call(*args: str, code: int = 0) -> str:
    """Run a command; returns its output with all whitespace reduced to single spaces."""
    result = CliRunner().invoke(app, args)
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return " ".join(result.output.split())


def test_toy_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(toy.PRESETS["quick"], steps=60, samples=11)
    monkeypatch.setitem(toy.PRESETS, "quick", short)
    output = call(*TOY, "--device", "cpu")
    assert output.startswith("Variance networks: preset quick, seeds 0, cpu, float32 toy/gaussian: 400 epochs ")
    assert re.search(r"toy/gaussian, seed 0: accuracy/mean [\d.]+ %, accuracy/mc:1 [\d.]+ %; \d+ s", output)
    assert "Wrote benchmarks/results/variance.json and benchmarks/RESULTS.md." in output
    folder = Path("benchmarks")
    entries = {entry["metric"]: entry for entry in read_results(folder / "results" / "variance.json")}
    assert entries["accuracy/mean"]["value"] == pytest.approx(0.25, abs=0.15)
    assert entries["nll/mc:11"]["preset"] == "quick" and entries["nll/mc:11"]["stderr"] is None
    assert (folder / "figures" / "variance-toy-quick.png").stat().st_size > 5000
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert page == markdown(folder, BENCHES.values())
    once = f"{100 * entries['accuracy/mc:1']['value']:.2f}"
    row = f"| Toy problem of four classes, Gaussian variance layer: 100 to 2 | {once} |"
    assert row in page and "![Variance networks](figures/variance-toy-quick.png)" in page
    assert "Not run, preset `cpu`: toy/gaussian; lenet5/dense1/dropout;" in page
    assert "## Pruning by alpha and by magnitude: `pyrostoch bench pruning`" in page
    # A second call prints the same from the finished trial.
    monkeypatch.setattr(toy, "train", lambda *args, **options: pytest.fail("the trial was repeated"))
    assert call(*TOY, "--device", "cpu") == output
    assert (folder / "RESULTS.md").read_text(encoding="utf-8") == page


def test_network_from_end_to_end() -> None:
    output = call("bench", "tiny", "--only", "net/warm", "--seeds", "0,1", "--out", "there", "--device", "cpu")
    assert output.startswith(
        "Tiny: preset cpu, seeds 0, 1, cpu, float32 net/cold: 2 epochs net/warm: 2 epochs net/cold"
    )
    assert re.search(r"net/warm, seed 1: accuracy/mean [\d.]+ %, accuracy/mc:1 [\d.]+ %, ELBO -[\d,.]+; \d+ s", output)
    assert re.search(r"\| net/warm \| [\d.]+ ± [\d.]+ \| -[\d.]+ ± [\d.]+ \| 0, 1 \| 2 \| \d+ \|", output)
    assert "Not run, preset `cpu`: net/true. Not run, preset `full`: net/gpu." in output
    assert Path("there/figures/tiny-transition-cpu.png").is_file()
    assert "## Tiny: `pyrostoch bench tiny`" in Path("there/RESULTS.md").read_text(encoding="utf-8")
    # The table has all seeds and cases, whichever call ran them.
    output = call("bench", "tiny", "--only", "net/cold", "--seeds", "2", "--out", "there", "--device", "cpu", "-q")
    assert output.startswith("## Tiny") and "| net/warm |" in output and "| 0, 1, 2 |" in output


def test_choices_are_made_on_held_out_data() -> None:
    settings = ("--holdout", "--set", "lr=0.02", "--set", "epochs=1", "--precision", "bf16", "--threads", "1")
    output = call("bench", "tiny", "--only", "net/cold", *settings, "--device", "cpu")
    assert "preset cpu,lr=0.02,epochs=1, seeds 0, cpu, bf16, on held-out training data net/cold: 1 epochs" in output
    assert "### Preset `cpu,lr=0.02,epochs=1`" in output and "| 0 | 1 |" in output
    assert "Not run" not in output and "ublished" not in output
    assert "scored on held-out training data" in output and "Wrote benchmarks/selection/tiny.json." in output
    assert [path.name for path in Path("benchmarks").iterdir()] == ["selection"]
    record = json.loads(next(Path("benchmarks").glob("selection/tiny/*/*/seed0/trial.json")).read_text())
    assert (record["settings"]["precision"], record["settings"]["recipe"]["lr"]) == ("bf16", 0.02)


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_list_runs_nothing(quiet: tuple[str, ...]) -> None:
    output = call("bench", "tiny", "--list", "--preset", "full", "--device", "cpu", *quiet)
    assert output == "Tiny: preset full, seeds 0, cpu, float32 net/gpu: not run, needs a GPU (or --only net/gpu)"
    output = call("bench", "variance", "--list", "--preset", "full", "--device", "cpu")
    assert "toy/gaussian: 21000 epochs lenet5/dense1/gaussian: 200 epochs lenet5/dense1/dropout: not run" in output
    assert "vgg/cifar10/gaussian: not run, needs a GPU (or --only vgg/cifar10/gaussian)" in output
    output = call("bench", "elbo", "--list", "--device", "cpu", "--only", "*/warm", "--seeds", "3,1")
    assert output.split(":", 1)[1].startswith(" preset cpu, seeds 3, 1, cpu, float32 lenet5/dense1/layer-wise: ")
    assert output.count(" epochs") == 4
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("varianc",),
            "bench: expected one of 'variance', 'elbo', 'pruning', 'speed', 'moments', 'homeostasis', 'trident', "
            "'layers', ... (5 more), got 'varianc'; did you mean 'var",
        ),
        (("tiny", "--preset", "fast"), "preset: expected one of 'quick', 'cpu', 'full', got 'fast'"),
        (("tiny", "--preset", "fast", "--list"), "preset: expected one of"),
        (("tiny", "--only", "net/x*"), "bench tiny: 'net/x*' matches no case of preset 'cpu', which has 'net/cold', "),
        (
            ("tiny", "--seeds", "0,one"),
            "--seeds: expected whole numbers separated by commas, such as 0,1,2, got '0,one'",
        ),
        (("tiny", "--seeds", "0;1"), "--seeds: expected whole numbers"),
        (("tiny", "--seeds", ""), "seeds: expected whole numbers from 0 up, each once, got []"),
        (("tiny", "--seeds", "1,1"), "each once, got [1, 1]"),
        (("tiny", "--seeds=-1"), "each once, got [-1]"),
        (("tiny", "--set", "lr=1"), "--set tries other settings than the recipe's: add --holdout, so that choices"),
        (("tiny", "--holdout", "--set", "lr"), "--set: expected NAME=VALUE, such as lr=0.01, got 'lr'"),
        (("tiny", "--holdout", "--set", "=1"), "--set: expected NAME=VALUE"),
        (("tiny", "--holdout", "--set", "lr=1", "--set", "lr=2"), "--set: expected each setting once, got lr=1, lr=2"),
        (("tiny", "--holdout", "--set", "rate=1"), "recipe: no setting 'rate'; it has 'epochs', 'batch_size', 'lr', "),
        (("tiny", "--holdout", "--set", "rate=1", "-q"), "recipe: no setting 'rate'"),
        (("tiny", "--device", "tpu"), "device: expected one of"),
        (("tiny", "--precision", "half"), "precision: expected one of 'float32', 'bf16', got 'half'"),
        (
            ("tiny", "--only", "net/true"),
            "net/true is for the data set 'CIFAR-10', but the data folder holds 'Handwritten digits",
        ),
        (
            ("tiny", "--preset", "full"),
            "preset 'full' has no case for device 'cpu'; to run one nevertheless, give its full name",
        ),
        (
            ("variance", "--holdout", "--only", "toy*"),
            "'toy*' matches no case of preset 'cpu' that has data to hold out, which",
        ),
    ],
)
def test_wrong_input_is_explained(args: tuple[str, ...], message: str) -> None:
    device = () if "--device" in args else ("--device", "cpu")
    output = call("bench", *args, *device, code=2)
    assert output.startswith("error: ") or " error: " in output
    assert message in output and "Traceback" not in output
    assert list(Path().iterdir()) == []


def test_missing_data_are_reported_once_and_before_training() -> None:
    output = call("bench", "variance", "--preset", "quick", "--device", "cpu", code=2)
    assert output.count("error: ") == 1 and "error: MNIST was not found." in output
    assert "Give the data folder with --data-dir DIR" in output and "Traceback" not in output
    assert "It is needed for lenet5/dense1/dropout; to run other cases only, name them with --only." in output
    assert "toy/gaussian, seed 0" not in output and list(Path().iterdir()) == []


def test_case_for_other_data_is_skipped() -> None:
    output = call("bench", "tiny", "--only", "net/[ct]*", "--device", "cpu", "--out", "there")
    assert "net/true: not run, is for CIFAR-10, and the data folder holds another one net/cold, seed 0: " in output
    assert "Not run, preset `cpu`: net/warm; net/true." in output


def test_ctrl_c_says_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Any, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    args = ("bench", "tiny", "--only", "net/cold", "--device", "cpu", "--out", "mine")
    with monkeypatch.context() as patch:
        patch.setattr(BenchScreen, "on_epoch_end", interrupt)
        output = call(*args, code=130)
    message = (
        "interrupted: finished trials are kept in mine, and the one under way up to its last epoch; the same command"
    )
    assert message in output and "Traceback" not in output
    assert not Path("mine/results").exists() and len(list(Path("mine/runs").glob("**/checkpoint.safetensors"))) == 1
    assert "net/cold, seed 0: accuracy/mean" in call(*args)


def test_help_names_every_benchmark() -> None:
    output = call("bench", "--help")
    words = (
        "--preset",
        "--seeds",
        "--only",
        "--data-dir",
        "--out",
        "--device",
        "--precision",
        "--threads",
        "--holdout",
    )
    for word in (*words, "--set", "--list", "--quiet", "Print the final table only."):
        assert word in output
    for name in BENCHES.keys() - {"tiny"}:
        assert name in output
    assert "bench" in call("--help")


def test_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    call("bench", "tiny", "--list", "--threads", "3", "--device", "cpu")
    assert asked == [3]
    assert "Invalid value for '--threads'" in call("bench", "tiny", "--threads", "0", code=2)


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=110, highlight=False)
    monkeypatch.setattr(bench_screen, "console", lambda: terminal)
    call("bench", "tiny", "--only", "net/cold", "--seeds", "0,1", "--device", "cpu")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    for seed in (0, 1):
        assert re.search(rf"net/cold, seed {seed} [━╸╺ ]+ [012]/2 0:00:\d\d left ", text)
    assert re.search(r"left \S+ ELBO -[\d,.]+", text)
    assert "net/cold, seed 1: accuracy/mean" in text


def test_score_that_is_not_finite_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = bench(case("net/odd", measure=lambda trained: {"compression": float("inf"), "elbo": float("nan")}))
    monkeypatch.setitem(BENCHES, "tiny", odd)
    output = call("bench", "tiny", "--device", "cpu")
    assert re.search(r"\| net/odd \| [\d.]+ \| - \| - \| 0 \| 2 \|", output)
    assert "-: not a finite number." in output

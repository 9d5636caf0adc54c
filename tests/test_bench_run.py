"""Which trials of a benchmark are run, in which order and on which data, and what is refused before training."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench_trial import SHORT, TINY, Recipe, bench, case, digits, setting

from pyrostoch.bench import Case, run
from pyrostoch.bench.run import RunCallback, finished_trials, select_cases
from pyrostoch.data import DataNotFoundError

# The name in the package is that of the function.
run_module = sys.modules["pyrostoch.bench.run"]

FULL_ONLY = {"full": SHORT}
CHOICE = bench(
    case("a/base", needs_gpu=("full",), recipes={"cpu": SHORT, "full": SHORT}),
    case("a/next", start="a/base", needs_gpu=("full",), recipes={"cpu": SHORT, "full": SHORT}),
    case("a/last", start="a/next", recipes={"cpu": SHORT}),
    case("b/own", data=None, custom_trial=lambda context: {}, recipes={"cpu": SHORT, "full": SHORT}),
    case("b/full", recipes=FULL_ONLY),
)


@pytest.mark.parametrize(
    ("changes", "only", "chosen", "skipped"),
    [
        ({"preset": "cpu"}, (), "a/base a/next a/last b/own", ""),
        ({"preset": "cpu", "holdout": True}, (), "a/base a/next a/last", ""),
        ({"preset": "cpu"}, ("a/last",), "a/base a/next a/last", ""),
        ({"preset": "cpu"}, ("b/*", "a/next"), "a/base a/next b/own", ""),
        ({"preset": "cpu"}, ("*/n*",), "a/base a/next", ""),
        ({"preset": "full"}, (), "b/own b/full", "a/base a/next"),
        ({"preset": "full"}, ("a/*",), "", "a/base a/next"),
        ({"preset": "full"}, ("a/next",), "a/base a/next", ""),
        ({"preset": "full"}, ("a/base", "*"), "a/base b/own b/full", "a/next"),
        ({"preset": "full", "device": "cuda"}, (), "a/base a/next b/own b/full", ""),
        ({"preset": "full", "device": "cuda:0"}, ("a/n*",), "a/base a/next", ""),
    ],
)
def test_select_cases(
    changes: dict[str, Any], only: tuple[str, ...], chosen: str, skipped: str, tmp_path: Path
) -> None:
    found = select_cases(CHOICE, setting(tmp_path, **changes), only)
    assert [" ".join(case.name for case in cases) for cases in found] == [chosen, skipped]


@pytest.mark.parametrize(
    ("changes", "only", "seeds", "message"),
    [
        (
            {"preset": "cpu"},
            ("b/full",),
            (0,),
            "bench tiny: 'b/full' matches no case of preset 'cpu', which has 'a/base'",
        ),
        (
            {"preset": "cpu", "holdout": True},
            ("b/*",),
            (0,),
            "'b/*' matches no case of preset 'cpu' that has data to hold out, which has 'a/base'",
        ),
        ({"preset": "fast"}, (), (0,), "preset: expected one of 'quick', 'cpu', 'full', got 'fast'"),
        (
            {"preset": "full"},
            ("a/*",),
            (0,),
            "preset 'full' has no case for device 'cpu'; to run one nevertheless, give its full name with --only",
        ),
        ({"preset": "cpu"}, (), (), "seeds: expected whole numbers from 0 up, each once, got []"),
        ({"preset": "cpu"}, (), (1, 1), "got [1, 1]"),
        ({"preset": "cpu"}, (), (0, -1), "got [0, -1]"),
        ({"preset": "cpu", "changes": (("rate", "1"),)}, (), (0,), "recipe: no setting 'rate'; it has 'epochs', "),
        ({"preset": "cpu", "changes": (("lr", "fast"),)}, (), (0,), "recipe: lr: expected a number, got 'fast'"),
        ({"preset": "cpu", "changes": (("epochs", "1.5"),)}, (), (0,), "recipe: epochs: expected a whole number, got"),
        ({"preset": "cpu", "changes": (("schedule", "../x"),)}, (), (0,), "recipe: schedule: expected one of"),
        ({"preset": "cpu", "changes": (("estimator", "lokal"),)}, (), (0,), "did you mean 'local'?"),
    ],
)
def test_run_refuses_by_name(changes: Any, only: Any, seeds: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        run(CHOICE, setting(tmp_path, **changes), seeds=seeds, only=only)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": "1e-2", "epochs": "7"}, {"lr": 0.01, "epochs": 7}),
        ({"kl_warmup": "2", "schedule": "cosine"}, {"kl_warmup": 2.0, "schedule": "cosine"}),
        ({"init_log_alpha": "-3", "estimator": "flipout", "lr_alpha": ".5"}, {"init_log_alpha": -3.0, "lr_alpha": 0.5}),
        ({"batch_size": "50", "examples": "10"}, {"batch_size": 50, "examples": 10}),
        ({}, {}),
    ],
)
def test_changed_recipe(settings: dict[str, str], expected: dict[str, Any]) -> None:
    changed = Recipe(epochs=5).changed(settings)
    for name, value in vars(changed).items():
        wanted = expected.get(name, settings.get(name, getattr(Recipe(epochs=5), name)))
        assert value == wanted and type(value) is type(wanted), name


class CallLog(RunCallback):
    """Remembers the calls of its methods."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_case_skipped(self, case: Case) -> None:
        self.calls.append(("skipped", case.name))

    def on_trial_start(self, case: Case, seed: int, epochs: int) -> None:
        self.calls.append(("start", case.name, seed, epochs))

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        self.calls.append(row["epoch"])

    def on_trial_end(self, record: dict[str, Any]) -> None:
        self.calls.append(("end", record["case"], record["seed"]))


def test_run_goes_seed_by_seed_and_runs_starting_cases_first(tmp_path: Path) -> None:
    log = CallLog()
    small = bench(case("net/cold"), dataclasses.replace(TINY.cases[1], elbo_draws=0))
    records = run(small, setting(tmp_path), seeds=(1, 0), only=("net/warm",), callback=log)
    assert [(record["case"], record["seed"]) for record in records] == [
        *(("net/cold", 1), ("net/warm", 1)),
        *(("net/cold", 0), ("net/warm", 0)),
    ]
    calls: list[Any] = [("start", "net/cold", 1, 2), 1, 2, ("end", "net/cold", 1), ("start", "net/warm", 1, 2)]
    assert log.calls[: len(calls) + 3] == [*calls, 1, 2, ("end", "net/warm", 1)]
    assert run(small, setting(tmp_path), seeds=(0, 1), only=("net/warm",)) == [*records[2:], *records[:2]]
    RunCallback().on_case_skipped(small.cases[0])


def test_holdout_never_uses_the_test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unusable = dataclasses.replace(
        digits(), x_test=torch.full_like(digits().x_test, torch.nan), y_test=torch.full_like(digits().y_test, -1)
    )
    monkeypatch.setattr(run_module, "load", lambda name, folder: unusable)
    small = bench(
        case(
            "net/cold", modes=("mean", "mc:20", "mc:100"), recipes={"quick": dataclasses.replace(SHORT, examples=None)}
        )
    )
    with pytest.raises(ValueError, match="NaN"):
        run(small, setting(tmp_path))
    record = run(small, setting(tmp_path, holdout=True))[0]
    assert record["settings"]["data"] == "Handwritten digits (UCI), held-out training part"
    assert record["settings"]["train"] == 1437 - round(1437 / 6)
    # No mode of more than 20 samples.
    assert {name.partition("/")[2] for name in record["metrics"]} == {"mean", "mc:20"}
    held = digits().holdout(1 / 6, seed=0)
    assert len(held.x_test) == 240 and round(60_000 / 6) == 10_000
    share = record["metrics"]["accuracy/mean"] * len(held.x_test)
    assert share == pytest.approx(round(share), abs=1e-6) and 0 < share < 240


def test_cases_for_other_data_of_the_same_name_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = dataclasses.replace(digits(), title="CIFAR-10 (JPEG q75)")
    monkeypatch.setattr(run_module, "load", lambda name, folder: jpeg)
    small = bench(case("net/true", data_title="CIFAR-10"), case("net/jpeg", data_title="CIFAR-10 (JPEG q75)"))
    for holdout in (False, True):
        log = CallLog()
        records = run(small, setting(tmp_path, holdout=holdout), callback=log)
        assert [record["case"] for record in records] == ["net/jpeg"]
        assert log.calls[0] == ("skipped", "net/true")
    for only in (("net/true",), ("net/t*",), ("net/jpeg", "net/true")):
        with pytest.raises(
            ValueError,
            match=re.escape("net/true is for the data set 'CIFAR-10', but the data folder holds 'CIFAR-10 (J"),
        ):
            run(small, setting(tmp_path), only=only)
    assert "net/true" not in {record["case"] for record in finished_trials(small, setting(tmp_path))}
    assert not (tmp_path / "runs" / "tiny" / "quick" / "net-true").exists()


def test_missing_data_are_reported_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYROSTOCH_DATA", raising=False)
    small = bench(case("net/cold"), case("net/mnist", data="mnist"))
    with pytest.raises(DataNotFoundError) as error:
        run(small, setting(tmp_path))
    assert error.value.__notes__ == ["It is needed for net/mnist; to run other cases only, name them with --only."]
    assert list(tmp_path.iterdir()) == []
    assert run(small, setting(tmp_path), only=("net/cold",))

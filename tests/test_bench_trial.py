"""Trials of a benchmark: their records, that finished ones are not repeated, what is refused, and warm starts."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyrostoch.bench import Bench, Case, Recipe, Setting, files, trial
from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.trial import run_trial, trial_folder
from pyrostoch.data import DataSplit, load
from pyrostoch.guides import Additive, LayerwiseAlpha, WeightwiseAlpha
from pyrostoch.model import BayesianModel
from pyrostoch.prediction import decompose
from pyrostoch.prediction.readouts import seeded
from pyrostoch.priors import LogUniform, Normal
from pyrostoch.safefile import read_file

EPOCHS = 5
RECIPE = Recipe(epochs=EPOCHS, batch_size=80, lr=0.01, lr_alpha=0.1, init_log_alpha=-2.0, examples=160)
SHORT = dataclasses.replace(RECIPE, epochs=2)


def network(split: DataSplit) -> nn.Module:
    channels, height, width = split.input_shape
    layers: dict[str, nn.Module] = {"conv": nn.Conv2d(channels, 4, 3), "bn": nn.BatchNorm2d(4), "act": nn.ReLU()}
    layers |= {"flatten": nn.Flatten(), "dense": nn.Linear(4 * (height - 2) * (width - 2), 8), "drop": nn.Dropout(0.2)}
    return nn.Sequential(OrderedDict(layers, head=nn.Linear(8, split.num_classes or 1)))


def layerwise(model: BayesianModel, recipe: Recipe, origin: nn.Module | None) -> nn.Module:
    return LayerwiseAlpha(model, init_log_alpha=recipe.init_log_alpha)


def additive(model: BayesianModel, recipe: Recipe, origin: nn.Module | None) -> nn.Module:
    return Additive(model, init_scale=recipe.init_scale)


def weightwise(model: BayesianModel, recipe: Recipe, origin: Any) -> nn.Module:
    return WeightwiseAlpha(
        model,
        init_loc=lambda site: distribution(origin, site.name).mean,
        init_log_alpha=lambda site: distribution(origin, site.name).log_alpha,
    )


def distribution(guide: Any, site: str) -> Any:
    return guide.site_distribution(site).base_dist


def measure(trained: trial.Trained) -> Mapping[str, float]:
    return {"sum": distribution(trained.guide, "dense.weight").mean.sum().item(), "draw": torch.rand(()).item()}


def case(name: str, guide: Any = layerwise, **options: Any) -> Case:
    recipes = dict.fromkeys(("quick", "cpu"), SHORT)
    settings: dict[str, Any] = {"title": name, "data": "digits", "network": network, "guide": guide}
    settings |= {"recipes": recipes, "random": {"dense.weight": LogUniform()}, "modes": ("mc:3", "mean", "mc:1")}
    return Case(name=name, **settings | options)


FULL = case("net/cold", recipes=dict.fromkeys(("quick", "cpu"), RECIPE), curve=True, elbo_draws=2, measure=measure)


def bench(*cases: Case) -> Bench:
    columns = (("accuracy/mean", "mean, %"), ("elbo", "ELBO"), ("compression", "x"))
    return Bench("tiny", "Tiny", cases, columns, published={}, notes=("A note.",), source="nowhere")


TINY = bench(FULL, case("net/warm", weightwise, start="net/cold", elbo_draws=2))
QUICK = Setting("quick", Path())


@cache
def digits() -> DataSplit:
    return load("digits")


def setting(out: Path, **changes: Any) -> Setting:
    return dataclasses.replace(QUICK, out=out, **changes)


def run_one(out: Path, one: Case = FULL, seed: int = 0, progress: Any = None, **changes: Any) -> dict[str, Any]:
    """Run a trial of a case on the digits."""
    of_bench = TINY if one in TINY.cases else bench(one)
    return run_trial(of_bench, one, seed, setting(out, **changes), digits(), progress)


def folder_of(out: Path, one: Case = FULL, seed: int = 0) -> Path:
    return trial_folder(TINY, one, seed, setting(out))


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record in which two runs of the same trial must agree."""
    metrics = {name: value for name, value in record["metrics"].items() if not name.startswith("seconds/")}
    return {**record, "metrics": metrics, "seconds": sorted(record["seconds"]), "date": ""}


def interrupt_at(epoch: int) -> Callable[[dict[str, Any]], None]:
    """A progress callback that acts like Ctrl-C after an epoch."""

    def progress(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return progress


def fail_on_constant(constant: str) -> None:
    pytest.fail(f"{constant} is not JSON")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A trial that was not interrupted: its folder and its record."""
    out = tmp_path_factory.mktemp("whole")
    return out, run_one(out)


def test_record_has_settings_scores_and_machine(whole: tuple[Path, dict[str, Any]]) -> None:
    out, record = whole
    assert record == json.loads((folder_of(out) / "trial.json").read_text())
    head = [record[name] for name in ("bench", "case", "preset", "seed")]
    assert head == ["tiny", "net/cold", "quick", 0]
    assert record["settings"] == {
        "data": "Handwritten digits (UCI)",
        "train": 1437,
        "random": {"dense.weight": "LogUniform()"},
        "start": None,
        "recipe": {**vars(RECIPE)},
        "precision": "float32",
    }
    scores = [f"{score}/{mode}" for mode in ("mean", "mc:1", "mc:3") for score in ("accuracy", "nll", "brier", "ece")]
    assert {*scores, "elbo", "data", "kl", "data/monte-carlo-error", "sum", "draw"} == without_times(record)[
        "metrics"
    ].keys()
    metrics = record["metrics"]
    assert metrics["elbo"] == pytest.approx(metrics["data"] - metrics["kl"])
    assert record["curve"]["epoch"] == [1, 2, 3, 4, 5]
    scored = [value is not None for value in record["curve"]["accuracy/mc:5"]]
    assert scored == [value is not None for value in record["curve"]["log_alpha"]] == [True, True, False, True, False]
    assert record["seconds"].keys() == {"training", "scoring"} and record["seconds"]["training"] > 0
    assert record["versions"].keys() == {"pyrostoch", "torch", "pyro", "python"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"].startswith("cpu (") and record["device"].endswith("1 thread), float32")
    assert sorted(path.name for path in folder_of(out).iterdir()) == [
        "checkpoint.safetensors",
        "curve.jsonl",
        "trial.json",
    ]


def test_finished_trial_is_not_repeated(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record = whole
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder_of(out).iterdir()}
    for place in ("fit", "_assemble", "write_json"):
        monkeypatch.setattr(trial, place, lambda *args, **options: pytest.fail("the trial was repeated"))
    assert run_one(out) == record
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder_of(out).iterdir()} == before


def test_seeds_and_variants_have_separate_folders(tmp_path: Path) -> None:
    small = case("net/cold")
    records = [run_one(tmp_path, small, seed) for seed in (0, 1)]
    records.append(run_one(tmp_path, small, holdout=True))
    records.append(run_one(tmp_path, small, holdout=True, changes=(("lr", "0.02"), ("epochs", "1"))))
    assert len({record["metrics"]["nll/mc:3"] for record in records}) > 2
    assert [record["preset"] for record in records] == ["quick"] * 3 + ["quick,lr=0.02,epochs=1"]
    assert records[3]["settings"]["recipe"] == {**vars(SHORT), "lr": 0.02, "epochs": 1}
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/trial.json")) == [
        "runs/tiny/quick/net-cold/seed0/trial.json",
        "runs/tiny/quick/net-cold/seed1/trial.json",
        "selection/tiny/quick,lr=0.02,epochs=1/net-cold/seed0/trial.json",
        "selection/tiny/quick/net-cold/seed0/trial.json",
    ]


@pytest.mark.parametrize("name", BENCHES)
def test_no_two_cases_share_a_folder(name: str) -> None:
    folders = {trial_folder(BENCHES[name], one, 0, QUICK) for one in BENCHES[name].cases}
    assert len(folders) == len(BENCHES[name].cases)


# Changes of the case, changes of the setting, and a part of the message.
OTHER_SETTINGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "rate": ({"recipes": {"quick": dataclasses.replace(RECIPE, lr=0.5)}}, {}, "recipe.lr was 0.01 and is now 0.5;"),
    "warm-up": (
        {"recipes": {"quick": dataclasses.replace(RECIPE, kl_warmup=(1.0, 2.0))}},
        {},
        "recipe.kl_warmup was 0.0 and is now [1.0, 2.0];",
    ),
    "precision": ({}, {"precision": "bf16"}, "precision was 'float32' and is now 'bf16';"),
    "prior": (
        {"random": {"dense.weight": Normal(0.0, 1.0)}},
        {},
        "random.dense.weight was 'LogUniform()' and is now 'Normal(",
    ),
    "layer": ({"random": {"head.weight": LogUniform()}}, {}, "random.head.weight was None and is now 'LogUniform()';"),
    "start": ({"start": "net/warm"}, {}, "start was None and is now 'net/warm';"),
}


@pytest.mark.parametrize("other", OTHER_SETTINGS)
def test_other_settings_are_refused_by_name(other: str, whole: tuple[Path, dict[str, Any]]) -> None:
    changes, options, message = OTHER_SETTINGS[other]
    before = (folder_of(whole[0]) / "trial.json").read_bytes()
    with pytest.raises(ValueError, match="holds a trial of other settings: ") as error:
        run_one(whole[0], dataclasses.replace(FULL, **changes), **options)
    assert message in str(error.value) and "remove that folder, or give another --out" in str(error.value)
    assert "batch_size" not in str(error.value)
    assert (folder_of(whole[0]) / "trial.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"settings": 3}', "\x00" * 40])
def test_damaged_record_is_reported_and_its_checkpoint_still_used(
    content: str, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = folder_of(tmp_path) / "trial.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="remove the file and rerun the command that wrote it") as error:
        run_one(tmp_path)
    assert str(path) in str(error.value)
    path.unlink()
    if content == "{":  # one of the contents is enough
        record = run_one(tmp_path, progress=lambda row: pytest.fail("the network was trained again"))
        assert without_times(record) == without_times(whole[1])


@pytest.mark.parametrize(
    ("place", "content", "error"),
    [("fsync", {"a": 2}, OSError), ("replace", {"a": 2}, OSError), ("getpid", {"a": object()}, TypeError)],
)
def test_failed_write_keeps_the_old_file(
    place: str, content: Any, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "folder" / "file.json"
    files.write_json(path, {"a": [1.5, (2, "ü")]})
    monkeypatch.setattr(os, place, fail)
    with pytest.raises(error):
        files.write_json(path, content)
    assert files.read_json(path) == {"a": [1.5, [2, "ü"]]}
    assert list(path.parent.iterdir()) == [path]


def test_scores_that_are_not_finite_become_null(tmp_path: Path) -> None:
    scores = {"compression": float("inf"), "odd": float("nan"), "even": np.float64(2.0)}
    record = run_one(tmp_path, case("net/odd", measure=lambda trained: scores))
    assert [record["metrics"][name] for name in scores] == [None, None, 2.0]
    text = next(tmp_path.glob("**/trial.json")).read_text()
    assert json.loads(text, parse_constant=fail_on_constant) == record == run_one(tmp_path, case("net/odd"))


def test_warm_start_is_the_trained_network(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    warm = TINY.case("net/warm")
    started = trial._assemble(TINY, warm, 0, setting(tmp_path), digits(), torch.device("cpu"))
    tensors = read_file(folder_of(tmp_path) / "checkpoint.safetensors")[0]
    for name, value in started.model.state_dict().items():
        assert torch.equal(value, tensors[f"model.{name}"]), name
    assert tensors["model.net.bn.running_mean"].abs().max() > 0 and tensors["model.net.bn.num_batches_tracked"] == 10
    cold = trial._assemble(TINY, FULL, 0, setting(tmp_path), digits(), torch.device("cpu"))
    assert not torch.equal(
        distribution(started.guide, "dense.weight").mean, distribution(cold.guide, "dense.weight").mean
    )
    cold.guide.load_state_dict({n.removeprefix("guide."): v for n, v in tensors.items() if n.startswith("guide.")})
    for attribute in ("mean", "log_alpha", "stddev"):
        values = [getattr(distribution(guide, "dense.weight"), attribute) for guide in (started.guide, cold.guide)]
        assert torch.equal(*torch.broadcast_tensors(*values)), attribute
    with seeded(0, None):
        terms = decompose(started.model, started.guide, started.train, num_samples=2)
    assert terms.data == pytest.approx(whole[1]["metrics"]["data"], rel=1e-6)
    assert terms.kl == pytest.approx(whole[1]["metrics"]["kl"], rel=1e-5)
    record = run_one(tmp_path, warm)
    assert record["settings"]["start"] == "net/cold" and record["metrics"]["data"] != terms.data
    assert run_one(tmp_path) == whole[1]


@pytest.mark.parametrize("state", ["nothing", "unfinished", "another seed", "other settings"])
def test_start_that_was_not_run_is_named(state: str, tmp_path: Path) -> None:
    warm = TINY.case("net/warm")
    message = "net/warm starts from net/cold, which has not been run with seed 0 and preset quick; run it first"
    of_bench = TINY
    if state == "unfinished":
        with pytest.raises(KeyboardInterrupt):
            run_one(tmp_path, progress=interrupt_at(2))
    elif state == "another seed":
        run_one(tmp_path, seed=1)
    elif state == "other settings":
        of_bench = bench(dataclasses.replace(FULL, recipes={"quick": dataclasses.replace(RECIPE, lr=0.5)}), warm)
        run_one(tmp_path)
        message = "recipe.lr was 0.01 and is now 0.5"
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        run_trial(of_bench, warm, 0, setting(tmp_path), digits())
    assert message in str(error.value)
    assert not folder_of(tmp_path, warm).exists()


def test_custom_trial(tmp_path: Path) -> None:
    calls: list[Any] = []

    def custom(context: TrialContext) -> Mapping[str, float]:
        calls.append((context.case.name, context.recipe, context.setting.preset, context.seed, context.setting.out))
        return {"accuracy/mean": 0.25}

    toy = case("toy", data=None, custom_trial=custom, cpu_only=True)
    # It runs on the CPU whatever the setting's device, and always in float32.
    on_gpu = setting(tmp_path, device="cuda:0", precision="bf16")
    record = run_trial(bench(toy), toy, 3, on_gpu, None)
    assert calls == [("toy", toy.recipes["quick"], "quick", 3, tmp_path)]
    assert record["metrics"] == {"accuracy/mean": 0.25} and record["curve"] == {}
    assert record["device"].startswith("cpu (") and record["device"].endswith(", float32")
    assert run_trial(bench(toy), toy, 3, on_gpu, None) == record and len(calls) == 1
    with pytest.raises(ValueError, match="net/cold needs a data set"):
        run_trial(TINY, FULL, 0, setting(tmp_path), None)


def test_bf16_changes_the_scores_and_is_recorded(tmp_path: Path) -> None:
    small = case("net/small")
    records = [run_one(tmp_path / name, small, precision=name) for name in ("float32", "bf16")]
    assert [record["device"].rpartition(", ")[2] for record in records] == ["float32", "bf16"]
    assert [record["settings"]["precision"] for record in records] == ["float32", "bf16"]
    assert records[0]["metrics"]["nll/mean"] != records[1]["metrics"]["nll/mean"]
    assert records[0]["metrics"]["nll/mean"] == pytest.approx(records[1]["metrics"]["nll/mean"], abs=0.2)


def test_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"A card at {device}")
    assert trial.describe_device(torch.device("cuda:0"), "bf16") == "A card at cuda:0, bf16"


# (title that a case requires, title of the data set): whether they match.
TITLES = {
    ("CIFAR-10", "CIFAR-10"): True,
    ("CIFAR-10", "CIFAR-10 (JPEG q75)"): False,
    ("CIFAR-10", "CIFAR-10, held-out training part"): True,
    ("CIFAR-10", "CIFAR-10 (JPEG q75), held-out training part"): False,
    ("CIFAR-10 (JPEG q75)", "CIFAR-10 (JPEG q75)"): True,
    ("CIFAR-10 (JPEG q75)", "CIFAR-10"): False,
    ("CIFAR-10 (JPEG q75)", "CIFAR-10 (JPEG q75), held-out training part"): True,
    (None, "anything"): True,
}


@pytest.mark.parametrize(("wanted", "found"), TITLES)
def test_data_with_another_title_are_refused_before_anything_is_written(
    wanted: str | None, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titled = case("net/titled", data_title=wanted)
    split = dataclasses.replace(digits(), title=found)
    assert trial.data_matches(titled, split) is TITLES[wanted, found]
    if trial.data_matches(titled, split):
        return
    with pytest.raises(ValueError, match="net/titled is for the data set") as error:
        run_trial(bench(titled), titled, 0, setting(tmp_path), split)
    assert f"is for the data set {wanted!r}, but the data folder holds {found!r}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_jpeg_archive_is_never_called_cifar10() -> None:
    jpeg = dataclasses.replace(digits(), title="CIFAR-10 (JPEG q75)")
    cases = [one for name in BENCHES for one in BENCHES[name].cases if one.data == "cifar10"]
    assert len(cases) > 6
    for one in cases:
        assert trial.data_matches(one, jpeg) is ("JPEG" in one.title) is ("/cifar10-jpeg/" in one.name)
        assert one.title.count("CIFAR-10") == 1

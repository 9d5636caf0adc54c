"""Trials of a benchmark: what they record, that finished they stay, what they refuse, and where they begin."""

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
from pyrostoch.bench.case import Own
from pyrostoch.bench.published import BENCHES
from pyrostoch.bench.trial import carry_out, trial_folder
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
    mean, spread = (
        (lambda site: distribution(origin, site.name).mean),
        (lambda site: distribution(origin, site.name).log_alpha),
    )
    return WeightwiseAlpha(model, init_loc=mean, init_log_alpha=spread)


def distribution(guide: Any, site: str) -> Any:
    return guide.site_distribution(site).base_dist


def measure(trained: trial.Trained) -> Mapping[str, float]:
    return {"sum": distribution(trained.guide, "dense.weight").mean.sum().item(), "draw": torch.rand(()).item()}


def case(name: str, guide: Any = layerwise, **options: Any) -> Case:
    recipes = dict.fromkeys(("quick", "cpu"), SHORT)
    settings: dict[str, Any] = {"title": name, "data": "digits", "network": network, "guide": guide}
    settings |= {"recipes": recipes, "random": {"dense.weight": LogUniform()}, "modes": ("mc:3", "mean", "mc:1")}
    return Case(name=name, **settings | options)


FULL = case("net/cold", recipes=dict.fromkeys(("quick", "cpu"), RECIPE), curve=True, draws=2, measure=measure)


def bench(*cases: Case) -> Bench:
    columns = (("accuracy/mean", "mean, %"), ("elbo", "ELBO"), ("compression", "x"))
    return Bench("tiny", "Tiny", cases, columns, published={}, notes=("A note.",), source="nowhere")


TINY = bench(FULL, case("net/warm", weightwise, start="net/cold", draws=2))
QUICK = Setting("quick", Path())


@cache
def digits() -> DataSplit:
    return load("digits")


def setting(out: Path, **changes: Any) -> Setting:
    return dataclasses.replace(QUICK, out=out, **changes)


def carry(out: Path, what: Case = FULL, seed: int = 0, progress: Any = None, **changes: Any) -> dict[str, Any]:
    own = TINY if what in TINY.cases else bench(what)
    return carry_out(own, what, seed, setting(out, **changes), digits(), progress)


def folder(out: Path, what: Case = FULL, seed: int = 0) -> Path:
    return trial_folder(TINY, what, seed, setting(out))


def result(record: dict[str, Any]) -> dict[str, Any]:
    """What two runs of a trial have in common: all but times."""
    metrics = {name: value for name, value in record["metrics"].items() if not name.startswith("seconds/")}
    return {**record, "metrics": metrics, "seconds": sorted(record["seconds"]), "date": ""}


def press(epoch: int) -> Callable[[dict[str, Any]], None]:
    def progress(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return progress


def refuse(constant: str) -> None:
    pytest.fail(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A trial carried out in one go: its folder, and its record."""
    out = tmp_path_factory.mktemp("whole")
    return out, carry(out)


def test_record_says_what_was_done(whole: tuple[Path, dict[str, Any]]) -> None:
    out, record = whole
    assert record == json.loads((folder(out) / "trial.json").read_text())
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
    assert {*scores, "elbo", "data", "kl", "data/monte-carlo-error", "sum", "draw"} == result(record)["metrics"].keys()
    metrics = record["metrics"]
    assert metrics["elbo"] == pytest.approx(metrics["data"] - metrics["kl"])
    assert record["curve"]["epoch"] == [1, 2, 3, 4, 5]
    looked = [value is not None for value in record["curve"]["accuracy/mc:5"]]
    assert looked == [value is not None for value in record["curve"]["log_alpha"]] == [True, True, False, True, False]
    assert record["seconds"].keys() == {"training", "scoring"} and record["seconds"]["training"] > 0
    assert record["versions"].keys() == {"pyrostoch", "torch", "pyro", "python"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"].startswith("cpu (") and record["device"].endswith("1 thread), float32")
    assert sorted(path.name for path in folder(out).iterdir()) == [
        "checkpoint.safetensors",
        "curve.jsonl",
        "trial.json",
    ]


def test_finished_trial_is_left_alone(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record = whole
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder(out).iterdir()}
    for place in ("fit", "_assemble", "write_json"):
        monkeypatch.setattr(trial, place, lambda *args, **options: pytest.fail("it was run again"))
    assert carry(out) == record
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder(out).iterdir()} == before


def test_seeds_and_variants_have_folders_of_their_own(tmp_path: Path) -> None:
    small = case("net/cold")
    there = [carry(tmp_path, small, seed) for seed in (0, 1)]
    there.append(carry(tmp_path, small, holdout=True))
    there.append(carry(tmp_path, small, holdout=True, changes=(("lr", "0.02"), ("epochs", "1"))))
    assert len({record["metrics"]["nll/mc:3"] for record in there}) > 2
    assert [record["preset"] for record in there] == ["quick"] * 3 + ["quick,lr=0.02,epochs=1"]
    assert there[3]["settings"]["recipe"] == {**vars(SHORT), "lr": 0.02, "epochs": 1}
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


OTHERS: dict[str, tuple[Any, dict[str, Any], str]] = {
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


@pytest.mark.parametrize("other", OTHERS)
def test_other_settings_are_refused_by_name(other: str, whole: tuple[Path, dict[str, Any]]) -> None:
    changes, options, message = OTHERS[other]
    before = (folder(whole[0]) / "trial.json").read_bytes()
    with pytest.raises(ValueError, match="holds a trial of other settings: ") as error:
        carry(whole[0], dataclasses.replace(FULL, **changes), **options)
    assert message in str(error.value) and "remove that folder, or give another --out" in str(error.value)
    assert "batch_size" not in str(error.value)
    assert (folder(whole[0]) / "trial.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"settings": 3}', "\x00" * 40])
def test_damaged_record_is_told_and_costs_no_training(
    content: str, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "trial.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="remove the file, and run what wrote it again") as error:
        carry(tmp_path)
    assert str(path) in str(error.value)
    path.unlink()
    if content == "{":  # once is enough
        record = carry(tmp_path, progress=lambda row: pytest.fail("it was trained again"))
        assert result(record) == result(whole[1])


@pytest.mark.parametrize(
    ("place", "content", "error"),
    [("fsync", {"a": 2}, OSError), ("replace", {"a": 2}, OSError), ("getpid", {"a": object()}, TypeError)],
)
def test_failed_write_leaves_what_was_there(
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


def test_score_that_is_no_number_loses_nothing(tmp_path: Path) -> None:
    odd = {"compression": float("inf"), "odd": float("nan"), "even": np.float64(2.0)}
    record = carry(tmp_path, case("net/odd", measure=lambda trained: odd))
    assert [record["metrics"][name] for name in odd] == [None, None, 2.0]
    text = next(tmp_path.glob("**/trial.json")).read_text()
    assert json.loads(text, parse_constant=refuse) == record == carry(tmp_path, case("net/odd"))


def test_warm_start_is_the_trained_network(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    warm = TINY.case("net/warm")
    begun = trial._assemble(TINY, warm, 0, setting(tmp_path), digits(), torch.device("cpu"))
    tensors = read_file(folder(tmp_path) / "checkpoint.safetensors")[0]
    for name, value in begun.model.state_dict().items():
        assert torch.equal(value, tensors[f"model.{name}"]), name
    assert tensors["model.net.bn.running_mean"].abs().max() > 0 and tensors["model.net.bn.num_batches_tracked"] == 10
    cold = trial._assemble(TINY, FULL, 0, setting(tmp_path), digits(), torch.device("cpu"))
    assert not torch.equal(
        distribution(begun.guide, "dense.weight").mean, distribution(cold.guide, "dense.weight").mean
    )
    cold.guide.load_state_dict({n.removeprefix("guide."): v for n, v in tensors.items() if n.startswith("guide.")})
    for attribute in ("mean", "log_alpha", "stddev"):
        here, there = (getattr(distribution(guide, "dense.weight"), attribute) for guide in (begun.guide, cold.guide))
        assert torch.equal(*torch.broadcast_tensors(here, there)), attribute
    with seeded(0, None):
        terms = decompose(begun.model, begun.guide, begun.train, num_samples=2)
    assert terms.data == pytest.approx(whole[1]["metrics"]["data"], rel=1e-6)
    assert terms.kl == pytest.approx(whole[1]["metrics"]["kl"], rel=1e-5)
    record = carry(tmp_path, warm)
    assert record["settings"]["start"] == "net/cold" and record["metrics"]["data"] != terms.data
    assert carry(tmp_path) == whole[1]


@pytest.mark.parametrize("state", ["nothing", "unfinished", "another seed", "other settings"])
def test_start_that_was_not_run_is_named(state: str, tmp_path: Path) -> None:
    warm = TINY.case("net/warm")
    message = "net/warm starts from net/cold, which has not been run with seed 0 and preset quick; run it first"
    own = TINY
    if state == "unfinished":
        with pytest.raises(KeyboardInterrupt):
            carry(tmp_path, progress=press(2))
    elif state == "another seed":
        carry(tmp_path, seed=1)
    elif state == "other settings":
        own = bench(dataclasses.replace(FULL, recipes={"quick": dataclasses.replace(RECIPE, lr=0.5)}), warm)
        carry(tmp_path)
        message = "recipe.lr was 0.01 and is now 0.5"
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        carry_out(own, warm, 0, setting(tmp_path), digits())
    assert message in str(error.value)
    assert not folder(tmp_path, warm).exists()


def test_case_that_is_a_trial_of_its_own(tmp_path: Path) -> None:
    calls: list[Any] = []

    def alone(own: Own) -> Mapping[str, float]:
        calls.append((own.case.name, own.recipe, own.setting.preset, own.seed, own.setting.out))
        return {"accuracy/mean": 0.25}

    toy = case("toy", data=None, alone=alone, cpu_only=True)
    # It computes on the CPU wherever others do, and knows no precision.
    there = setting(tmp_path, device="cuda:0", precision="bf16")
    record = carry_out(bench(toy), toy, 3, there, None)
    assert calls == [("toy", toy.recipes["quick"], "quick", 3, tmp_path)]
    assert record["metrics"] == {"accuracy/mean": 0.25} and record["curve"] == {}
    assert record["device"].startswith("cpu (") and record["device"].endswith(", float32")
    assert carry_out(bench(toy), toy, 3, there, None) == record and len(calls) == 1
    with pytest.raises(ValueError, match="net/cold needs a data set"):
        carry_out(TINY, FULL, 0, setting(tmp_path), None)


def test_bf16_trains_otherwise_and_says_so(tmp_path: Path) -> None:
    small = case("net/small")
    records = [carry(tmp_path / name, small, precision=name) for name in ("float32", "bf16")]
    assert [record["device"].rpartition(", ")[2] for record in records] == ["float32", "bf16"]
    assert [record["settings"]["precision"] for record in records] == ["float32", "bf16"]
    assert records[0]["metrics"]["nll/mean"] != records[1]["metrics"]["nll/mean"]
    assert records[0]["metrics"]["nll/mean"] == pytest.approx(records[1]["metrics"]["nll/mean"], abs=0.2)


def test_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"A card at {device}")
    assert trial.describe_device(torch.device("cuda:0"), "bf16") == "A card at cuda:0, bf16"


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
def test_data_of_another_title_are_refused_before_anything_is_written(
    wanted: str | None, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = case("net/titled", data_title=wanted)
    fake = dataclasses.replace(digits(), title=found)
    assert trial.fits(what, fake) is TITLES[wanted, found]
    if trial.fits(what, fake):
        return
    with pytest.raises(ValueError, match="net/titled is for") as error:
        carry_out(bench(what), what, 0, setting(tmp_path), fake)
    assert f"is for {wanted!r}, but the data folder holds {found!r}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_jpeg_archive_is_never_called_cifar10() -> None:
    jpeg = dataclasses.replace(digits(), title="CIFAR-10 (JPEG q75)")
    cases = [one for name in BENCHES for one in BENCHES[name].cases if one.data == "cifar10"]
    assert len(cases) > 6
    for one in cases:
        assert trial.fits(one, jpeg) is ("JPEG" in one.title) is ("/cifar10-jpeg/" in one.name)
        assert one.title.count("CIFAR-10") == 1

"""A trial: one case of a benchmark with one seed, trained, scored and written down; or found done before."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrostoch._version import versions
from pyrostoch.bench.case import Bench, Case, Own, Setting, Trained
from pyrostoch.bench.files import read_json, write_json
from pyrostoch.bench.follow import Follower
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.compare import ComparisonRow, accuracy_by_samples, compare
from pyrostoch.prediction.decompose import decompose
from pyrostoch.prediction.readouts import parse_mode, seeded
from pyrostoch.training.checkpoint import load
from pyrostoch.training.fit import fit

__all__ = ["carry_out", "fits", "parts_of", "score", "settings_of", "trial_folder"]

_RECORD, _CURVE, _CHECKPOINT = "trial.json", "curve.jsonl", "checkpoint.safetensors"

# Choices do not need many samples.
_FEW = 20

Progress = Callable[[dict[str, Any]], Any]


def trial_folder(bench: Bench, case: Case, seed: int, setting: Setting) -> Path:
    """The folder in which a trial keeps its checkpoint and its record."""
    return setting.trials(bench) / setting.variant / case.name.replace("/", "-") / f"seed{seed}"


def fits(case: Case, split: DataSplit | None) -> bool:
    """Whether a data set is the one that a case is for, where its loader's name covers several."""
    title = case.data_title
    # What is held out is told behind a comma.
    return title is None or (split is not None and f"{split.title}, ".startswith(f"{title}, "))


def carry_out(
    bench: Bench, case: Case, seed: int, setting: Setting, split: DataSplit | None, progress: Progress | None = None
) -> dict[str, Any]:
    """Train and score a case with a seed, unless that is done; a run cut short is gone on with.

    Args:
        bench: The benchmark.
        case: The case.
        seed: Seed of network, order, noise and draws.
        setting: Where and on what.
        split: The data set, the held-out training part already in the place of the test data where that is wanted.
        progress: Called with each epoch's row.

    Returns:
        The trial's record, as its file has it: settings, metrics (`None` where one is not a finite number), seconds,
        and its curve where the case has one.

    Raises:
        FileNotFoundError: The case it starts from has not been run with this seed.
        NonFiniteLossError: A loss became NaN.
        ValueError: The data are not the case's, or the trial's folder holds another trial or a damaged record.
    """
    if not fits(case, split):
        raise ValueError(
            f"bench {bench.name}: {case.name} is for {case.data_title!r}, but the data folder holds "
            f"{split.title if split else None!r}"
        )
    folder = trial_folder(bench, case, seed, setting)
    record: dict[str, Any] = {
        "bench": bench.name,
        "case": case.name,
        "preset": setting.variant,
        "seed": seed,
        "settings": settings_of(case, setting, split),
    }
    if _is_done(folder / _RECORD, record["settings"]):
        return dict(read_json(folder / _RECORD))
    if case.alone is not None:
        device = describe_device(torch.device("cpu" if case.cpu_only else setting.device), "float32")
        begin = time.perf_counter()
        own = Own(case, setting.recipe(case), setting, seed, progress or (lambda row: None), split)
        metrics = dict(case.alone(own))
        record |= {"metrics": metrics, "curve": {}, "seconds": {"whole": time.perf_counter() - begin}}
    elif split is None:
        raise ValueError(f"bench {bench.name}: {case.name} needs a data set")
    else:
        home = torch.device(setting.device)
        device = describe_device(home, setting.precision)
        trained = _assemble(bench, case, seed, setting, split, home)
        # From here on the folder is this trial's.
        write_json(folder / _RECORD, record)
        record |= _train_and_score(trained, folder, setting, progress)
    record |= {"device": device, "versions": versions(), "date": datetime.now(UTC).date().isoformat()}
    write_json(folder / _RECORD, record)
    return dict(read_json(folder / _RECORD))


def _train_and_score(trained: Trained, folder: Path, setting: Setting, progress: Progress | None) -> dict[str, Any]:
    """Train, from the checkpoint where there is one, and score."""
    recipe, checkpoint = trained.recipe, folder / _CHECKPOINT
    follower = Follower(trained, folder / _CURVE) if trained.case.curve else None
    if follower is not None:
        follower.catch_up(checkpoint)

    def after(row: dict[str, Any]) -> None:
        if follower is not None:
            follower(row)
        if progress is not None:
            progress(row)

    fitted = fit(
        trained.model,
        trained.guide,
        trained.train,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        lr_alpha=recipe.lr_alpha,
        estimator=recipe.estimator,
        schedule=recipe.schedule,
        kl_warmup=recipe.kl_warmup,
        precision=setting.precision,
        seed=trained.seed,
        progress=False,
        checkpoint=checkpoint,
        resume=True,
        callback=after,
    )
    start = time.perf_counter()
    metrics = score(trained, _FEW if setting.holdout else None)
    seconds = {"training": fitted.seconds, "scoring": time.perf_counter() - start}
    return {"metrics": metrics, "curve": follower.columns(fitted.history) if follower else {}, "seconds": seconds}


def _is_done(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a trial's record is whole.

    Raises:
        ValueError: It is of other settings, or damaged.
    """
    if not path.is_file():
        return False
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise ValueError(f"{path}: no record of a trial; remove the file, and run what wrote it again")
    # Through JSON, since tuples come back from it as lists.
    there, now = _by_name(found["settings"]), _by_name(json.loads(json.dumps(settings)))
    names = [name for name in there | now if there.get(name) != now.get(name)]
    if names:
        differences = "; ".join(f"{name} was {there.get(name)!r} and is now {now.get(name)!r}" for name in names)
        raise ValueError(
            f"{path.parent} holds a trial of other settings: {differences}; remove that folder, or give another --out"
        )
    return "metrics" in found


def _by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of a part of them, such as `recipe.lr`, side by side."""
    names = dict[str, Any]()
    for name, value in settings.items():
        names |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return names


def describe_device(device: torch.device, precision: str) -> str:
    """The kind of machine and the precision of training: the GPU's name, or the processor's kind, cores and threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    threads = torch.get_num_threads()
    used = f"{threads} thread{'' if threads == 1 else 's'}"
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores, {used}), {precision}"


def _assemble(bench: Bench, case: Case, seed: int, setting: Setting, split: DataSplit, device: torch.device) -> Trained:
    """Model and guide of a trial as training finds them."""
    recipe = setting.recipe(case)
    train, test = parts_of(split, recipe, device)
    if case.guide is None:
        raise ValueError(f"bench {bench.name}: {case.name} has no guide")
    with seeded(seed, device):
        model = _model(bench, case, split, len(train[0]), device)
        origin = None
        if case.start is not None:
            source = bench.case(case.start)
            there = trial_folder(bench, source, seed, setting)
            if source.guide is None or not _is_done(there / _RECORD, settings_of(source, setting, split)):
                raise FileNotFoundError(
                    f"bench {bench.name}: {case.name} starts from {source.name}, which has not been run with seed "
                    f"{seed} and preset {setting.variant}; run it first"
                )
            with seeded(seed, device):
                # A model of its own: other weights may be random here.
                begun = _model(bench, source, split, len(train[0]), device)
                origin = source.guide(begun, setting.recipe(source), None).to(device)
            load(there / _CHECKPOINT, begun, origin)
            model.net.load_state_dict(begun.net.state_dict())
        guide = case.guide(model, recipe, origin).to(device)
    return Trained(case, model, guide, train, test, recipe, seed, split)


def parts_of(
    split: DataSplit, recipe: Recipe, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test data of a trial, as many as its recipe says.

    Args:
        split: The data set.
        recipe: The recipe.
        device: Where they go.
    """
    limit = recipe.examples
    return (
        (split.x_train[:limit].to(device), split.y_train[:limit].to(device)),
        (split.x_test[:limit].to(device), split.y_test[:limit].to(device)),
    )


def _model(bench: Bench, case: Case, split: DataSplit, count: int, device: torch.device) -> BayesianModel:
    """The model of a case, as it is made."""
    if case.network is None:
        raise ValueError(f"bench {bench.name}: {case.name} has no network")
    net = case.network(split)
    # Convolutions and poolings of torch run faster on this layout, on CPUs and GPUs, with the same values.
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return BayesianModel(net, prior=dict(case.random), likelihood=Categorical(), num_data=count).to(device)


def score(trained: Trained, most: int | None = None) -> dict[str, float]:
    """The test scores of a trained network by mode, the ELBO's terms, and what else its case measures.

    Args:
        trained: The network.
        most: Sampled modes of more draws are left out.

    Returns:
        Scores by metric.
    """
    case, metrics = trained.case, dict[str, float]()
    draws = {mode: parse_mode(mode) for mode in case.modes}
    plain = [mode for mode, (name, _) in draws.items() if name != "mc"]
    counts = [count for name, count in draws.values() if name == "mc" and (most is None or count <= most)]
    rows: list[ComparisonRow] = []
    if plain:
        rows += compare(trained.model, trained.guide, trained.test, modes=plain, seed=trained.seed).rows
    if counts:
        # All sampled modes in one pass: fewer samples are a prefix of more.
        rows += accuracy_by_samples(trained.model, trained.guide, trained.test, counts, seed=trained.seed).rows
    for row in rows:
        for name in ("accuracy", "nll", "brier", "ece", "seconds"):
            metrics[f"{name}/{row.mode}"] = float(getattr(row, name))
    if case.draws:
        with seeded(trained.seed, trained.train[0].device):
            terms = decompose(trained.model, trained.guide, trained.train, num_samples=case.draws)
        metrics |= {"elbo": terms.elbo, "data": terms.data, "kl": terms.kl}
        if terms.data_stderr is not None:
            metrics["data/monte-carlo-error"] = terms.data_stderr
    if case.measure is not None:
        with seeded(trained.seed, trained.train[0].device):
            metrics |= case.measure(trained)
    return metrics


def settings_of(case: Case, setting: Setting, split: DataSplit | None) -> dict[str, Any]:
    """What decides a trial's result, as plain data.

    Args:
        case: The case.
        setting: Where and on what.
        split: Its data set; none for a case that makes its own.

    Returns:
        Settings by name.
    """
    return {
        "data": split.title if split else case.data,
        "train": len(split.x_train) if split else 0,
        "random": {pattern: repr(prior) for pattern, prior in case.random.items()},
        "start": case.start,
        "recipe": dataclasses.asdict(setting.recipe(case)),
        "precision": setting.precision if case.alone is None else "float32",
    }

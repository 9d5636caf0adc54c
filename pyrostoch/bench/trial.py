"""A trial: one case of a benchmark is trained and scored with one seed, and its record is written."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrostoch._version import versions
from pyrostoch.bench.case import Bench, Case, Progress, Setting, Trained, TrialContext
from pyrostoch.bench.curve import CurveRecorder
from pyrostoch.bench.files import read_json, write_json
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.compare import ComparisonRow, accuracy_by_samples, compare
from pyrostoch.prediction.decompose import decompose
from pyrostoch.prediction.readouts import parse_mode, seeded
from pyrostoch.training.checkpoint import load
from pyrostoch.training.fit import fit

__all__ = [
    "data_matches",
    "describe_device",
    "run_trial",
    "score",
    "settings_of",
    "train_test_data",
    "trial_folder",
]

_RECORD, _CURVE, _CHECKPOINT = "trial.json", "curve.jsonl", "checkpoint.safetensors"

# Recipes are chosen on held-out data without the slow modes of more samples than this.
_HOLDOUT_SAMPLES = 20


def trial_folder(bench: Bench, case: Case, seed: int, setting: Setting) -> Path:
    """The folder of a trial's checkpoint, training curve and record."""
    return setting.trials(bench) / setting.variant / case.name.replace("/", "-") / f"seed{seed}"


def data_matches(case: Case, split: DataSplit | None) -> bool:
    """Whether a data set has the title that a case requires; a case without `data_title` takes any."""
    title = case.data_title
    # A comma and "held-out training part" follow the title of a data set with held-out data.
    return title is None or (split is not None and f"{split.title}, ".startswith(f"{title}, "))


def run_trial(
    bench: Bench, case: Case, seed: int, setting: Setting, split: DataSplit | None, progress: Progress | None = None
) -> dict[str, Any]:
    """Train and score a case with a seed; a finished trial is read from its record, an interrupted one is resumed.

    Args:
        bench: The benchmark.
        case: The case.
        seed: Seed of the network's initialization, the order of the data, and all draws.
        setting: Preset, device, precision and folder.
        split: The data set; under `setting.holdout` its test data must be the held-out training data already.
        progress: Called with each epoch's row.

    Returns:
        The trial's record, as read from its file: settings, metrics (`None` for one that is not a finite number),
        seconds, and the training curve if the case has one.

    Raises:
        FileNotFoundError: The case it starts from has not been run with this seed.
        NonFiniteLossError: A loss became NaN.
        ValueError: The data set is not the case's, or the folder holds a trial of other settings or a damaged record.
    """
    if not data_matches(case, split):
        raise ValueError(
            f"bench {bench.name}: {case.name} is for the data set {case.data_title!r}, but the data folder holds "
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
    if case.custom_trial is not None:
        device = describe_device(torch.device("cpu" if case.cpu_only else setting.device), "float32")
        begin = time.perf_counter()
        context = TrialContext(case, setting.recipe(case), setting, seed, progress or (lambda row: None), split, folder)
        metrics = dict(case.custom_trial(context))
        record |= {"metrics": metrics, "curve": {}, "seconds": {"whole": time.perf_counter() - begin}}
    elif split is None:
        raise ValueError(f"bench {bench.name}: {case.name} needs a data set, got None")
    else:
        torch_device = torch.device(setting.device)
        device = describe_device(torch_device, setting.precision)
        trained = _assemble(bench, case, seed, setting, split, torch_device)
        # Written before training, so that the folder is refused to trials of other settings from now on.
        write_json(folder / _RECORD, record)
        record |= _train_and_score(trained, folder, setting, progress)
    record |= {"device": device, "versions": versions(), "date": datetime.now(UTC).date().isoformat()}
    write_json(folder / _RECORD, record)
    return dict(read_json(folder / _RECORD))


def _train_and_score(trained: Trained, folder: Path, setting: Setting, progress: Progress | None) -> dict[str, Any]:
    """Train, resuming from a checkpoint if there is one, and score."""
    recipe, checkpoint = trained.recipe, folder / _CHECKPOINT
    recorder = CurveRecorder(trained, folder / _CURVE) if trained.case.curve else None
    if recorder is not None:
        recorder.catch_up(checkpoint)

    def after_epoch(row: dict[str, Any]) -> None:
        if recorder is not None:
            recorder(row)
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
        rate_weight=1.0 if recipe.rate_weight is None else recipe.rate_weight,
        precision=setting.precision,
        seed=trained.seed,
        progress=False,
        checkpoint=checkpoint,
        resume=True,
        callback=after_epoch,
    )
    start = time.perf_counter()
    metrics = score(trained, _HOLDOUT_SAMPLES if setting.holdout else None)
    seconds = {"training": fitted.seconds, "scoring": time.perf_counter() - start}
    return {"metrics": metrics, "curve": recorder.columns(fitted.history) if recorder else {}, "seconds": seconds}


def _is_done(path: Path, settings: dict[str, Any]) -> bool:
    """Whether the record at a path is that of a finished trial.

    Raises:
        ValueError: The record is of other settings, or damaged.
    """
    if not path.is_file():
        return False
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ValueError(f"{path}: expected the record of a trial; remove the file and rerun the command that wrote it")
    # Through JSON, which turns tuples into lists, as it did in the file.
    before, now = _flatten(record["settings"]), _flatten(json.loads(json.dumps(settings)))
    names = [name for name in before | now if before.get(name) != now.get(name)]
    if names:
        differences = "; ".join(f"{name} was {before.get(name)!r} and is now {now.get(name)!r}" for name in names)
        raise ValueError(
            f"{path.parent} holds a trial of other settings: {differences}; remove that folder, or give another --out"
        )
    return "metrics" in record


def _flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a flat dictionary with dotted names, such as `recipe.lr`, for those in an inner dictionary."""
    flat = dict[str, Any]()
    for name, value in settings.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def describe_device(device: torch.device, precision: str) -> str:
    """Name the hardware and the precision of training: the GPU, or the processor's kind, its cores and torch's threads.

    Args:
        device: Torch device.
        precision: `"float32"` or `"bf16"`.
    """
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    threads = torch.get_num_threads()
    used = f"{threads} thread{'' if threads == 1 else 's'}"
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores, {used}), {precision}"


def _assemble(bench: Bench, case: Case, seed: int, setting: Setting, split: DataSplit, device: torch.device) -> Trained:
    """The model, guide and data of a trial, before training."""
    recipe = setting.recipe(case)
    train, test = train_test_data(split, recipe, device)
    if case.guide is None:
        raise ValueError(f"bench {bench.name}: {case.name} has no guide")
    with seeded(seed, device):
        model = _model(bench, case, split, len(train[0]), device)
        origin = None
        if case.start is not None:
            source = bench.case(case.start)
            source_folder = trial_folder(bench, source, seed, setting)
            if source.guide is None or not _is_done(source_folder / _RECORD, settings_of(source, setting, split)):
                raise FileNotFoundError(
                    f"bench {bench.name}: {case.name} starts from {source.name}, which has not been run with seed "
                    f"{seed} and preset {setting.variant}; run it first"
                )
            with seeded(seed, device):
                # A separate model, since other weights may be random in the source.
                source_model = _model(bench, source, split, len(train[0]), device)
                origin = source.guide(source_model, setting.recipe(source), None).to(device)
            load(source_folder / _CHECKPOINT, source_model, origin)
            model.net.load_state_dict(source_model.net.state_dict())
        guide = case.guide(model, recipe, origin).to(device)
    return Trained(case, model, guide, train, test, recipe, seed, split)


def train_test_data(
    split: DataSplit, recipe: Recipe, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Inputs and targets for training and test, cut to the recipe's number of examples.

    Args:
        split: The data set.
        recipe: The recipe.
        device: The device they are moved to.

    Returns:
        Pairs of inputs and targets, for training and for test.
    """
    limit = recipe.examples
    return (
        (split.x_train[:limit].to(device), split.y_train[:limit].to(device)),
        (split.x_test[:limit].to(device), split.y_test[:limit].to(device)),
    )


def _model(bench: Bench, case: Case, split: DataSplit, count: int, device: torch.device) -> BayesianModel:
    """The untrained model of a case."""
    if case.network is None:
        raise ValueError(f"bench {bench.name}: {case.name} has no network")
    net = case.network(split)
    # Torch's convolutions and poolings run faster in this memory format, on CPUs and GPUs, with the same values.
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return BayesianModel(net, prior=dict(case.random), likelihood=case.likelihood(), num_data=count).to(device)


def score(trained: Trained, max_samples: int | None = None) -> dict[str, float]:
    """Test scores of a trained network in each mode, the ELBO's terms, and the further scores of its case.

    Args:
        trained: The network.
        max_samples: Leave out modes that average over more draws than this.

    Returns:
        Scores by metric.
    """
    case, metrics = trained.case, dict[str, float]()
    parsed = {mode: parse_mode(mode) for mode in case.modes}
    other_modes = [mode for mode, (name, _) in parsed.items() if name != "mc"]
    counts = [count for name, count in parsed.values() if name == "mc"]
    if max_samples is not None:
        counts = [count for count in counts if count <= max_samples]
    rows: list[ComparisonRow] = []
    if other_modes:
        rows += compare(trained.model, trained.guide, trained.test, modes=other_modes, seed=trained.seed).rows
    if counts:
        # All sampled modes in one pass: the smaller numbers of samples are the first ones of the largest.
        rows += accuracy_by_samples(trained.model, trained.guide, trained.test, counts, seed=trained.seed).rows
    for row in rows:
        for name in ("accuracy", "nll", "brier", "ece", "seconds"):
            metrics[f"{name}/{row.mode}"] = float(getattr(row, name))
    if case.elbo_draws:
        with seeded(trained.seed, trained.train[0].device):
            terms = decompose(trained.model, trained.guide, trained.train, num_samples=case.elbo_draws)
        metrics |= {"elbo": terms.elbo, "data": terms.data, "kl": terms.kl}
        if terms.data_stderr is not None:
            metrics["data/monte-carlo-error"] = terms.data_stderr
        metrics |= {f"rate/{row.layer}": row.nats for row in terms.rates}
        if terms.rates:
            metrics["rate"] = terms.rate / terms.num_data
        if terms.information_bound is not None:
            metrics["information"] = terms.information_bound
    if case.measure is not None:
        with seeded(trained.seed, trained.train[0].device):
            metrics |= case.measure(trained)
    return metrics


def settings_of(case: Case, setting: Setting, split: DataSplit | None) -> dict[str, Any]:
    """All settings that determine a trial's result, as plain data.

    Args:
        case: The case.
        setting: Preset, changes and precision.
        split: Its data set; `None` for a case that generates its own data.

    Returns:
        Settings by name.
    """
    return {
        "data": split.title if split else case.data,
        "train": len(split.x_train) if split else 0,
        "random": {pattern: repr(prior) for pattern, prior in case.random.items()},
        "start": case.start,
        "recipe": dataclasses.asdict(setting.recipe(case)),
        "precision": setting.precision if case.custom_trial is None else "float32",
    }

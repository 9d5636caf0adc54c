"""Execute a run: train and score one guide after the other, and save the record after each."""

from __future__ import annotations

import contextlib
import os
import warnings
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from pyrostoch._user_file import digests
from pyrostoch._version import versions
from pyrostoch.data import DataSplit
from pyrostoch.infer.known_labels import conditional_layers
from pyrostoch.model import BayesianModel
from pyrostoch.runs.config import Config
from pyrostoch.runs.experiment import (
    Experiment,
    build_experiment,
    build_model,
    describe_network,
    load_data,
)
from pyrostoch.runs.folder import (
    RECORD_FILE,
    SCHEMA,
    RunError,
    check_writable,
    only_run_in,
    read_record,
    write_record,
)
from pyrostoch.runs.registry import guide_kind
from pyrostoch.runs.saved_run import checkpoint_name, file_stem, read_config, warn_of_changed_files
from pyrostoch.runs.scores import CURVE_SAMPLES, elbo_terms, modes_for, noise_of, posterior_histograms, score
from pyrostoch.runs.settings_file import SETTINGS_FILE, write_settings
from pyrostoch.runs.threads import limit_threads
from pyrostoch.safefile import temporary_name
from pyrostoch.training.checkpoint import load
from pyrostoch.training.checks import check_rate_weight
from pyrostoch.training.fit import fit
from pyrostoch.training.history import Fit
from pyrostoch.training.two_steps import fit_two_steps

__all__ = ["POSTERIOR_FILE", "RunCallback", "execute"]

POSTERIOR_FILE = "posterior.nc"

# The number of draws in the file for ArviZ is reduced for many weights, so that the file stays near 64 MB.
_MAX_DRAWS, _MIN_DRAWS, _MAX_POSTERIOR_VALUES = 200, 20, 16_000_000
# The file holds the likelihood and predictions of this many test examples, the first ones, for every draw.
_POSTERIOR_EXAMPLES = 1000


class RunCallback:
    """Hooks that `execute` calls; they do nothing here, and are overridden to show progress."""

    def on_run_start(self, record: dict[str, Any]) -> None:
        """The run begins.

        Args:
            record: The record of the run, with the guides that are already finished if it is resumed.
        """

    def on_guide_start(self, name: str) -> None:
        """Training of a guide begins.

        Args:
            name: Name of the guide.
        """

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        """An epoch of training has ended.

        Args:
            row: The epoch and the terms of the ELBO, as in `Fit.history`.
        """

    def on_scoring_start(self, name: str) -> None:
        """Training of a guide has ended, and its scoring begins.

        Args:
            name: Name of the guide.
        """

    def on_guide_end(self, result: dict[str, Any]) -> None:
        """A guide has been scored and saved.

        Args:
            result: The part of the record that describes this guide.
        """

    def on_posterior_start(self, name: str) -> None:
        """Drawing from the posterior of the best guide begins.

        Args:
            name: Name of the guide.
        """


def execute(
    config: Config, out: str | Path, *, resume: bool = False, command: str = "", callback: RunCallback | None = None
) -> dict[str, Any]:
    """Train and score the guides of a run, one after the other from the same initial network, and save the results.

    The folder then holds `results.json`, `config.toml`, `<guide>.safetensors` of each guide, and `posterior.nc` of the
    guide with the highest ELBO, evaluated on the first 1,000 test examples. The record is written after each guide.
    Each guide is scored on the test part once, after its last epoch.

    Args:
        config: The settings.
        out: The run's folder, empty or not existing yet; with `resume`, the folder of an interrupted run with the same
            settings.
        resume: Keep the finished guides, and resume the others from their checkpoints.
        command: The command line, for the record.
        callback: Its hooks are called during the run.

    Returns:
        The record, as in `results.json`.

    Raises:
        RunError: The folder is not empty, or holds another run.
        BlockingIOError: Another process is running in the folder; it is named.
        OSError: The folder cannot be written.
        NonFiniteLossError: A loss became NaN or infinite; the results of finished guides are kept.
    """
    folder = Path(out)
    with only_run_in(folder):
        saved = _saved_record(folder, config, resume)
        split = load_data(config)
        model = build_model(config, split)
        check_rate_weight(model, config.rate_weight)
        check_writable(folder)
        with limit_threads(model.net):
            record = saved or _initial_record(config, split, model, command)
            return _run_remaining(config, folder, split, record, resume, callback or RunCallback())


def _run_remaining(
    config: Config, folder: Path, split: DataSplit, record: dict[str, Any], resume: bool, callback: RunCallback
) -> dict[str, Any]:
    """Train and score the guides that the record lacks, and write the posterior draws."""
    begin = perf_counter()
    before = float(record["seconds"])
    write_record(folder, record)
    if not (folder / SETTINGS_FILE).is_file():
        write_settings(folder, config)
    callback.on_run_start(record)
    finished = {result["name"]: result for result in record["guides"]}
    for name in config.guides:
        if name in finished and (folder / finished[name]["checkpoint"]).is_file():
            continue
        experiment = build_experiment(config, split, name)
        callback.on_guide_start(name)
        fits = _train(config, experiment, folder / f"{file_stem(name)}.safetensors", resume, callback)
        callback.on_scoring_start(name)
        finished[name] = _guide_result(config, experiment, name, fits)
        record["guides"] = [finished[guide] for guide in config.guides if guide in finished]
        record["posterior_of"] = None
        record["seconds"] = before + perf_counter() - begin
        write_record(folder, record)
        callback.on_guide_end(finished[name])
    best = max(record["guides"], key=lambda result: float(result["decomposition"]["elbo"]))["name"]
    random = record["model"]["random"]
    if record["posterior_of"] != best or not (random == [] or (folder / POSTERIOR_FILE).is_file()):
        if random:
            callback.on_posterior_start(best)
            experiment = build_experiment(config, split, best)
            load(folder / finished[best]["checkpoint"], experiment.model, experiment.guide)
            record["posterior_draws"] = _write_posterior(experiment, folder / POSTERIOR_FILE, config.seed)
        record["posterior_of"] = best
        record["seconds"] = before + perf_counter() - begin
        write_record(folder, record)
    return record


def _saved_record(folder: Path, config: Config, resume: bool) -> dict[str, Any] | None:
    """The record of the run to resume; `None` if the folder is empty."""
    # The lock, and what a run leaves that is killed before its first record, have names that begin with a dot.
    if all(path.name.startswith(".") for path in folder.iterdir()):
        return None
    if not resume:
        raise RunError(
            f"run folder {folder}: it is not empty; add --resume to resume the run in it, or choose another with --out"
        )
    if not (folder / RECORD_FILE).is_file():
        raise RunError(f"run folder {folder}: it holds other files and no {RECORD_FILE}; choose another with --out")
    record = read_record(folder)
    if differences := read_config(folder, record).differences(config):
        changes = "; ".join(f"{name} was {saved!r} and is now {now!r}" for name, (saved, now) in differences.items())
        raise RunError(
            f"run folder {folder}: it holds a run with other settings: {changes}. Give the settings of that run (or "
            "only --resume and --out), or choose another folder with --out"
        )
    warn_of_changed_files(folder, record)
    return record


def _initial_record(config: Config, split: DataSplit, model: BayesianModel, command: str) -> dict[str, Any]:
    """The record of a run in which no guide has been trained yet."""
    random = [name for name, site in model.sites.items() if site.role != "scale"]
    return {
        "schema": SCHEMA,
        "kind": config.kind,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "versions": versions(),
        "device": config.device,
        "seed": config.seed,
        "config": config.to_dict(),
        "files": digests((config.model, *config.guides)),
        "data": {
            "name": split.name,
            "title": split.title,
            "train": len(split.x_train),
            "test": len(split.x_test),
            "classes": split.num_classes,
            "task": split.task,
            "target_std": split.target_scale[1] if split.target_scale else None,
            "schema": None if split.schema is None else split.schema.to_dict(),
        },
        "model": {
            "name": config.model,
            "description": describe_network(config, model, split),
            "random": random,
            "parameters": sum(parameter.numel() for parameter in model.net.parameters()),
        },
        "prior": {"text": repr(model.prior(random[0])) if random else "none", "improper": model.improper},
        "estimator": config.estimator,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "posterior_of": None,
        "guides": [],
    }


def _train(config: Config, experiment: Experiment, checkpoint: Path, resume: bool, callback: RunCallback) -> list[Fit]:
    """Train a guide; with conditional layers in two steps, in each of them for the epochs of the settings."""
    settings: dict[str, Any] = {
        "batch_size": config.batch_size,
        "lr": config.lr,
        "lr_alpha": config.lr_alpha,
        "estimator": config.estimator,
        "rate_weight": config.rate_weight,
        "seed": config.seed,
        "progress": False,
        "checkpoint": checkpoint,
        "resume": resume,
    }
    model, guide, train = experiment.model, experiment.guide, experiment.train
    if not config.conditional:
        return [fit(model, guide, train, epochs=config.epochs, callback=callback.on_epoch_end, **settings)]

    layers = conditional_layers(model.net)

    def second(row: dict[str, Any]) -> None:
        callback.on_epoch_end({**row, "epoch": config.epochs + row["epoch"]})

    found = fit_two_steps(
        model,
        guide,
        train,
        selection={name: layer.selection for name, layer in layers.items() if layer.selection is not None},
        epochs=(config.epochs, config.epochs),
        first={"callback": callback.on_epoch_end},
        second={"callback": second},
        **settings,
    )
    return [part for part in (found.classes, found.selection) if part is not None]


def _guide_result(config: Config, experiment: Experiment, name: str, fits: list[Fit]) -> dict[str, Any]:
    """The part of the record that describes a guide; the history is that of the last step of training."""
    modes, reason = modes_for(config, experiment)
    scores = score(experiment, modes, seed=config.seed, curve=CURVE_SAMPLES)
    decomposition = elbo_terms(experiment, seed=config.seed)
    sites = [site.name for site in experiment.model.sites.values() if site.role != "scale"]
    history = fits[-1].history
    return {
        "name": name,
        "title": guide_kind(name).title,
        "seconds": sum(part.seconds for part in fits),
        "checkpoint": checkpoint_name(config, name),
        "decomposition": decomposition.to_dict(),
        "rows": scores.rows,
        "history": {key: history[key] for key in ("epoch", "elbo", "data", "kl", "kl_weight")},
        "reliability": {mode: bins for mode, bins in scores.reliability.items() if mode != "mc:1"},
        "by_samples": scores.curve,
        "noise": noise_of(experiment),
        "posterior": posterior_histograms(experiment.guide, sites),
        "without_moments": reason,
    }


def _write_posterior(experiment: Experiment, path: Path, seed: int) -> int:
    """Write posterior draws for ArviZ atomically, and return their number."""
    with warnings.catch_warnings():
        # ArviZ 0.23 announces its next version with a warning at import.
        warnings.simplefilter("ignore", FutureWarning)
        from pyrostoch.diagnose import to_arviz

        weights = sum(site.init.numel() for site in experiment.model.sites.values())
        draws = min(_MAX_DRAWS, max(_MIN_DRAWS, _MAX_POSTERIOR_VALUES // weights))
        x, y = (part[:_POSTERIOR_EXAMPLES] for part in experiment.test)
        inference_data = to_arviz(experiment.model, experiment.guide, (x, y), draws=draws, seed=seed)
        temporary = temporary_name(path)
        try:
            inference_data.to_netcdf(str(temporary))
            os.replace(temporary, path)
        except OSError as error:
            raise OSError(
                error.errno, f"{path}: the posterior draws cannot be written: {error.strerror or error}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return draws

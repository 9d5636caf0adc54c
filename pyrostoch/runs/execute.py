"""Carrying out a run: guide after guide, the record written after each, so that nothing is lost."""

from __future__ import annotations

import contextlib
import os
import warnings
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from pyrostoch._version import versions
from pyrostoch.data import DataSplit
from pyrostoch.model import BayesianModel
from pyrostoch.runs.config import Config
from pyrostoch.runs.folder import RECORD, SCHEMA, RunError, read_record, try_writing, write_record
from pyrostoch.runs.names import GUIDES
from pyrostoch.runs.parties import Party, assemble, describe_network, load_split, make_model
from pyrostoch.runs.reopen import settings_of
from pyrostoch.runs.scores import CURVE, MODES, noise, score, terms
from pyrostoch.runs.threads import suited_threads
from pyrostoch.training.checkpoint import load
from pyrostoch.training.fit import fit
from pyrostoch.training.history import Fit

__all__ = ["POSTERIOR", "Watch", "execute"]

POSTERIOR = "posterior.nc"

# Draws in the file for ArviZ: fewer where the weights are many, to keep it near 64 MB.
_MOST_DRAWS, _FEWEST_DRAWS, _POSTERIOR_NUMBERS = 200, 20, 16_000_000
# Test examples, the first ones, whose likelihood and predictions it holds: every draw is a pass over them.
_POSTERIOR_EXAMPLES = 1000


class Watch:
    """Told how a run goes on; does nothing by itself."""

    def started(self, record: dict[str, Any]) -> None:
        """The run begins; `record` says what it will do and what is done already."""

    def guide(self, name: str) -> None:
        """Training of a guide begins."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is over."""

    def scoring(self, name: str) -> None:
        """A guide is trained, and is being scored."""

    def scored(self, entry: dict[str, Any]) -> None:
        """A guide is done."""

    def drawing(self, name: str) -> None:
        """Posterior draws of the best guide are being made."""


def execute(
    config: Config, out: str | Path, *, resume: bool = False, command: str = "", watch: Watch | None = None
) -> dict[str, Any]:
    """Train and score the guides of a run, one after the other from the same initial network, and record it all.

    The folder then holds `results.json`, `<guide>.safetensors` of each guide, and `posterior.nc` of the guide with
    the highest ELBO, which looks at the first 1,000 test examples. The record is written after each guide. The test
    part is scored once for each, after its last epoch.

    Args:
        config: The settings.
        out: The run's folder, empty or not there yet; with `resume`, one in which the same run was begun.
        resume: Keep the guides that are done, and go on with the others from their checkpoints.
        command: The command line, for the record.
        watch: Told about progress.

    Returns:
        The record, as in `results.json`.

    Raises:
        RunError: The folder is taken, or holds another run.
        OSError: The folder cannot be written.
        NonFiniteLossError: A loss became NaN; what was done before is kept.
    """
    folder = Path(out)
    done = _look_into(folder, config, resume)
    split = load_split(config)
    model = make_model(config, split)
    try_writing(folder)
    with suited_threads(model.net):
        return _carry_on(config, folder, split, model, done, resume=resume, command=command, watch=watch or Watch())


def _carry_on(
    config: Config,
    folder: Path,
    split: DataSplit,
    model: BayesianModel,
    done: dict[str, Any] | None,
    *,
    resume: bool,
    command: str,
    watch: Watch,
) -> dict[str, Any]:
    """Do what is left to do of a run."""
    begin = perf_counter()
    record = done or _outline(config, split, model, command)
    before = float(record["seconds"])
    write_record(folder, record)
    watch.started(record)
    finished = {entry["name"]: entry for entry in record["guides"]}
    for name in config.guides:
        if name in finished and (folder / finished[name]["checkpoint"]).is_file():
            continue
        party = assemble(config, split, name)
        watch.guide(name)
        fitted = _train(config, party, folder / f"{name}.safetensors", resume, watch)
        watch.scoring(name)
        finished[name] = _entry(config, party, name, fitted)
        record["guides"] = [finished[guide] for guide in config.guides if guide in finished]
        record["posterior_of"] = None
        record["seconds"] = before + perf_counter() - begin
        write_record(folder, record)
        watch.scored(finished[name])
    best = max(record["guides"], key=lambda entry: float(entry["decomposition"]["elbo"]))["name"]
    if record["posterior_of"] != best or not (folder / POSTERIOR).is_file():
        watch.drawing(best)
        party = assemble(config, split, best)
        load(folder / f"{best}.safetensors", party.model, party.guide)
        record["posterior_draws"] = _write_posterior(party, folder / POSTERIOR, config.seed)
        record["posterior_of"] = best
        record["seconds"] = before + perf_counter() - begin
        write_record(folder, record)
    return record


def _look_into(folder: Path, config: Config, resume: bool) -> dict[str, Any] | None:
    """The record of the run begun in a folder; `None` where the folder is free."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"run folder {folder}: there is a file of this name; choose another with --out")
    # A run killed before its first record leaves nothing but unfinished writes, which are hidden.
    if not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir()):
        return None
    if not resume:
        raise RunError(
            f"run folder {folder}: it is not empty; add --resume to go on with the run in it, or choose another "
            "with --out"
        )
    if not (folder / RECORD).is_file():
        raise RunError(f"run folder {folder}: it holds other files and no {RECORD}; choose another with --out")
    record = read_record(folder)
    if different := settings_of(folder, record).differences(config):
        words = "; ".join(f"{name} was {then!r} and is now {now!r}" for name, (then, now) in different.items())
        raise RunError(
            f"run folder {folder}: it holds a run of other settings: {words}. Give the settings it was begun with (or "
            "none but --resume and --out), or choose another folder with --out"
        )
    return record


def _outline(config: Config, split: DataSplit, model: BayesianModel, command: str) -> dict[str, Any]:
    """The record of a run that has not trained anything yet."""
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
        "data": {
            "name": split.name,
            "title": split.title,
            "train": len(split.x_train),
            "test": len(split.x_test),
            "classes": split.num_classes,
            "task": split.task,
        },
        "model": {
            "name": config.model,
            "description": describe_network(config, model, split),
            "random": random,
            "parameters": sum(parameter.numel() for parameter in model.net.parameters()),
        },
        "prior": {"text": repr(model.prior(random[0])), "improper": model.improper},
        "estimator": config.estimator,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "posterior_of": None,
        "guides": [],
    }


def _train(config: Config, party: Party, checkpoint: Path, resume: bool, watch: Watch) -> Fit:
    return fit(
        party.model,
        party.guide,
        party.train,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        lr_alpha=config.lr_alpha,
        estimator=config.estimator,  # type: ignore[arg-type]
        seed=config.seed,
        progress=False,
        checkpoint=checkpoint,
        resume=resume,
        callback=watch.epoch,
    )


def _entry(config: Config, party: Party, name: str, fitted: Fit) -> dict[str, Any]:
    """What the record says of a guide."""
    scores = score(party, MODES, seed=config.seed, curve=CURVE)
    decomposition = terms(party, seed=config.seed)
    sites = [site for site, facts in party.model.sites.items() if facts.role != "scale"]
    return {
        "name": name,
        "title": GUIDES[name].title,
        "seconds": fitted.seconds,
        "checkpoint": f"{name}.safetensors",
        "decomposition": decomposition.to_dict(),
        "rows": scores.rows,
        "history": {key: fitted.history[key] for key in ("epoch", "elbo", "data", "kl", "kl_weight")},
        "reliability": {mode: bins for mode, bins in scores.reliability.items() if mode != "mc:1"},
        "by_samples": scores.curve,
        "posterior": noise(party.guide, sites),
    }


def _write_posterior(party: Party, path: Path, seed: int) -> int:
    """Write posterior draws for ArviZ, in one piece; returns their number."""
    with warnings.catch_warnings():
        # ArviZ 0.23 announces its next version at import.
        warnings.simplefilter("ignore", FutureWarning)
        from pyrostoch.diagnose import to_arviz

        weights = sum(site.init.numel() for site in party.model.sites.values())
        draws = min(_MOST_DRAWS, max(_FEWEST_DRAWS, _POSTERIOR_NUMBERS // weights))
        x, y = (part[:_POSTERIOR_EXAMPLES] for part in party.test)
        found = to_arviz(party.model, party.guide, (x, y), draws=draws, seed=seed)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            found.to_netcdf(str(temporary))
            os.replace(temporary, path)
        except OSError as error:
            raise OSError(
                error.errno, f"{path}: the posterior draws cannot be written: {error.strerror or error}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return draws

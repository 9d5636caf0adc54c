"""A saved run: its record, and its trained guides, loaded from the folder of the run."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyrostoch._checks import check_choice, name_list
from pyrostoch._user_file import absolute_name, digests
from pyrostoch.data import DataSplit, ImageSchema, Schema
from pyrostoch.data.schema import Task
from pyrostoch.runs.config import Config
from pyrostoch.runs.defaults import choose_device
from pyrostoch.runs.experiment import Experiment, build_experiment, load_data
from pyrostoch.runs.folder import RECORD_FILE, RunError, find_run, numbered_folders, read_record
from pyrostoch.runs.registry import short_name
from pyrostoch.training.checkpoint import load

__all__ = [
    "SavedRun",
    "checkpoint_name",
    "file_stem",
    "find_unfinished",
    "read_config",
    "saved_settings",
    "warn_of_changed_files",
]


def checkpoint_name(config: Config, guide: str) -> str:
    """Name of the file with a trained guide: that of the last step of training.

    Args:
        config: The settings.
        guide: Name of the guide.
    """
    return f"{file_stem(guide)}.selection.safetensors" if config.conditional else f"{file_stem(guide)}.safetensors"


def file_stem(guide: str) -> str:
    """Beginning of the name of a guide's files: its name, or those of its file and class.

    Args:
        guide: Name of the guide.

    Example:
        >>> file_stem("additive"), file_stem("/home/me/my_guides.py:MyGuide")
        ('additive', 'my_guides.MyGuide')
    """
    return short_name(guide).replace(".py:", ".")


def read_config(folder: Path, record: dict[str, Any]) -> Config:
    """The settings in a record.

    Args:
        folder: The run's folder, for the error message.
        record: The record.

    Returns:
        The settings.

    Raises:
        RunError: The settings are incomplete, or of another version.
    """
    if record.get("kind") == "python":
        raise RunError(f"run {folder}: pyrostoch.write_report wrote it in Python; its model is not in the folder")
    try:
        return Config.from_dict(record["config"])
    except ValueError as error:
        raise RunError(f"run {folder}: {RECORD_FILE} is damaged, or of another version: {error}") from error


def warn_of_changed_files(folder: Path, record: dict[str, Any]) -> None:
    """Warn of files of the user's own that have changed since a run: their network, or guide, may be another one.

    A checkpoint tells whether its parameters fit, and not what the network does with them.

    Args:
        folder: The run's folder.
        record: The record.
    """
    config = record["config"]
    now = digests((config["model"], *config["guides"]))
    changed = [path for path, digest in record.get("files", {}).items() if now.get(path, digest) != digest]
    if changed:
        warnings.warn(
            f"run {folder}: {name_list(changed)} changed since this run: what follows is of the file as it is now, and "
            "may be wrong; restore it, or train again",
            UserWarning,
            stacklevel=3,
        )


def saved_settings(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of the run in a folder, by name, with which it can be resumed.

    Args:
        folder: The folder.
        kind: The command that resumes the run, `"compare"` or `"train"`.

    Returns:
        Settings by name; empty if the folder holds no run.

    Raises:
        RunError: The record is damaged, or the run was made by the other command.
    """
    if not (folder / RECORD_FILE).is_file():
        return {}
    config = read_config(folder, read_record(folder))
    if config.kind != kind:
        raise RunError(
            f"run folder {folder}: it holds a run of `pyrostoch {config.kind}`, not of `pyrostoch {kind}`; resume it "
            "with that command, or choose another folder with --out"
        )
    return {name: value for name, value in vars(config).items() if name != "kind"}


def find_unfinished(base: Path, config: Config, given: Collection[str]) -> Path | None:
    """The newest interrupted run of a name whose settings agree with the given ones.

    Args:
        base: The folder of the first run of this name.
        config: The settings of the run to resume.
        given: Names of the settings that must agree; the others may differ.

    Returns:
        The folder; `None` if every such run is finished.
    """
    for folder in reversed(numbered_folders(base)):
        try:
            record = read_record(folder)
            saved = read_config(folder, record)
        except RunError:
            continue
        # A run writes the posterior draws last.
        finished = record.get("posterior_of") and {guide["name"] for guide in record["guides"]} >= set(saved.guides)
        if not finished and not saved.differences(config).keys() & {"kind", *given}:
            return folder
    return None


@dataclass(frozen=True)
class SavedRun:
    """A run, finished or not, in its folder.

    Args:
        folder: The folder.
        record: The record, as in `results.json`.
        config: The settings.
    """

    folder: Path
    record: dict[str, Any]
    config: Config

    @classmethod
    def open(cls, run: str) -> SavedRun:
        """Read the record of a run.

        Args:
            run: Path of the folder, path of its `results.json`, or name of the folder in `runs/`.

        Returns:
            The run.

        Raises:
            FileNotFoundError: There is no such folder.
            RunError: The folder holds no run, or its record is damaged or of another version.
        """
        folder = find_run(run)
        record = read_record(folder)
        return cls(folder, record, read_config(folder, record))

    def finished_guides(self, only: Sequence[str] = ()) -> list[str]:
        """Names of the guides that are trained and scored.

        Args:
            only: Names to select; all by default.

        Returns:
            The names, in the order of training.

        Raises:
            ValueError: A selected guide is not finished or not part of the run.
            RunError: No guide is finished.
        """
        names = [guide["name"] for guide in self.record["guides"]]
        if not names:
            raise RunError(
                f"run {self.folder}: no guide is finished yet; resume the run by: pyrostoch {self.config.kind} "
                f"--resume --out {self.folder}"
            )
        chosen = [absolute_name(name) for name in only]
        for name in chosen:
            check_choice(f"guide of run {self.folder}", name, names)
        return [name for name in names if not chosen or name in chosen]

    def chosen_guide(self, guide: str | None = None) -> str:
        """The guide that a command works with: a given one, else that with the highest ELBO.

        Args:
            guide: Its name; `None` where it was left out.

        Raises:
            ValueError: It is not finished or not part of the run.
            RunError: No guide is finished.
        """
        names = self.finished_guides([guide] if guide else ())
        best: str = self.record["posterior_of"]
        return best if best in names else names[0]

    def load_guide(self, guide: str, *, data_dir: str | None = None, device: str | None = None) -> Experiment:
        """Load a trained guide from its checkpoint, with its model and data.

        Args:
            guide: Name of the guide.
            data_dir: Folder of the data, if they have been moved since the run.
            device: Device to compute on; default: that of the training if this machine has it, else the CPU.

        Returns:
            The experiment, with the parameters of the checkpoint.

        Raises:
            CheckpointError: The checkpoint is damaged, or belongs to another run.
            FileNotFoundError: The checkpoint or the data are missing.
            RunError: The data are not those of the run.
        """
        warn_of_changed_files(self.folder, self.record)
        config = replace(self.config, device=choose_device(device) if device else self._training_device())
        saved_dir = config.data_dir if config.data_dir and Path(config.data_dir).is_dir() else None
        config = replace(config, data_dir=data_dir or saved_dir)
        split = load_data(config)
        sizes = {"train": len(split.x_train), "test": len(split.x_test)}
        saved_sizes = {part: self.record["data"].get(part) for part in sizes}
        if sizes != saved_sizes:
            raise RunError(
                f"run {self.folder}: it was trained on {saved_sizes['train']} and scored on {saved_sizes['test']} "
                f"examples, the data in {split.source} have {sizes['train']} and {sizes['test']}; give the same data "
                "with --data-dir"
            )
        experiment = build_experiment(config, split, guide)
        load(self.folder / checkpoint_name(config, guide), experiment.model, experiment.guide)
        return experiment

    def load_for_rows(self, guide: str, device: str | None = None) -> tuple[Experiment, Schema | ImageSchema]:
        """Load a trained guide of a run on a CSV file or images, to predict others; the run's own are not needed.

        Args:
            guide: Name of the guide.
            device: Device to compute on; default: that of the training if this machine has it, else the CPU.

        Returns:
            The experiment, whose data are zeros, and how rows or images become inputs.

        Raises:
            RunError: The run was made on other data.
        """
        content = self.record["data"].get("schema")
        if not content:
            raise RunError(
                f"run {self.folder}: it was trained on {self.record['data']['title']}; only a network that was trained "
                "on a CSV file, or on a folder of images, can predict others"
            )
        if "height" in content:
            images = ImageSchema.from_dict(content)
            return self._on_zeros(guide, device, images, images.shape, len(images.classes)), images
        schema = Schema.from_dict(content)
        regression = schema.task == "regression"
        scale = (schema.target_mean, schema.target_std) if regression else None
        classes = None if regression else len(schema.classes)
        return self._on_zeros(guide, device, schema, (len(schema.entries),), classes, scale), schema

    def _on_zeros(
        self,
        guide: str,
        device: str | None,
        schema: Schema | ImageSchema,
        shape: tuple[int, ...],
        classes: int | None,
        scale: tuple[float, float] | None = None,
    ) -> Experiment:
        """A trained guide on as many zeros as there were training examples."""
        warn_of_changed_files(self.folder, self.record)
        config = replace(self.config, device=choose_device(device) if device else self._training_device())
        count = int(self.record["data"]["train"])
        x = torch.zeros(1, *shape, dtype=getattr(torch, config.dtype)).expand(count, *shape)
        y = torch.zeros(count, dtype=torch.int64) if classes else torch.zeros(count, 1, dtype=x.dtype)
        name = self.record["data"]["title"]
        task: Task = "classification" if classes else "regression"
        split = DataSplit(name, name, task, x, y, x[:0], y[:0], classes, shape, name, scale, schema)
        experiment = build_experiment(config, split, guide)
        load(self.folder / checkpoint_name(config, guide), experiment.model, experiment.guide)
        return experiment

    def _training_device(self) -> str:
        """The device of the training if this machine has it, else the CPU."""
        try:
            return choose_device(self.config.device)
        except ValueError:
            return "cpu"

    def __str__(self) -> str:
        return f"{self.config.kind} of {name_list(self.config.guides)} on {self.config.data}, in {self.folder}"

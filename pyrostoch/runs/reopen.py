"""Reading a run again: its record, and its guides as they were trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyrostoch._checks import check_choice, name_list
from pyrostoch.runs.config import Config
from pyrostoch.runs.defaults import choose_device
from pyrostoch.runs.folder import RECORD, RunError, named, read_record, siblings
from pyrostoch.runs.parties import Party, assemble, load_split
from pyrostoch.training.checkpoint import load

__all__ = ["Run", "recorded", "settings_of", "unfinished"]


def settings_of(folder: Path, record: dict[str, Any]) -> Config:
    """The settings that stand in a record.

    Args:
        folder: The run's folder, for the message.
        record: The record.

    Returns:
        The settings.

    Raises:
        RunError: They are not whole, or of another version.
    """
    try:
        return Config.from_dict(record["config"])
    except ValueError as error:
        raise RunError(f"run {folder}: {RECORD} is damaged, or of another version: {error}") from error


def recorded(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of the run begun in a folder, by name; none where nothing was begun.

    Args:
        folder: The folder.
        kind: The kind of run that is to go on.

    Returns:
        Settings by name.

    Raises:
        RunError: The record is damaged, or of another kind of run.
    """
    if not (folder / RECORD).is_file():
        return {}
    config = settings_of(folder, read_record(folder))
    if config.kind != kind:
        raise RunError(
            f"run folder {folder}: it holds a run of `pyrostoch {config.kind}`, not of `pyrostoch {kind}`; resume it "
            "by its own command, or choose another folder with --out"
        )
    return {name: value for name, value in vars(config).items() if name != "kind"}


def unfinished(base: Path, config: Config, given: Collection[str]) -> Path | None:
    """The newest of the runs under a name that was cut short and has the settings wanted.

    Args:
        base: The folder that the first run under this name got.
        config: The settings wanted.
        given: Names of those that must agree; the others are the run's own.

    Returns:
        The folder; `None` where every such run is finished.
    """
    for folder in reversed(siblings(base)):
        try:
            record = read_record(folder)
            own = settings_of(folder, record)
        except RunError:
            continue
        # The posterior draws are the last that a run writes.
        over = record.get("posterior_of") and {entry["name"] for entry in record["guides"]} >= set(own.guides)
        if not over and not own.differences(config).keys() & {"kind", *given}:
            return folder
    return None


@dataclass(frozen=True)
class Run:
    """A run that has been carried out, or begun.

    Args:
        folder: Its folder.
        record: Its record.
        config: Its settings.
    """

    folder: Path
    record: dict[str, Any]
    config: Config

    @classmethod
    def open(cls, run: str) -> Run:
        """Read the record of a run.

        Args:
            run: Its folder, its `results.json`, or its name below `runs/`.

        Returns:
            The run.

        Raises:
            FileNotFoundError: There is no such folder.
            RunError: The folder holds no run, or a damaged or foreign record.
        """
        folder = named(run)
        record = read_record(folder)
        return cls(folder, record, settings_of(folder, record))

    def finished(self, only: Sequence[str] = ()) -> list[str]:
        """Names of the guides that are done.

        Args:
            only: Names to choose; all by default.

        Returns:
            The names.

        Raises:
            ValueError: A name is not among them.
            RunError: No guide is done.
        """
        names = [entry["name"] for entry in self.record["guides"]]
        if not names:
            raise RunError(
                f"run {self.folder}: no guide is finished yet; go on with: pyrostoch {self.config.kind} --resume --out "
                f"{self.folder}"
            )
        for name in only:
            check_choice(f"guide of run {self.folder}", name, names)
        return [name for name in names if not only or name in only]

    def party(self, guide: str, *, data_dir: str | None = None, device: str | None = None) -> Party:
        """A guide as it was trained, with its model and data.

        Args:
            guide: Its name.
            data_dir: Folder of the data, if they are not where they were.
            device: Where to compute; by default where it was trained, if that device is here.

        Returns:
            The parties.

        Raises:
            CheckpointError: The checkpoint is damaged, or is not of this run.
            FileNotFoundError: The checkpoint or the data are not there.
            RunError: The data are not those of the run.
        """
        config = replace(self.config, device=choose_device(device) if device else self._own_device())
        recorded = config.data_dir if config.data_dir and Path(config.data_dir).is_dir() else None
        config = replace(config, data_dir=data_dir or recorded)
        split = load_split(config)
        facts = {"train": len(split.x_train), "test": len(split.x_test)}
        there = {part: self.record["data"].get(part) for part in facts}
        if facts != there:
            raise RunError(
                f"run {self.folder}: it was trained on {there['train']} and scored on {there['test']} examples, the "
                f"data in {split.source} have {facts['train']} and {facts['test']}; give the same data with --data-dir"
            )
        party = assemble(config, split, guide)
        load(self.folder / f"{guide}.safetensors", party.model, party.guide)
        return party

    def _own_device(self) -> str:
        try:
            return choose_device(self.config.device)
        except ValueError:
            return "cpu"

    def __str__(self) -> str:
        return f"{self.config.kind} of {name_list(self.config.guides)} on {self.config.data}, in {self.folder}"

"""Audits of a run: attackers on what its network sends at a layer, saved in the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch._version import versions
from pyrostoch.layers import Conditional, StochasticLayer
from pyrostoch.obfuscate import Audit, Client, audit
from pyrostoch.runs.folder import RunError, check_writable, write_record
from pyrostoch.runs.registry import short_name
from pyrostoch.runs.saved_run import SavedRun, file_stem
from pyrostoch.runs.threads import limit_threads

__all__ = ["AuditSettings", "audit_run", "drawing_layers", "read_audits", "with_audits"]

_SCHEMA = 1


@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit; see `pyrostoch.obfuscate.audit`.

    Args:
        labels: Whether the client's conditional layers are given the labels.
        queries: Numbers of queries whose mean an attacker reads.
        epochs: The attackers' budget where there is no noise.
        most_epochs: The largest number of epochs on noise.
        inverted: Number of test examples that are attacked by optimization, too.
        seed: Seed of everything that is random.

    Example:
        >>> AuditSettings().queries
        (1, 10, 100)
    """

    labels: bool = False
    queries: tuple[int, ...] = (1, 10, 100)
    epochs: int = 10
    most_epochs: int = 100
    inverted: int = 100
    seed: int = 0


def audit_run(
    saved: SavedRun,
    at: Sequence[str] = (),
    settings: AuditSettings | None = None,
    *,
    guide: str | None = None,
    private: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    data_dir: str | None = None,
    callback: Callable[[str, int, int], None] | None = None,
) -> tuple[Audit, Path]:
    """Audit what the network of a run sends at a layer, and save what was found in the run's folder.

    The attacker's examples are the training data of the run, those that are attacked its test data. It runs on the CPU.

    Args:
        saved: The run.
        at: Names of the modules whose outputs are sent; by default the only layer that draws.
        settings: Settings of the audit.
        guide: Name of the guide; by default that with the highest ELBO.
        private: Private attributes of training and test examples by name.
        data_dir: Folder of the data, if they have been moved since the run.
        callback: Called when a part of the audit begins.

    Returns:
        The audit, and its file; an older one of this guide and layer is replaced.

    Raises:
        ValueError: The run is a regression, or cannot be cut there.
        RunError: No guide is finished, or the data are not those of the run.
        OSError: The folder cannot be written.
    """
    settings = settings or AuditSettings()
    if not saved.record["data"].get("classes"):
        raise ValueError(
            f"run {saved.folder}: it is a regression; an audit compares what is sent with the label of a class, which "
            f"might be sent instead{see('how-to/audit_a_layer')}"
        )
    name = saved.chosen_guide(guide)
    check_writable(saved.folder)
    experiment = saved.load_guide(name, data_dir=data_dir, device="cpu")
    client = Client(experiment.model, experiment.guide, at or _only_layer(experiment.model.net))
    begin = perf_counter()
    with limit_threads(experiment.model.net):
        found = audit(
            client,
            experiment.train,
            experiment.test,
            private=private,
            value_range=_value_range(experiment.train[0], experiment.test[0]),
            callback=callback,
            **vars(settings),
        )
    place = "+".join(client.at).replace("/", "-")
    file = f"audit.{file_stem(name)}.{place}{'.labels' * settings.labels}.json"
    content = {
        "schema": _SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": perf_counter() - begin,
        "versions": versions(),
        "guide": short_name(name),
        "settings": vars(settings),
        "audit": found.to_dict(),
    }
    write_record(saved.folder, content, file)
    return found, saved.folder / file


def drawing_layers(net: nn.Module) -> list[str]:
    """The outermost layers of a network whose outputs are drawn: stochastic ones, and conditional ones of such.

    Args:
        net: The network.

    Example:
        >>> from pyrostoch.layers import StochasticAdditive
        >>> drawing_layers(nn.Sequential(nn.Linear(2, 2), StochasticAdditive(2)))
        ['1']
    """
    found: list[str] = []
    for name, part in net.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        drawn = isinstance(part, Conditional) and any(isinstance(each, StochasticLayer) for each in part.modules())
        if name and not inside and (drawn or isinstance(part, StochasticLayer)):
            found.append(name)
    return found


def read_audits(folder: Path) -> list[dict[str, Any]]:
    """The audits in the folder of a run, in the order of their names.

    Args:
        folder: The folder.

    Returns:
        The content of their files; empty where there are none.

    Raises:
        RunError: A file is damaged, or of another version.
    """
    found = []
    for path in sorted(folder.glob("audit.*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RunError(f"run {folder}: {path.name} is damaged ({error}); delete it, or audit again") from error
        valid = isinstance(content, dict) and content.get("schema") == _SCHEMA
        if not valid or not isinstance(content.get("audit"), dict):
            raise RunError(f"run {folder}: {path.name} is no audit that this version reads; delete it, or audit again")
        found.append(content)
    return found


def with_audits(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run with the audits in its folder, for the report.

    Args:
        folder: The folder.
        record: The record.
    """
    return {**record, "audits": read_audits(folder)}


def _only_layer(net: nn.Module) -> str:
    """The layer that draws, where there is one."""
    drawing = drawing_layers(net)
    if len(drawing) == 1:
        return drawing[0]
    if drawing:
        raise ValueError(
            f"at: {type(net).__name__} draws in several layers, {name_list(drawing)}; name the one whose output is "
            f"sent, or several{see('how-to/audit_a_layer')}"
        )
    raise ValueError(
        f"at: {type(net).__name__} has no stochastic layer, behind which it would be cut; name the module whose "
        f"output is sent, of {name_list([name for name, _ in net.named_modules() if name])}"
        f"{see('how-to/audit_a_layer')}"
    )


def _value_range(*inputs: Tensor) -> float:
    """The largest value of inputs less the smallest one; images lie in [0, 1], and need not fill it."""
    low, high = min(0.0, *(float(x.min()) for x in inputs)), max(1.0, *(float(x.max()) for x in inputs))
    return high - low

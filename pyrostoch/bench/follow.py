"""The course of a training run: what is looked at after an epoch, kept line by line so that nothing is lost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributions import Normal

from pyrostoch.bench.files import write_text
from pyrostoch.guides.ratio import is_zero_mean, log_alpha, weight_distributions
from pyrostoch.prediction.compare import compare
from pyrostoch.training.checkpoint import load

if TYPE_CHECKING:
    from pyrostoch.bench.case import Trained

__all__ = ["Follower", "log_alphas"]

# The course of a run is followed on few images: what is wanted is its shape.
_IMAGES, _SAMPLES, _EVERY = 2000, 5, 2
_TERMS = ("epoch", "elbo", "data", "kl")

Row = Mapping[str, Any]


class Follower:
    """Looks at a network after every epoch, and writes down what it sees.

    Args:
        trained: The network in training, and its data.
        path: The file with a line an epoch.
    """

    def __init__(self, trained: Trained, path: Path) -> None:
        self._trained, self._path = trained, path
        self._lines = {line["epoch"]: line for line in _whole_lines(path)}
        # Without the half of a line that a run leaves when it is killed, so that the next one stands by itself.
        write_text(path, "".join(map(_text, self._lines.values())))

    def __call__(self, row: Row) -> None:
        """Look at the network, and append a line.

        Args:
            row: The epoch's row of the history.
        """
        line = {name: row[name] for name in _TERMS} | self._look(row["epoch"])
        self._lines[row["epoch"]] = line
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_text(line))

    def catch_up(self, checkpoint: Path) -> None:
        """Look at the last epoch of a checkpoint, where the run was cut short between the two.

        Args:
            checkpoint: The file; it need not be there.
        """
        if checkpoint.exists():
            content = load(checkpoint, self._trained.model, self._trained.guide)
            last = {name: values[-1] for name, values in content["training"]["history"].items()}
            if last["epoch"] not in self._lines:
                self(last)

    def columns(self, history: Mapping[str, list[Any]]) -> dict[str, list[float | None]]:
        """The course as lists over the epochs; `None` where nothing was looked at.

        Args:
            history: That of the training run, which has the terms of every epoch.
        """
        terms = zip(*(history[name] for name in _TERMS), strict=True)
        rows = [self._lines.get(values[0], {}) | dict(zip(_TERMS, values, strict=True)) for values in terms]
        names = dict.fromkeys([*_TERMS, *(name for row in rows for name in row)])
        return {name: [row.get(name) for row in rows] for name in names}

    def _look(self, epoch: int) -> dict[str, float]:
        """Scores on the first images, and log alpha; of the later epochs not each."""
        if epoch % _EVERY and epoch > _EVERY:
            return {}
        trained, modes = self._trained, ("mean", f"mc:{_SAMPLES}")
        some = (trained.test[0][:_IMAGES], trained.test[1][:_IMAGES])
        found = compare(trained.model, trained.guide, some, modes=modes, seed=trained.seed)
        return {f"accuracy/{mode}": float(found[mode].accuracy or 0.0) for mode in modes} | log_alphas(trained)


def log_alphas(trained: Trained) -> dict[str, float]:
    """Median, lower and upper quartile of log alpha = log(variance / mean^2) over all random weights with a mean.

    Args:
        trained: The network.

    Returns:
        The three by name; nothing where there is no such weight.
    """
    sites = trained.model.sites
    ratios = [
        log_alpha(distribution).flatten()
        for site, distribution in weight_distributions(trained.guide).items()
        if sites[site].role == "weight" and isinstance(distribution, Normal) and not is_zero_mean(distribution)
    ]
    if not ratios:
        return {}
    with np.errstate(invalid="ignore"):  # between two infinite ones there is no number
        lower, median, upper = np.quantile(torch.cat(ratios).cpu().numpy(), (0.25, 0.5, 0.75))
    return {"log_alpha": float(median), "log_alpha/lower": float(lower), "log_alpha/upper": float(upper)}


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def _text(line: Row) -> str:
    return json.dumps(line) + "\n"

"""Training curves: scores after an epoch, appended to a file line by line so that an interruption loses nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributions import Normal

from pyrostoch.bench.case import Trained
from pyrostoch.bench.files import write_text
from pyrostoch.guides.ratio import is_zero_mean, log_alpha, weight_distributions
from pyrostoch.prediction.compare import compare
from pyrostoch.training.checkpoint import load

__all__ = ["CurveRecorder", "log_alphas"]

# Curves are drawn for their shape, so few images and samples will do, and after the first epochs every second epoch.
_IMAGES, _SAMPLES, _EVERY = 2000, 5, 2
# Columns of the training history that every line repeats.
_TERMS = ("epoch", "elbo", "data", "kl")

Row = Mapping[str, Any]


class CurveRecorder:
    """Scores a network in training after its epochs and appends a line for each epoch to a file.

    Args:
        trained: The network in training and its data.
        path: The file, one JSON object a line; lines of an interrupted run are kept.
    """

    def __init__(self, trained: Trained, path: Path) -> None:
        self._trained, self._path = trained, path
        self._lines = {line["epoch"]: line for line in _whole_lines(path)}
        # Without the incomplete line that a killed run may leave, so that the next line starts a new one.
        write_text(path, "".join(map(_text, self._lines.values())))

    def __call__(self, row: Row) -> None:
        """Score the network and append a line.

        Args:
            row: The epoch's row of the training history.
        """
        line = {name: row[name] for name in _TERMS} | self._scores(row["epoch"])
        self._lines[row["epoch"]] = line
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_text(line))

    def catch_up(self, checkpoint: Path) -> None:
        """Append the line of a checkpoint's last epoch, if the run was interrupted between checkpoint and line.

        Args:
            checkpoint: The file; it need not exist.
        """
        if checkpoint.exists():
            content = load(checkpoint, self._trained.model, self._trained.guide)
            last = {name: values[-1] for name, values in content["training"]["history"].items()}
            if last["epoch"] not in self._lines:
                self(last)

    def columns(self, history: Mapping[str, list[Any]]) -> dict[str, list[float | None]]:
        """The curve as lists over the epochs, by name; `None` in epochs that were not scored.

        Args:
            history: The training history, which has epoch, ELBO, data term and KL of every epoch.
        """
        terms = zip(*(history[name] for name in _TERMS), strict=True)
        rows = [self._lines.get(values[0], {}) | dict(zip(_TERMS, values, strict=True)) for values in terms]
        names = dict.fromkeys([*_TERMS, *(name for row in rows for name in row)])
        return {name: [row.get(name) for row in rows] for name in names}

    def _scores(self, epoch: int) -> dict[str, float]:
        """Accuracy on the first test images, and log alpha; empty in odd epochs from the third on."""
        if epoch % _EVERY and epoch > _EVERY:
            return {}
        trained, modes = self._trained, ("mean", f"mc:{_SAMPLES}")
        data = (trained.test[0][:_IMAGES], trained.test[1][:_IMAGES])
        scores = compare(trained.model, trained.guide, data, modes=modes, seed=trained.seed)
        return {f"accuracy/{mode}": float(scores[mode].accuracy or 0.0) for mode in modes} | log_alphas(trained)


def log_alphas(trained: Trained) -> dict[str, float]:
    """Median and quartiles of log alpha = log(variance / mean^2) over all Gaussian weights with a mean not fixed at 0.

    Args:
        trained: The network.

    Returns:
        `log_alpha`, `log_alpha/lower` and `log_alpha/upper`; empty if there are no such weights.
    """
    sites = trained.model.sites
    ratios = [
        log_alpha(distribution).flatten()
        for site, distribution in weight_distributions(trained.guide).items()
        if sites[site].role == "weight" and isinstance(distribution, Normal) and not is_zero_mean(distribution)
    ]
    if not ratios:
        return {}
    with np.errstate(invalid="ignore"):  # a quantile between two infinite values is NaN
        lower, median, upper = np.quantile(torch.cat(ratios).cpu().numpy(), (0.25, 0.5, 0.75))
    return {"log_alpha": float(median), "log_alpha/lower": float(lower), "log_alpha/upper": float(upper)}


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are valid JSON."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def _text(line: Row) -> str:
    return json.dumps(line) + "\n"

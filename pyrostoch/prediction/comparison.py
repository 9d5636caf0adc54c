"""Scores of a network by mode of prediction, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pyrostoch.guides.temperature import temperature_text
from pyrostoch.infer.known_labels import KnownLabels
from pyrostoch.metrics import Reliability
from pyrostoch.records import Record, number, table

__all__ = ["Comparison", "ComparisonRow"]


@dataclass(frozen=True)
class ComparisonRow(Record):
    """Scores of one mode; those that do not apply to the likelihood are `None`.

    Args:
        mode: The mode, `"mean"`, `"mc:20"`, ...
        num_samples: Number of draws averaged; 1 for a mode that draws nothing.
        seconds: Wall time of predicting all examples.
        nll: Mean negative log predictive probability or density, in nats per example.
        nll_stderr: Standard error of `nll`.
        accuracy: Fraction of labels predicted correctly.
        accuracy_stderr: Binomial standard error of `accuracy`.
        brier: Brier score, squares summed over classes.
        ece: Expected calibration error.
        rmse: Root mean squared error of the predictive mean; `None` where the observations have no mean.
        rmse_stderr: Standard error of `rmse`.
        labels: `"known"` where layers that are conditional on the class were given the targets; such scores say nothing
            of unknown examples.
    """

    mode: str
    num_samples: int
    seconds: float
    nll: float
    nll_stderr: float
    accuracy: float | None = None
    accuracy_stderr: float | None = None
    brier: float | None = None
    ece: float | None = None
    rmse: float | None = None
    rmse_stderr: float | None = None
    labels: KnownLabels = None

    @property
    def title(self) -> str:
        """The mode, and whether labels were known."""
        return self.mode if self.labels is None else f"{self.mode}, labels known"

    def to_dict(self) -> dict[str, Any]:
        """The scores that apply, by name."""
        return {name: value for name, value in super().to_dict().items() if value is not None}


@dataclass(frozen=True)
class Comparison(Record):
    """Scores by mode.

    Args:
        num_examples: Number of examples scored: those of which the likelihood masks every target are left out.
        rows: One row per mode.
        reliability: For classes: confidence and accuracy by bin, by mode.
        heads: For several heads (`likelihoods.Joint`): the scores of each of which anything is observed, by name. The
            rows then have the log density of the targets of all heads together, which depend on the same draws, and
            nothing else.
        loss: Whether the likelihood is a loss (`likelihoods.Loss`): what is called NLL is then no density's.
        temperatures: Those other than 1 at which the guide or parts of it were trained: a cold or warm posterior.
    """

    num_examples: int
    rows: tuple[ComparisonRow, ...]
    reliability: dict[str, Reliability]
    heads: dict[str, Comparison] = field(default_factory=dict)
    loss: bool = False
    temperatures: tuple[float, ...] = ()

    def __getitem__(self, mode: str) -> ComparisonRow:
        """The row of a mode."""
        for row in self.rows:
            if row.mode == mode:
                return row
        raise KeyError(f"{mode!r}: expected one of the modes {', '.join(repr(row.mode) for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """`num_examples`, `rows` and `reliability` as plain data."""
        found: dict[str, Any] = {
            "num_examples": self.num_examples,
            "rows": [row.to_dict() for row in self.rows],
            "reliability": {mode: bins.to_dict() for mode, bins in self.reliability.items()},
        }
        if self.heads:
            found["heads"] = {name: scores.to_dict() for name, scores in self.heads.items()}
        if self.temperatures:
            found["temperatures"] = list(self.temperatures)
        return {**found, "loss": True} if self.loss else found

    def __str__(self) -> str:
        if self.heads or self.loss:
            head: tuple[str, ...] = ("mode", "loss" if self.loss else "NLL", "seconds")
            cells: list[tuple[Any, ...]] = [
                (row.title, _with_error(row.nll, row.nll_stderr), number(row.seconds, 2)) for row in self.rows
            ]
        elif self.reliability:
            head = ("mode", "accuracy %", "NLL", "Brier", "ECE", "seconds")
            cells = [
                (
                    row.title,
                    f"{100 * (row.accuracy or 0.0):.2f} ± {100 * (row.accuracy_stderr or 0.0):.2f}",
                    *(number(value) for value in (row.nll, row.brier, row.ece)),
                    number(row.seconds, 2),
                )
                for row in self.rows
            ]
        else:
            head = ("mode", "RMSE", "NLL", "seconds")
            cells = [
                (
                    row.title,
                    _with_error(row.rmse, row.rmse_stderr),
                    _with_error(row.nll, row.nll_stderr),
                    number(row.seconds, 2),
                )
                for row in self.rows
            ]
        meanless = not (self.reliability or self.heads or self.loss) and any(row.rmse is None for row in self.rows)
        note = "; no RMSE: the likelihood has no mean of the targets" if meanless else ""
        what = "loss: minus the log of the mean of exp(-loss) over draws, no density's," if self.loss else "NLL"
        trained = f"; guide {temperature_text(self.temperatures)}" if self.temperatures else ""
        below = [f"\n\nHead {name!r}: {scores}" for name, scores in self.heads.items()]
        first = f"{self.num_examples} examples; {what} in nats per example{note}{trained}"
        return f"{first}\n{table(head, cells)}{''.join(below)}"


def _with_error(value: float | None, stderr: float | None) -> str:
    """A score with its standard error, where it has one: that of a single example is not defined."""
    known = stderr is not None and not math.isnan(stderr)
    return f"{number(value)} ± {number(stderr)}" if known else number(value)

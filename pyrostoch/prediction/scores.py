"""Scores of predictions, accumulated over batches, for classes and for numbers, and for each of several heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrostoch.infer.known_labels import KnownLabels
from pyrostoch.likelihoods.parts import is_loss
from pyrostoch.metrics import Classification, Regression, RunningMean
from pyrostoch.metrics.accuracy import correct
from pyrostoch.prediction.comparison import Comparison, ComparisonRow
from pyrostoch.prediction.draw_average import DrawAverage, without_nan
from pyrostoch.prediction.head_averages import HeadAverages
from pyrostoch.protocols import Model

__all__ = ["HeadScores", "NothingToScoreError", "comparison_of"]


class NothingToScoreError(ValueError):
    """Every target of the data is missing."""


class Scores:
    """Scores of one mode, accumulated over batches, for classes or for numbers."""

    def __init__(self, head: str = "") -> None:
        self.head = head
        self.classes: Classification | None = None
        self.numbers = Regression()
        self.examples = RunningMean()
        self.has_mean = True
        self.joint = False
        self.accuracies = RunningMean()

    def update(self, average: DrawAverage | HeadAverages) -> None:
        """Add a batch. Targets that the likelihood masks are left out, and examples of which nothing is observed."""
        y: Any = average.targets
        observed = average.observed
        rows = slice(None) if observed is None else observed.reshape(len(y), -1).any(1)
        found = without_nan(average.results())
        self.examples.update(-found["log_density"][rows])
        if isinstance(average, DrawAverage) and average.classes:
            log_probs = average.log_probs.flatten(0, -2)
            if self.classes is None:
                self.classes = Classification(log_probs.shape[-1])
            labels = slice(None) if observed is None else observed.reshape(-1)
            self.classes.update(log_probs[labels], y.reshape(-1).long()[labels])
            self.joint = average.log_probs.dim() > 2
            if self.joint:
                self.accuracies.update(_share_right(average.log_probs, y, observed)[rows])
            return
        # A time that may be censored has a mean, which is no prediction of both numbers of a target.
        self.has_mean = self.has_mean and "mean" in found and found["mean"].shape == y.shape
        if self.has_mean:
            entries = None if observed is None else observed[rows]
            self.numbers.update(found["log_density"][rows], found["mean"][rows], y[rows], entries)

    def row(self, mode: str, draws: int) -> ComparisonRow:
        """The scores; the time and what was known are filled in by others."""
        if self.examples.count == 0:
            of_head = f" of head {self.head!r}" if self.head else ""
            raise NothingToScoreError(
                f"compare: the likelihood masks every target{of_head} of these data, so there is nothing to score"
            )
        examples = self.examples.compute()
        if self.classes is None:
            numbers = self.numbers.compute() if self.has_mean else None
            return ComparisonRow(
                mode,
                draws,
                0.0,
                examples.value,
                examples.stderr,
                rmse=None if numbers is None else numbers.rmse,
                rmse_stderr=None if numbers is None else numbers.rmse_stderr,
            )
        scores = self.classes.compute()
        nll, nll_stderr, accuracy_stderr = scores.nll, scores.nll_stderr, scores.accuracy_stderr
        if self.joint:  # several labels of an example depend on the same draws and input: average over examples
            nll, nll_stderr = examples.value, examples.stderr
            accuracy_stderr = self.accuracies.compute().stderr
        return ComparisonRow(
            mode,
            draws,
            0.0,
            nll,
            nll_stderr,
            accuracy=scores.accuracy,
            accuracy_stderr=accuracy_stderr,
            brier=scores.brier,
            ece=scores.ece,
        )


def _share_right(log_probs: Tensor, y: Tensor, observed: Tensor | None) -> Tensor:
    """The share of each example's labels, of those observed, that are predicted correctly."""
    right = correct(log_probs.flatten(0, -2), y.reshape(-1).long()).reshape(len(y), -1).double()
    seen = torch.ones_like(right) if observed is None else observed.reshape(len(y), -1).double()
    return (right * seen).sum(1) / seen.sum(1)


class HeadScores:
    """Scores of one mode: of all heads together, under an empty name, and of each.

    Args:
        model: The model.

    Attributes:
        by_head: The scores by head.
        seconds: Wall time of predicting.
        labels: Whether labels were known.
    """

    def __init__(self, model: Model) -> None:
        names: tuple[str, ...] = getattr(getattr(model, "likelihood", None), "head_names", ())
        self.by_head = {name: Scores(name) for name in ("", *names)}
        self.seconds = 0.0
        self.labels: KnownLabels = None

    def update(self, average: DrawAverage | HeadAverages) -> None:
        """Add a batch.

        Args:
            average: Its predictions.
        """
        self.by_head[""].update(average)
        for name, head in average.heads.items() if isinstance(average, HeadAverages) else ():
            self.by_head[name].update(head)


def comparison_of(model: Model, found: dict[str, tuple[int, HeadScores]]) -> Comparison:
    """The scores of all modes as a table, with one for each head.

    Args:
        model: The model.
        found: For each mode the number of draws, and its scores.
    """
    likelihood = getattr(model, "likelihood", None)
    tables = {}
    for head, first in next(iter(found.values()))[1].by_head.items():
        if head and first.examples.count == 0:
            continue  # nothing of it is observed
        rows, reliability, count = [], {}, 0
        for mode, (draws, all_scores) in found.items():
            scores = all_scores.by_head[head]
            count = scores.examples.count
            rows.append(replace(scores.row(mode, draws), seconds=all_scores.seconds, labels=all_scores.labels))
            if scores.classes is not None:
                reliability[mode] = scores.classes.reliability()
        tables[head] = Comparison(count, tuple(rows), reliability, loss=is_loss(likelihood, head))
    whole = tables.pop("")
    return replace(whole, heads=tables)

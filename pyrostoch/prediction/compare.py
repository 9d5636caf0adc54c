"""Scores of one network on held-out data, under several modes of prediction."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import check_count
from pyrostoch.infer.batches import Batches
from pyrostoch.infer.known_labels import KnownLabels, known_labels, marked
from pyrostoch.metrics import Classification, Regression, Reliability, RunningMean
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.draw_average import DrawAverage, without_nan
from pyrostoch.prediction.readouts import (
    batches_for,
    batches_on_device,
    check_guide,
    device_of,
    evaluating,
    parse_mode,
    seeded,
)
from pyrostoch.protocols import Data, Guide, Model
from pyrostoch.records import Record, number, table

__all__ = ["Comparison", "ComparisonRow", "accuracy_by_samples", "compare"]


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
    """

    num_examples: int
    rows: tuple[ComparisonRow, ...]
    reliability: dict[str, Reliability]

    def __getitem__(self, mode: str) -> ComparisonRow:
        """The row of a mode."""
        for row in self.rows:
            if row.mode == mode:
                return row
        raise KeyError(f"{mode!r}: expected one of the modes {', '.join(repr(row.mode) for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """`num_examples`, `rows` and `reliability` as plain data."""
        return {
            "num_examples": self.num_examples,
            "rows": [row.to_dict() for row in self.rows],
            "reliability": {mode: bins.to_dict() for mode, bins in self.reliability.items()},
        }

    def __str__(self) -> str:
        if self.reliability:
            head: tuple[str, ...] = ("mode", "accuracy %", "NLL", "Brier", "ECE", "seconds")
            cells: list[tuple[Any, ...]] = [
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
        meanless = not self.reliability and any(row.rmse is None for row in self.rows)
        note = "; no RMSE: the likelihood has no mean of the targets" if meanless else ""
        return f"{self.num_examples} examples; NLL in nats per example{note}\n" + table(head, cells)


def _with_error(value: float | None, stderr: float | None) -> str:
    """A score with its standard error, where it has one: that of a single example is not defined."""
    known = stderr is not None and not math.isnan(stderr)
    return f"{number(value)} ± {number(stderr)}" if known else number(value)


class _Scores:
    """Scores of one mode, accumulated over batches, for classes or for numbers."""

    def __init__(self) -> None:
        self.classes: Classification | None = None
        self.numbers = Regression()
        self.examples = RunningMean()
        self.has_mean = True
        self.joint = False
        self.seconds = 0.0
        self.labels: KnownLabels = None

    def update(self, average: DrawAverage, y: Tensor) -> None:
        """Add a batch. Targets that the likelihood masks are left out, and examples of which nothing is observed."""
        observed = average.observed
        rows = slice(None) if observed is None else observed.reshape(len(y), -1).any(1)
        found = without_nan(average.results())
        self.examples.update(-found["log_density"][rows])
        if average.classes:
            log_probs = average.log_probs.flatten(0, -2)
            if self.classes is None:
                self.classes = Classification(log_probs.shape[-1])
            labels = slice(None) if observed is None else observed.reshape(-1)
            self.classes.update(log_probs[labels], y.reshape(-1).long()[labels])
            self.joint = average.log_probs.dim() > 2
            return
        # A time that may be censored has a mean, which is no prediction of both numbers of a target.
        self.has_mean = self.has_mean and "mean" in found and found["mean"].shape == y.shape
        if self.has_mean:
            entries = None if observed is None else observed[rows]
            self.numbers.update(found["log_density"][rows], found["mean"][rows], y[rows], entries)

    def row(self, mode: str, draws: int) -> ComparisonRow:
        return replace(self._row(mode, draws), labels=self.labels)

    def _row(self, mode: str, draws: int) -> ComparisonRow:
        if self.examples.count == 0:
            raise ValueError("compare: the likelihood masks every target of these data, so there is nothing to score")
        examples = self.examples.compute()
        if self.classes is None:
            numbers = self.numbers.compute() if self.has_mean else None
            return ComparisonRow(
                mode,
                draws,
                self.seconds,
                examples.value,
                examples.stderr,
                rmse=None if numbers is None else numbers.rmse,
                rmse_stderr=None if numbers is None else numbers.rmse_stderr,
            )
        scores = self.classes.compute()
        nll, nll_stderr = scores.nll, scores.nll_stderr
        if self.joint:  # several labels per example depend on the same draws: average over examples
            nll, nll_stderr = examples.value, examples.stderr
        return ComparisonRow(
            mode,
            draws,
            self.seconds,
            nll,
            nll_stderr,
            accuracy=scores.accuracy,
            accuracy_stderr=scores.accuracy_stderr,
            brier=scores.brier,
            ece=scores.ece,
        )


def compare(
    model: Model,
    guide: Guide,
    data: Data,
    *,
    modes: Sequence[str] = ("mean", "mc:1", "mc:20"),
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    labels: KnownLabels = None,
) -> Comparison:
    """Score a network under several modes of prediction: accuracy, NLL, Brier score and calibration, or RMSE and NLL.

    The scores are accumulated batch by batch, and no prediction is kept. Targets that the likelihood masks are left
    out. Where the accuracy of `"mean"` differs from that of many samples, the network has stored information in the
    variances of its weights.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: Held-out data: `(x, y)`, a `Dataset` or a `DataLoader`.
        modes: Modes as for `predict`: `"mean"`, `"moments"`, `"mc:K"`.
        batch_size: Largest number of examples that run through the network at a time; fewer if activations are large.
        device: The model's device, to which the data are moved batch by batch; found by default.
        seed: Seed of the draws, the same for every mode; torch's random state is restored afterwards. Without it, draws
            continue from the present random state.
        labels: `"known"` hands the targets to layers that are conditional on the class (`layers.Conditional`); every
            row then says so. By default nothing of the targets reaches the network.

    Returns:
        A row for each mode, and the bins of the reliability diagrams.

    Raises:
        ValueError: A mode is unknown or given twice; or the data are empty, not finite or do not fit the model.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 2), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=20)
        >>> x = torch.randn(20, 2)
        >>> scores = compare(model, ps.guides.Additive(model), (x, (x[:, 0] > 0).long()), modes=("mean", "mc:5"))
        >>> [row.mode for row in scores.rows], 0 <= scores["mc:5"].accuracy <= 1
        (['mean', 'mc:5'], True)

    References:
        Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", 2017; Brier, "Verification of
        forecasts expressed in terms of probability", 1950.
    """
    names = [modes] if isinstance(modes, str) else list(modes)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"modes: expected at least one, and each only once, got {names}")
    parsed = {mode: parse_mode(mode) for mode in names}
    check_guide(guide)
    device = device_of(model, guide, device)
    rows, reliability, count = [], {}, 0
    with known_labels(model, labels):
        batches = batches_for(model, data, batch_size)
        for mode, (name, draws) in parsed.items():
            sampler = PosteriorSampler(model, guide, name, draws)
            with seeded(seed, device), evaluating(model, guide):
                scores = _scores_of(model, sampler, batches, device)
            count = scores.examples.count
            rows.append(scores.row(mode, sampler.num_samples))
            if scores.classes is not None:
                reliability[mode] = scores.classes.reliability()
    return Comparison(count, tuple(rows), reliability)


def _scores_of(model: Model, sampler: PosteriorSampler, batches: Batches, device: torch.device | None) -> _Scores:
    """The scores of one mode on all examples."""
    scores = _Scores()
    for batch, targets in batches_on_device(batches, device):
        start = time.perf_counter()
        scores.labels = marked(model, batch)
        for x, examples in sampler.split_batch(batch):
            average = DrawAverage(model, targets[examples])
            for statistics in sampler.run(x, average.statistics):
                average.add(statistics)
            scores.update(average, targets[examples])
        _synchronize(device)
        scores.seconds += time.perf_counter() - start
    return scores


def accuracy_by_samples(
    model: Model,
    guide: Guide,
    data: Data,
    samples: Sequence[int] = (1, 2, 5, 10, 20),
    *,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    labels: KnownLabels = None,
) -> Comparison:
    """Scores as a function of the number of samples averaged, from one set of draws: K samples are the first K draws.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: Held-out data: `(x, y)`, a `Dataset` or a `DataLoader`.
        samples: Numbers of samples.
        batch_size: Largest number of examples that run through the network at a time; fewer if activations are large.
        device: As in `compare`.
        seed: As in `compare`.
        labels: As in `compare`.

    Returns:
        A row `"mc:K"` for each K in rising order; its seconds are those of the first K draws.

    Raises:
        ValueError: `samples` is empty or has entries that are not positive whole numbers; or the data do not fit.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(), num_data=20)
        >>> x = torch.randn(20, 2)
        >>> scores = accuracy_by_samples(model, ps.guides.Additive(model), (x, x[:, :1]), samples=(1, 3))
        >>> [row.mode for row in scores.rows]
        ['mc:1', 'mc:3']
    """
    wanted = sorted({check_count("samples", k) for k in samples})
    if not wanted:
        raise ValueError("samples: expected whole numbers from 1 up, got none")
    check_guide(guide)
    device = device_of(model, guide, device)
    scores = {k: _Scores() for k in wanted}
    with known_labels(model, labels), seeded(seed, device), evaluating(model, guide):
        sampler = PosteriorSampler(model, guide, "mc", wanted[-1])
        for batch, targets in batches_on_device(batches_for(model, data, batch_size), device):
            for found in scores.values():
                found.labels = marked(model, batch)
            for x, examples in sampler.split_batch(batch):
                average, spent = DrawAverage(model, targets[examples]), 0.0
                start = time.perf_counter()
                for k, statistics in enumerate(sampler.run(x, average.statistics), 1):
                    average.add(statistics)
                    if k in scores:
                        _synchronize(device)
                        spent += time.perf_counter() - start
                        scores[k].update(average, targets[examples])
                        scores[k].seconds += spent
                        start = time.perf_counter()
    count = scores[wanted[-1]].examples.count
    modes = {k: f"mc:{k}" for k in wanted}
    rows = tuple(scores[k].row(mode, k) for k, mode in modes.items())
    classes = {mode: scores[k].classes for k, mode in modes.items()}
    return Comparison(count, rows, {mode: found.reliability() for mode, found in classes.items() if found is not None})


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)

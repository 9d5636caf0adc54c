"""Scores of one network on held-out data under several ways to predict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrostoch.infer.batches import as_batches
from pyrostoch.metrics import Classification, Regression, Reliability, RunningMean
from pyrostoch.prediction.batched_sampling import Drawing
from pyrostoch.prediction.readouts import DrawAverage, evaluating, home_of, parse_mode, seeded, visit
from pyrostoch.records import Record, number, table

__all__ = ["Comparison", "ComparisonRow", "accuracy_by_samples", "compare"]


@dataclass(frozen=True)
class ComparisonRow(Record):
    """Scores of one mode; those that do not apply to the likelihood are `None`.

    Args:
        mode: The mode, `"mean"`, `"mc:20"`, ...
        num_samples: Draws averaged; 1 for a mode that draws nothing.
        seconds: Wall time of predicting all examples.
        nll: Mean negative log predictive probability or density, nats an example.
        nll_stderr: Its standard error.
        accuracy: Fraction of labels hit.
        accuracy_stderr: Its binomial standard error.
        brier: Brier score, squares summed over classes.
        ece: Expected calibration error.
        rmse: Root mean squared error of the predictive mean.
        rmse_stderr: Its standard error.
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

    def to_dict(self) -> dict[str, Any]:
        """The scores that apply, by name."""
        return {name: value for name, value in super().to_dict().items() if value is not None}


@dataclass(frozen=True)
class Comparison(Record):
    """Scores by mode.

    Args:
        num_examples: Number of examples scored.
        rows: One row a mode.
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
        raise KeyError(f"{mode!r}: compared were {', '.join(repr(row.mode) for row in self.rows)}")

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
                    row.mode,
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
                    row.mode,
                    f"{number(row.rmse)} ± {number(row.rmse_stderr)}",
                    f"{number(row.nll)} ± {number(row.nll_stderr)}",
                    number(row.seconds, 2),
                )
                for row in self.rows
            ]
        return f"{self.num_examples} examples; NLL in nats an example\n" + table(head, cells)


class _Scores:
    """Scores of one mode over a stream of batches, of classes or of numbers as the first batch shows."""

    def __init__(self) -> None:
        self.classes: Classification | None = None
        self.numbers = Regression()
        self.examples: RunningMean | None = None
        self.seconds = 0.0

    def update(self, average: DrawAverage, y: Tensor) -> None:
        if not average.classes:
            found = average.results()
            self.numbers.update(found["log_density"], found["mean"], y)
            return
        log_probs = average.log_probs.flatten(0, -2)
        if self.classes is None:
            self.classes = Classification(log_probs.shape[-1])
        self.classes.update(log_probs, y.reshape(-1).long())
        if average.log_probs.dim() > 2:  # many labels an example, which share its draws: no mean over single labels
            self.examples = self.examples or RunningMean()
            self.examples.update(-average.log_density)

    def row(self, mode: str, draws: int) -> ComparisonRow:
        if self.classes is None:
            numbers = self.numbers.compute()
            return ComparisonRow(
                mode,
                draws,
                self.seconds,
                numbers.nll,
                numbers.nll_stderr,
                rmse=numbers.rmse,
                rmse_stderr=numbers.rmse_stderr,
            )
        scores = self.classes.compute()
        nll, nll_stderr = scores.nll, scores.nll_stderr
        if self.examples is not None:
            joint = self.examples.compute()
            nll, nll_stderr = joint.value, joint.stderr
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
    model: Any,
    guide: Any,
    data: Any,
    *,
    modes: Sequence[str] = ("mean", "mc:1", "mc:20"),
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
) -> Comparison:
    """Score a network on data under several ways to predict: accuracy, NLL, Brier score, calibration, or RMSE and NLL.

    Every score is accumulated batch by batch, so no prediction is kept. Where the mean's accuracy differs from that of
    many samples, the information lies in the variances.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: Held-out data: `(x, y)`, a `Dataset` or a `DataLoader`.
        modes: Modes as for `predict`: `"mean"`, `"moments"`, `"mc:K"`.
        batch_size: Examples run through the network at a time, at most: fewer where activations are large.
        device: Where the data are moved, batch by batch: the model's own device, which is also the default.
        seed: Seed of every mode's draws; torch's random state is left as it was. Without it the draws go on from there.

    Returns:
        A row for each mode, and the reliability diagram's bins.

    Raises:
        ValueError: A mode is unknown or given twice, the data are empty, not finite or do not fit the model.

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
        Guo, Pleiss, Sun, Weinberger 2017, on calibration; Brier 1950.
    """
    names = [modes] if isinstance(modes, str) else list(modes)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"modes: expected at least one, and each once, got {names}")
    parsed = {mode: parse_mode(mode) for mode in names}
    home = home_of(model, guide, device)
    batches = as_batches(data, batch_size)
    rows, reliability, count = [], {}, 0
    for mode, (name, draws) in parsed.items():
        scores, count = _Scores(), 0
        drawing = Drawing(model, guide, name, draws)
        with seeded(seed, home), evaluating(model, guide):
            for batch, targets in visit(batches, home):
                start = time.perf_counter()
                for x, y in drawing.parts(batch, targets):
                    average = DrawAverage(model, y)
                    for statistics in drawing.each(x, average.statistics):
                        average.add(statistics)
                    scores.update(average, y)
                _wait(home)
                scores.seconds += time.perf_counter() - start
                count += len(targets)
        rows.append(scores.row(mode, draws))
        if scores.classes is not None:
            reliability[mode] = scores.classes.reliability()
    return Comparison(count, tuple(rows), reliability)


def accuracy_by_samples(
    model: Any,
    guide: Any,
    data: Any,
    samples: Sequence[int] = (1, 2, 5, 10, 20),
    *,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
) -> Comparison:
    """Scores against the number of samples averaged, from one pass: fewer samples are a prefix of more.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: Held-out data: `(x, y)`, a `Dataset` or a `DataLoader`.
        samples: Numbers of samples.
        batch_size: Examples run through the network at a time, at most: fewer where activations are large.
        device: As in `compare`.
        seed: As in `compare`.

    Returns:
        A row `"mc:K"` for each K in rising order, its seconds those of the first K draws.

    Raises:
        ValueError: `samples` is empty or holds other than positive whole numbers; the data do not fit.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(), num_data=20)
        >>> x = torch.randn(20, 2)
        >>> scores = accuracy_by_samples(model, ps.guides.Additive(model), (x, x[:, :1]), samples=(1, 3))
        >>> [row.mode for row in scores.rows]
        ['mc:1', 'mc:3']
    """
    wanted = sorted(set(samples))
    if not wanted or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in wanted):
        raise ValueError(f"samples: expected whole numbers from 1 up, got {tuple(samples)}")
    home = home_of(model, guide, device)
    batches = as_batches(data, batch_size)
    scores = {k: _Scores() for k in wanted}
    count = 0
    drawing = Drawing(model, guide, "mc", wanted[-1])
    with seeded(seed, home), evaluating(model, guide):
        for batch, targets in visit(batches, home):
            for x, y in drawing.parts(batch, targets):
                average, spent = DrawAverage(model, y), 0.0
                start = time.perf_counter()
                for k, statistics in enumerate(drawing.each(x, average.statistics), 1):
                    average.add(statistics)
                    if k in scores:
                        _wait(home)
                        spent += time.perf_counter() - start
                        scores[k].update(average, y)
                        scores[k].seconds += spent
                        start = time.perf_counter()
            count += len(targets)
    modes = {k: f"mc:{k}" for k in wanted}
    rows = tuple(scores[k].row(mode, k) for k, mode in modes.items())
    bins = {mode: scores[k].classes for k, mode in modes.items()}
    return Comparison(count, rows, {mode: found.reliability() for mode, found in bins.items() if found is not None})


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)

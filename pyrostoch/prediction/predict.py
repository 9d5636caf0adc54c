"""Predictions: read through the mean, or averaged over posterior draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import batch_size as count_of
from pyrostoch._checks import check_finite
from pyrostoch.infer.batches import to_device
from pyrostoch.prediction.batched_sampling import Drawing
from pyrostoch.prediction.readouts import (
    MODES,
    DrawAverage,
    evaluating,
    home_of,
    parse_mode,
    same_device,
)
from pyrostoch.records import Record, table

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True, eq=False)
class Prediction(Record):
    """What a Bayesian network predicts for n examples, in float64.

    For classes (a `Categorical` likelihood, or one `Bernoulli` an example: no and yes) it holds `probs` and
    `log_probs`, and the uncertainties are entropies in nats; otherwise it holds `mean` and `variance`, and they are
    variances.

    Args:
        mode: The mode's name.
        num_samples: Number of draws averaged.
        total: Uncertainty of the prediction, one value an example (and output).
        aleatoric: Its part that more data would not remove: the mean over draws of each draw's own.
        epistemic: Its part that comes from not knowing the weights: mutual information of label and weights, or the
            variance of the draws' means.
        log_probs: For classes: log of the mean probabilities, (n, C).
        mean: Otherwise: the predictive mean, (n, ...).
        variance: Otherwise: the predictive variance, (n, ...).
        log_density: Log predictive density of the targets, if they were given: log of the mean over draws, nats, (n,).
        treatments: The way each site took through the network.
    """

    mode: str
    num_samples: int
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    log_probs: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    log_density: Tensor | None = None
    treatments: dict[str, str] | None = None

    @property
    def probs(self) -> Tensor:
        """Mean class probabilities, (n, C).

        Raises:
            ValueError: The observations are not classes.
        """
        if self.log_probs is None:
            raise ValueError("probs: the observations are not classes; this prediction has a mean and a variance")
        return self.log_probs.exp()

    def log_prob(self, y: Tensor) -> Tensor:
        """Log probability of the labels under the averaged prediction.

        Args:
            y: Labels, (n,): class indices, or 0 and 1 in any dtype and also of shape (n, 1) for a Bernoulli.

        Returns:
            Nats, (n,).

        Raises:
            ValueError: The prediction is no plain classification (the density then needs the draws: give the targets
                to `predict(..., y=y)` and read `log_density`), or the labels do not fit.
        """
        if self.log_probs is None or self.log_probs.dim() != 2:
            raise ValueError(
                "log_prob: the density of these targets is an average over the draws, which are not kept; call "
                "predict(..., y=y) and read .log_density"
            )
        count, classes = self.log_probs.shape
        if y.shape not in ((count,), (count, 1)):
            raise ValueError(f"log_prob: expected {count} labels of shape ({count},), got shape {tuple(y.shape)}")
        labels = y.reshape(count).to(self.log_probs.device, torch.int64)
        wrong = (labels < 0) | (labels >= classes) | (labels != y.reshape(count).to(labels.device))
        if bool(wrong.any()):
            raise ValueError(
                f"log_prob: expected labels from 0 to {classes - 1}, got {int(wrong.sum())} others, among them "
                f"{y.reshape(count).to(labels.device)[wrong][0].item():g}"
            )
        return self.log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)

    def __len__(self) -> int:
        return len(self.total)

    def __str__(self) -> str:
        draws = "one pass" if not MODES[self.mode].sampled else f"{self.num_samples} samples"
        if self.log_probs is not None:
            what, unit = f"{self.log_probs.shape[-1]} classes", "entropy, nats"
            rows: list[tuple[str, float]] = [("confidence", self.probs.amax(-1).mean().item())]
        else:
            what, unit = f"outputs of shape {tuple(self.total.shape[1:])}", "variance"
            rows = []
        parts = (("total", self.total), ("aleatoric", self.aleatoric), ("epistemic", self.epistemic))
        rows += [(f"{name} {unit}", value.mean().item()) for name, value in parts]
        if self.log_density is not None:
            rows.append(("log density of the targets, nats", self.log_density.mean().item()))
        head = f"Prediction of {len(self)} examples, {what}, mode {self.mode!r} ({draws})"
        return head + "\n" + table(("", "mean over examples"), rows)


def predict(
    model: Any,
    guide: Any,
    x: Any,
    *,
    y: Tensor | None = None,
    mode: str = "mc",
    num_samples: int | None = None,
    joint: bool = False,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
) -> Prediction:
    r"""Predict with a Bayesian network.

    Mode `"mc"` averages over draws, $p(y \mid x) \approx \frac1K \sum_k p(y \mid x, w_k)$, probabilities and not
    logits; mode `"mean"` replaces every weight by its mean and runs once; mode `"moments"` runs once too, while every
    activation carries its mean and variance, and averages over the output's Gaussian (`moments_error` says how far that
    can be trusted). The network is in evaluation mode throughout,
    so drawing weights switches neither BatchNorm nor dropout, and every submodule is put back into its own mode. Draws
    go side by side as far as a fixed amount of memory allows: it does not grow with K.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)` that returns the observations'
            distribution.
        guide: A Pyro guide of that model.
        x: Inputs, or a tuple of inputs that share their first axis, the examples.
        y: Targets, to have their `log_density`.
        mode: `"mean"`, `"mc"` or `"mc:K"`, or `"moments"`: with variances and a Gaussian's fixed points at the output;
            `"moments:closed"` reads classes by a closed approximation, `"moments:full"` carries full covariances
            (memory grows with the square of a layer's width), `"moments:mc"` samples through operations without a
            rule; `"moments:full:mc:closed"` does all of it. `"noise-free"` is the mean with neurons that lose their
            noise.
        num_samples: The K of `"mc"`; 20 by default.
        joint: Draw each weight once per sample for all examples. Otherwise a layer that can draws afresh for each
            example, which keeps each example's prediction exact and makes its Monte-Carlo error independent.
        batch_size: Examples run through the network at a time, at most: fewer where activations are large.
        device: Where the inputs are moved, batch by batch: the model's own device. Without it they must be there.

    Returns:
        The prediction.

    Raises:
        TypeError: Inputs are no tensors, the guide is none, or the model has no `observation`.
        ValueError: The mode is unknown or contradicts `num_samples`; inputs are empty, not finite, or elsewhere than
            the model; targets do not fit; or the guide lacks a site.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> prediction = predict(model, ps.guides.Additive(model), torch.zeros(5, 2), mode="mc:4")
        >>> prediction.probs.shape, prediction.num_samples
        (torch.Size([5, 3]), 4)

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov 2018 (arXiv 1803.03764), on when the mean is no substitute for averaging.
    """
    if not callable(guide):
        raise TypeError(
            f"guide: expected a Pyro guide, got {type(guide).__name__}; where nothing is random, "
            "pyrostoch.guides.Additive(model) is the empty guide"
        )
    name, draws = parse_mode(mode, num_samples)
    x = tuple(x) if isinstance(x, list) else x
    parts = _split(x, y, batch_size)
    where = _placed(x, model, guide, device)
    check_finite("inputs x", x)
    drawing = Drawing(model, guide, name, draws, joint=joint and MODES[name].sampled)

    def pieces() -> Iterator[tuple[Any, DrawAverage]]:
        for part, targets in parts:
            moved = None if targets is None else targets.to(where)
            for piece, y_piece in drawing.parts(to_device(part, where), moved):
                yield piece, DrawAverage(model, y_piece)

    with evaluating(model, guide):
        if drawing.joint:
            # Inputs are moved again for each few draws, so that only one batch of them is on the device.
            averages: list[DrawAverage] = []
            for chunk in drawing.chunks(next(pieces())[0]):
                for index, (piece, average) in enumerate(pieces()):
                    averages += [average] if index == len(averages) else []
                    for statistics in chunk.on(piece, averages[index].statistics):
                        averages[index].add(statistics)
            results = [average.results() for average in averages]
        else:
            results = []
            for piece, average in pieces():
                for statistics in drawing.each(piece, average.statistics):
                    average.add(statistics)
                results.append(average.results())
    fields: dict[str, Any] = {field: torch.cat([result[field] for result in results]) for field in results[0]}
    return Prediction(mode=name, num_samples=draws, treatments=dict(drawing.treatments), **fields)


def _split(x: Any, y: Tensor | None, size: int) -> list[tuple[Any, Tensor | None]]:
    """Views of the inputs and targets, `size` examples each, after checking them."""
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"batch_size: expected a whole number from 1 up, got {size!r}")
    count = count_of(x)
    if count == 0:
        raise ValueError("inputs x: expected at least one example, got none")
    lengths = [len(part) for part in x] if isinstance(x, tuple) else [count]
    if len(set(lengths)) > 1:
        raise ValueError(f"inputs x: expected as many examples in each input, got {lengths}")
    if y is not None and (not isinstance(y, Tensor) or y.dim() == 0 or len(y) != count):
        found = len(y) if isinstance(y, Tensor) and y.dim() else type(y).__name__
        raise ValueError(f"targets y: expected a tensor of {count} targets, one an example, got {found}")
    starts = [slice(i, i + size) for i in range(0, count, size)]
    return [
        (tuple(part[rows] for part in x) if isinstance(x, tuple) else x[rows], None if y is None else y[rows])
        for rows in starts
    ]


def _placed(x: Any, model: Any, guide: Any, device: str | torch.device | None) -> torch.device:
    """The device to compute on: the one asked for, else that of the inputs; the model must be there."""
    given: torch.device = (x[0] if isinstance(x, tuple) else x).device
    home = home_of(model, guide, device)
    if device is None and home is not None and not same_device(home, given):
        raise ValueError(f"inputs x are on {given}, the model is on {home}: give device={str(home)!r} to move them")
    return given if home is None else home

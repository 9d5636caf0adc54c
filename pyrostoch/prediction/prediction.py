"""A prediction: probabilities or moments of the observations, and their uncertainty by source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrostoch._checks import name_list
from pyrostoch.infer.known_labels import KnownLabels
from pyrostoch.records import Record, table

__all__ = ["Prediction"]


@dataclass(frozen=True, eq=False)
class Prediction(Record):
    """What a Bayesian network predicts for n examples, in float64.

    For classes (likelihood `likelihoods.Categorical` or `likelihoods.BayesianSVM`, or one `likelihoods.Bernoulli` per
    example: no and yes) it holds `probs` and `log_probs`, and the uncertainties are entropies in nats. Otherwise it
    holds `mean` and `variance`, and the uncertainties are variances. Of a distribution without a mean (Cauchy, a
    density of your own) there is only the `log_density` of given targets. Where a likelihood masks targets, everything
    but `log_density` is predicted for the masked entries, too.

    Args:
        mode: The mode's name.
        num_samples: Number of draws averaged.
        total: Uncertainty of the prediction, one value per example (and output).
        aleatoric: The part of `total` that more data would not remove: the mean of each draw's uncertainty.
        epistemic: The part of `total` that comes from not knowing the weights: the mutual information of label and
            weights, or the variance of the draws' means.
        log_probs: For classes: log of the mean probabilities, (n, C).
        mean: Otherwise: the predictive mean, (n, ...).
        variance: Otherwise: the predictive variance, (n, ...).
        log_density: If targets were given: their log predictive density, the log of the mean density over draws, in
            nats, (n,).
        treatments: How the network treated each site, in words: `Interpretation.treatments`.
        labels: `"known"` where layers that are conditional on the class were given their classes.
        heads: For several heads (`likelihoods.Joint`): the prediction of each, by name; `log_density` is then that of
            the targets of all heads together, and there is nothing else.
        loss: Whether the likelihood is a loss (`likelihoods.Loss`): `log_density` is then no density's.
        covariance: If it was asked for: the covariance over draws of the means of all examples, (n, n), or (n d, n d)
            for d outputs. Its diagonal is the epistemic variance.
    """

    mode: str
    num_samples: int
    total: Tensor | None = None
    aleatoric: Tensor | None = None
    epistemic: Tensor | None = None
    log_probs: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    log_density: Tensor | None = None
    treatments: dict[str, str] | None = None
    labels: KnownLabels = None
    covariance: Tensor | None = None
    heads: dict[str, Prediction] | None = None
    loss: bool = False

    @property
    def probs(self) -> Tensor:
        """Mean class probabilities, (n, C).

        Raises:
            ValueError: The observations are not classes.
        """
        if self.heads is not None:
            raise ValueError(f"probs: there are several heads; take .heads[{next(iter(self.heads))!r}].probs")
        if self.log_probs is None:
            has = "a log density of the targets only" if self.mean is None else "a mean and a variance"
            raise ValueError(f"probs: the observations are not classes; this prediction has {has}")
        return self.log_probs.exp()

    def log_prob(self, y: Tensor) -> Tensor:
        """Log probability of the labels under the averaged prediction.

        Args:
            y: Labels, (n,): class indices; for a Bernoulli 0 and 1, in any dtype and also of shape (n, 1).

        Returns:
            Nats, (n,).

        Raises:
            ValueError: The prediction is not one class per example (the density is then an average over the draws:
                call `predict(..., y=y)` and read `log_density`), or the labels do not fit.
        """
        if self.log_probs is None or self.log_probs.dim() != 2:
            raise ValueError(
                "log_prob: the density of targets that are not one class per example is an average over the draws, "
                "which are not kept; call predict(..., y=y) and read .log_density"
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
        if self.heads:
            return len(next(iter(self.heads.values())))
        return next(len(values) for values in (self.total, self.log_density) if values is not None)

    def __str__(self) -> str:
        draws = "one pass" if self.mode != "mc" and self.num_samples == 1 else f"{self.num_samples} samples"
        if self.heads is not None:
            what, unit, rows = f"heads {name_list(self.heads)}", "", list[tuple[str, float]]()
        elif self.log_probs is not None:
            what, unit = f"{self.log_probs.shape[-1]} classes", "entropy, nats"
            rows = [("confidence", self.probs.amax(-1).mean().item())]
        elif self.mean is not None:
            what, unit = f"outputs of shape {tuple(self.mean.shape[1:])}", "variance"
            rows = []
        else:
            what, unit, rows = "a distribution without a mean", "", []
        parts = (("total", self.total), ("aleatoric", self.aleatoric), ("epistemic", self.epistemic))
        rows += [(f"{name} {unit}", value.mean().item()) for name, value in parts if value is not None]
        if self.log_density is not None:
            name = (
                "log of the mean of exp(-loss), no density's, nats" if self.loss else "log density of the targets, nats"
            )
            rows.append((name, self.log_density.mean().item()))
        head = f"Prediction of {len(self)} examples, {what}, mode {self.mode!r} ({draws})"
        head += ", labels known" if self.labels else ""
        below = [f"\n\nHead {name!r}: {part}" for name, part in (self.heads or {}).items()]
        return head + ("\n" + table(("", "mean over examples"), rows)) * bool(rows) + "".join(below)

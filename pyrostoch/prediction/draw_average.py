"""Averages of predictions over posterior draws, for classes and for numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution

from pyrostoch.effects import base_distribution
from pyrostoch.metrics import MomentAverage, PredictiveAverage
from pyrostoch.metrics.uncertainty import LogMeanExp
from pyrostoch.moments.predictive import OutputDistribution
from pyrostoch.prediction.readouts import check_targets
from pyrostoch.protocols import Model

__all__ = ["DrawAverage", "class_log_probs"]


def class_log_probs(distribution: Distribution) -> Tensor | None:
    """Log-probabilities of the classes, `(n, ..., C)` in float64; `None` where the observations are not classes.

    A single Bernoulli variable per example counts as two classes, no and yes.

    Args:
        distribution: A distribution of observations.
    """
    base = base_distribution(distribution)
    if isinstance(base, Categorical):
        return base.logits.to(torch.float64).log_softmax(-1)
    if isinstance(base, Bernoulli) and base.logits.numel() == distribution.batch_shape[0]:
        logits = base.logits.to(torch.float64).reshape(-1)
        return torch.stack([torch.zeros_like(logits), logits], dim=-1).log_softmax(-1)
    return None


class DrawAverage:
    """The average of a batch's predictions over draws, in memory independent of their number.

    Args:
        model: The model, which checks targets.
        y: Targets whose log density is averaged too.

    Attributes:
        classes: After the first draw: whether the observations are classes.
    """

    def __init__(self, model: Model, y: Tensor | None = None) -> None:
        self._model, self.y = model, y
        self._classes = PredictiveAverage()
        self._moments = MomentAverage()
        self._density = LogMeanExp()
        self._shape = torch.Size()
        # Sums over draws that are predictions themselves, with both kinds of uncertainty: passes of moments.
        self._within: dict[str, Tensor] = {}
        self._draws = 0
        self.classes = False

    def statistics(self, distribution: Distribution) -> dict[str, Tensor]:
        """The tensors of one draw that are averaged; within `torch.vmap`, those of several draws.

        Args:
            distribution: The distribution of the observations for that draw.

        Returns:
            Tensors by name, for `add`.

        Raises:
            ValueError: The observations are not classes and their distribution has no known mean or variance; or the
                targets do not fit it.
        """
        if isinstance(distribution, OutputDistribution):
            return self._of_moments(distribution)
        found: dict[str, Tensor] = {}
        if self.y is not None:
            if not self._density.draws:
                check_targets(self._model, distribution, self.y)
            found["density"] = distribution.log_prob(self.y)
        log_probs = class_log_probs(distribution)
        if log_probs is not None:
            return found | {"classes": log_probs}
        try:
            return found | {"mean": distribution.mean, "variance": distribution.variance}
        except NotImplementedError as error:  # raised by torch's distributions that have no known mean or variance
            raise ValueError(
                f"likelihood: {type(base_distribution(distribution)).__name__} has no known mean or variance, so there "
                "is nothing to report; use a distribution with both"
            ) from error

    def _of_moments(self, distribution: OutputDistribution) -> dict[str, Tensor]:
        """The prediction of one pass of moments."""
        if self.y is not None and not self._draws:
            check_targets(self._model, distribution, self.y)
        if distribution.closed is None:
            points = DrawAverage(self._model, self.y)
            for member in distribution.members():
                points.add(points.statistics(member))
            fields = points.results()
        else:
            fields = dict(distribution.closed.fields)
            if self.y is not None:
                fields["log_density"] = distribution.log_prob(self.y).to(torch.float64)
        names = {"log_probs": "classes", "log_density": "density"}
        return {names.get(name, name): value for name, value in fields.items() if name != "total"}

    def add(self, statistics: Mapping[str, Tensor]) -> None:
        """Add one draw.

        Args:
            statistics: The tensors that `statistics` returned for that draw.
        """
        self._draws += 1
        for name in ("aleatoric", "epistemic"):
            if name in statistics:
                self._within[name] = self._within.get(name, 0.0) + statistics[name]
        if "density" in statistics:
            self._density.update(statistics["density"])
        if "classes" in statistics:
            self.classes, self._shape = True, statistics["classes"].shape
            self._classes.update(statistics["classes"].flatten(0, -2))
        else:
            self._moments.update(statistics["mean"], statistics["variance"])

    @property
    def log_probs(self) -> Tensor:
        """Log of the mean probabilities of the classes, (n, ..., C)."""
        return self._classes.log_probs.reshape(self._shape)

    @property
    def log_density(self) -> Tensor:
        """Log of the mean density of the targets over the draws, in nats, (n,)."""
        return self._density.compute()

    def results(self) -> dict[str, Tensor]:
        """The averages, by the names of the fields of `Prediction`."""
        found: dict[str, Tensor] = {} if self.y is None else {"log_density": self.log_density}
        if self.classes:
            found["log_probs"] = self.log_probs
            for name in ("total", "aleatoric", "epistemic"):
                found[name] = getattr(self._classes, name).reshape(self._shape[:-1])
        else:
            found["mean"], found["variance"] = self._moments.mean, self._moments.variance
            found |= {"total": found["variance"], "aleatoric": self._moments.aleatoric}
            found["epistemic"] = self._moments.epistemic
        if self._within:
            # By the laws of total variance and total entropy.
            found["aleatoric"] = self._within["aleatoric"] / self._draws
            found["epistemic"] = found["epistemic"] + self._within["epistemic"] / self._draws
        return found

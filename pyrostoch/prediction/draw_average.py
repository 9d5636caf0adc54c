"""Averages of predictions over posterior draws, for classes and for numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from pyrostoch._targets import Target
from pyrostoch._tracing import being_traced
from pyrostoch.likelihoods.loss import LossDistribution
from pyrostoch.likelihoods.pseudo import normalized
from pyrostoch.likelihoods.several import without_weights
from pyrostoch.metrics import MomentAverage, PredictiveAverage
from pyrostoch.metrics.uncertainty import LogMeanExp
from pyrostoch.moments.predictive import OutputDistribution
from pyrostoch.prediction.observed import class_log_probs, mean_and_variance, observed_mask, without_wrappers
from pyrostoch.prediction.readouts import check_targets, has_valid_arguments
from pyrostoch.protocols import Model

__all__ = ["DrawAverage", "without_nan"]


class DrawAverage:
    """The average of a batch's predictions over draws, in memory independent of their number.

    Args:
        model: The model, which checks targets.
        y: Targets whose log density is averaged too, perhaps with weights, which are left out.
        checks: Whether targets are checked here.

    Attributes:
        targets: After the first draw: the targets without weights.
        classes: After the first draw: whether the observations are classes.
        observed: After a draw: which entries of the targets are observed; `None` where all are.
        valid: While operations are traced: whether all arguments of distributions are within their constraints.
    """

    def __init__(self, model: Model, y: Target | None = None, *, checks: bool = True) -> None:
        self._model, self.y, self._checks = model, y, checks
        self.targets: Any = y
        self._binary = False
        self._classes = PredictiveAverage()
        self._moments = MomentAverage()
        self._density = LogMeanExp()
        self._shape = torch.Size()
        # Sums over draws that are predictions themselves, with both kinds of uncertainty: passes of moments.
        self._within: dict[str, Tensor] = {}
        self._draws = 0
        self.classes = False
        self.observed: Tensor | None = None
        self.valid = torch.ones((), dtype=torch.bool)

    def statistics(self, distribution: Distribution) -> dict[str, Tensor]:
        """The tensors of one draw that are averaged; within `torch.vmap`, those of several draws.

        Args:
            distribution: The distribution of the observations for that draw.

        Returns:
            Tensors by name, for `add`.

        Raises:
            ValueError: No targets are given, the observations are not classes, and their distribution has no known mean
                or variance; or the targets do not fit it.
        """
        if self._checks and self.y is not None and not self._draws:
            check_targets(self._model, distribution, self.y)
        distribution, self.targets = without_weights(distribution, self.y)
        if isinstance(distribution, OutputDistribution):
            return self._of_moments(distribution)
        found: dict[str, Tensor] = {}
        if self.y is not None:
            found["density"] = normalized(distribution).log_prob(self.targets)
        observed = observed_mask(distribution, self.targets)
        if observed is not None:
            found["observed"] = observed
        log_probs = class_log_probs(distribution)
        if log_probs is not None:
            self._binary = isinstance(without_wrappers(distribution), Bernoulli) and log_probs.dim() > 2
            return found | {"classes": log_probs}
        moments = mean_and_variance(distribution)
        if not moments and self.y is None:
            kind = type(without_wrappers(distribution))
            if issubclass(kind, LossDistribution):
                raise ValueError(
                    "likelihood: a Loss has no distribution of targets to report; outputs() gives what the network "
                    "returns"
                )
            raise ValueError(
                f"likelihood: {kind.__name__} has no known mean or variance, so there is nothing to report without "
                "targets; give y= for its log density, or use a distribution with both"
            )
        return found | moments

    def _of_moments(self, distribution: OutputDistribution) -> dict[str, Tensor]:
        """The prediction of one pass of moments."""
        if distribution.closed is None:
            points = DrawAverage(self._model, self.targets, checks=False)
            points.add_all(self._at_points(points, distribution))
            fields = points.results()
            self._binary = points._binary
            if points.observed is not None:
                fields["observed"] = points.observed
        else:
            fields = dict(distribution.closed.fields)
            if self.y is not None:
                fields["log_density"] = distribution.log_prob(self.targets).to(torch.float64)
        names = {"log_probs": "classes", "log_density": "density"}
        return {names.get(name, name): value for name, value in fields.items() if name != "total"}

    def _at_points(self, points: DrawAverage, distribution: OutputDistribution) -> dict[str, Tensor]:
        """The statistics at each point of the output, all at once where that is possible."""
        check = pyro.settings.get("validate_distributions_pyro")

        def statistics(z: Tensor) -> dict[str, Tensor]:
            member = distribution.member(z)
            return points.statistics(member) | {"valid": has_valid_arguments(member)}

        with contextlib.suppress(Exception), pyro.validation_enabled(False):  # a likelihood may be any function
            found = torch.vmap(statistics)(distribution.points())
            valid = found.pop("valid").all()
            if being_traced():
                self.valid = self.valid & valid
                return found
            if not check or bool(valid):
                return found
        rows = [points.statistics(member) for member in distribution.members()]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def add_all(self, draws: Mapping[str, Tensor]) -> None:
        """Add several draws.

        Args:
            draws: The tensors that `statistics` returned for each, stacked.
        """
        for name in ("aleatoric", "epistemic"):
            if name in draws:
                self._within[name] = self._within.get(name, 0.0) + draws[name].sum(0)
        count = len(next(iter(draws.values())))
        self._draws += count
        self.observed = draws["observed"][-1] if "observed" in draws else None
        if "density" in draws:
            self._density.update(draws["density"].double().logsumexp(0), count)
        if "classes" in draws:
            self.classes, self._shape = True, draws["classes"].shape[1:]
            self._classes.update_all(draws["classes"].flatten(1, -2))
        elif "mean" in draws:
            self._moments.update_all(draws["mean"], draws["variance"])

    def add(self, statistics: Mapping[str, Tensor]) -> None:
        """Add one draw.

        Args:
            statistics: The tensors that `statistics` returned for that draw.
        """
        self._draws += 1
        for name in ("aleatoric", "epistemic"):
            if name in statistics:
                self._within[name] = self._within.get(name, 0.0) + statistics[name]
        self.observed = statistics.get("observed")
        if "density" in statistics:
            self._density.update(statistics["density"])
        if "classes" in statistics:
            self.classes, self._shape = True, statistics["classes"].shape
            self._classes.update(statistics["classes"].flatten(0, -2))
        elif "mean" in statistics:
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
            if self._binary:  # several labels, each with a mean
                found["mean"] = self.log_probs[..., 1].exp()
                found["variance"] = found["mean"] * (1.0 - found["mean"])
        elif self._moments.draws:
            found["mean"], found["variance"] = self._moments.mean, self._moments.variance
            found |= {"total": found["variance"], "aleatoric": self._moments.aleatoric}
            found["epistemic"] = self._moments.epistemic
        if self._within:
            # By the laws of total variance and total entropy.
            found["aleatoric"] = self._within["aleatoric"] / self._draws
            found["epistemic"] = found["epistemic"] + self._within["epistemic"] / self._draws
        return found


def without_nan(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fields of a prediction without those that do not exist, such as the mean of a Cauchy distribution.

    Args:
        fields: The fields of a `Prediction`.

    Raises:
        ValueError: What is NaN is all there is, or the network's output is NaN.

    Example:
        >>> list(without_nan({"mean": torch.tensor([torch.nan]), "log_density": torch.zeros(1)}))
        ['log_density']
    """
    nan = [name for name, values in fields.items() if bool(torch.isnan(values).any())]
    if not nan:
        return fields
    if "log_probs" in fields or "log_density" in nan:
        raise ValueError(
            f"prediction: {', '.join(nan)} are NaN: the network's output is NaN or infinite, or its weights are; check "
            "the guide's parameters and the scale of the inputs"
        )
    kept = {name: values for name, values in fields.items() if name == "log_density"}
    if not kept:
        raise ValueError(
            "prediction: the predictive mean or variance is NaN: the likelihood's distribution has none (a Cauchy), or "
            "the network's output is NaN; give targets y= for their log density"
        )
    return kept

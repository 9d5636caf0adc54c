"""Averages of predictions over draws for several heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._targets import Target
from pyrostoch.likelihoods.several import JointObservations, without_weights
from pyrostoch.metrics.uncertainty import LogMeanExp
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.prediction.readouts import check_targets
from pyrostoch.protocols import Model

__all__ = ["HeadAverages", "average_for", "split_heads"]

# Between the name of a head and that of what is averaged.
_SEPARATOR = "."


class HeadAverages:
    """The averages of a batch's predictions over draws, for each head, and the density of the targets of all heads.

    Args:
        model: The model, which checks targets.
        y: Targets whose log densities are averaged too.
        names: The names of the heads.

    Attributes:
        y: The targets, which tell how many examples there are.
        heads: The average of each head.
        classes: That all heads together are no classes.
    """

    classes = False

    def __init__(self, model: Model, y: Target | None, names: tuple[str, ...]) -> None:
        self._model = model
        self.y: Any = y
        self.heads = {name: DrawAverage(model, None, checks=False) for name in names}
        self._density = LogMeanExp()

    def statistics(self, distribution: Distribution) -> dict[str, Tensor]:
        """The tensors of one draw that are averaged; within `torch.vmap`, those of several draws.

        Args:
            distribution: The distribution of the observations for that draw.
        """
        if self.y is not None and not self._density.draws:
            check_targets(self._model, distribution, self.y)
        joint, targets = without_weights(distribution, self.y)
        if not isinstance(joint, JointObservations):
            raise TypeError(f"model.observation: expected JointObservations, got {type(joint).__name__}")
        found: dict[str, Tensor] = {}
        for name, average in self.heads.items():
            average.y = None if targets is None else targets[name]
            try:
                own = average.statistics(joint.heads[name])
            except ValueError:
                if targets is not None:
                    raise
                continue  # nothing can be said of this head without targets
            found |= {f"{name}{_SEPARATOR}{key}": value for key, value in own.items()}
        if targets is not None:
            densities = [found[f"{name}{_SEPARATOR}density"] for name in self.heads]
            found["density"] = torch.stack(densities).sum(0)
        return found

    def add(self, statistics: Mapping[str, Tensor]) -> None:
        """Add one draw.

        Args:
            statistics: The tensors that `statistics` returned for that draw.
        """
        if "density" in statistics:
            self._density.update(statistics["density"])
        for name, own in split_heads(statistics, tuple(self.heads)).items():
            if own:
                self.heads[name].add(own)

    def add_all(self, draws: Mapping[str, Tensor]) -> None:
        """Add several draws.

        Args:
            draws: The tensors that `statistics` returned for each, stacked.
        """
        if "density" in draws:
            self._density.update(draws["density"].double().logsumexp(0), len(draws["density"]))
        for name, own in split_heads(draws, tuple(self.heads)).items():
            if own:
                self.heads[name].add_all(own)

    @property
    def valid(self) -> Tensor:
        """While operations are traced: whether all arguments of distributions are within their constraints."""
        return torch.stack([head.valid for head in self.heads.values()]).all()

    @property
    def targets(self) -> Any:
        """The targets of all heads."""
        return self.y

    @property
    def observed(self) -> Tensor | None:
        """Which targets of all heads are observed, (n, targets of an example); `None` where all are."""
        masks = {name: head.observed for name, head in self.heads.items()}
        if all(mask is None for mask in masks.values()):
            return None
        targets = {name: head.targets for name, head in self.heads.items()}
        own = [torch.ones_like(targets[name], dtype=torch.bool) if m is None else m for name, m in masks.items()]
        return torch.cat([mask.reshape(len(mask), -1) for mask in own], 1)

    def results(self) -> dict[str, Tensor]:
        """The averages of every head, with its name, and the log density of the targets of all."""
        found = {} if self.y is None else {"log_density": self._density.compute()}
        for name, head in self.heads.items():
            found |= {f"{name}{_SEPARATOR}{field}": value for field, value in head.results().items()}
        return found


def average_for(model: Model, y: Target | None = None) -> DrawAverage | HeadAverages:
    """The average for a model's predictions.

    Args:
        model: The model.
        y: Targets whose log density is averaged too.
    """
    names: tuple[str, ...] = getattr(getattr(model, "likelihood", None), "head_names", ())
    return HeadAverages(model, y, names) if names else DrawAverage(model, y)


def split_heads(fields: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What belongs to each head, without its name.

    Args:
        fields: Values by head and name.
        names: The names of the heads.

    Example:
        >>> split_heads({"a.mean": 1, "b.mean": 2, "density": 3}, ("a", "b"))
        {'a': {'mean': 1}, 'b': {'mean': 2}}
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in fields.items():
        name, separator, own = key.partition(_SEPARATOR)
        if separator:
            found[name][own] = value
    return found

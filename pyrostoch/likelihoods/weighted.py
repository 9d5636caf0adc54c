"""Examples that count more or less than once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._targets import Target
from pyrostoch.likelihoods.base import Likelihood, LikelihoodSpec, as_likelihood
from pyrostoch.likelihoods.several import WeightedObservations
from pyrostoch.moments import Moments
from pyrostoch.protocols import Output

__all__ = ["Weighted"]


class Weighted(Likelihood):
    r"""A likelihood with a weight for each example, $\log L(y_i) = w_i \log p(y_i \mid z_i)$.

    A weight w counts an example w times; one that is no such count, as that of importance or trust, makes a
    pseudo-likelihood, whose posterior is no longer that of the data, and `decompose` says so. Nothing is normalized:
    with weights whose mean is not 1, data weigh more or less against the prior. Predictions and scores are not
    weighted, nor is the rate of random activations with a prior.

    Targets are a dictionary, `fit(model, guide, (x, {"target": y, "weight": w}))`; where items are dictionaries,
    `BayesianModel(target=("target", "weight"))`.

    Args:
        likelihood: The likelihood, or a function from the output to a Pyro distribution.
        target: Name of the targets; not used around a `Joint`, which has names.
        weight: Name of the weights, (batch,).

    Raises:
        TypeError: The likelihood has weights already.
        ValueError: The names are the same.

    Example:
        >>> from pyrostoch.likelihoods import Categorical
        >>> likelihood = Weighted(Categorical())
        >>> targets = {"target": torch.tensor([0, 1]), "weight": torch.tensor([1.0, 2.0])}
        >>> likelihood(torch.zeros(2, 2)).log_prob(likelihood.read_target(targets))
        tensor([-0.6931, -1.3863])
    """

    pseudo = True

    def __init__(self, likelihood: LikelihoodSpec, *, target: str = "target", weight: str = "weight") -> None:
        super().__init__()
        self.likelihood = as_likelihood(likelihood)
        if isinstance(self.likelihood, Weighted):
            raise TypeError("likelihood Weighted: expected a likelihood without weights; multiply the weights instead")
        self.target, self.weight = target, weight
        names = self.likelihood.target_names or (target,)
        if weight in names:
            raise ValueError(f"likelihood Weighted: expected another name for the weights than {weight!r}")
        self.target_names, self.head_names = (*names, weight), self.likelihood.head_names

    def draw(self) -> dict[str, Tensor | float]:
        """The quantities of the likelihood."""
        return self.likelihood.draw()

    def identity(self) -> str:
        """The likelihood's identity."""
        return f"Weighted({self.likelihood.identity()})"

    def not_described(self) -> list[str]:
        """What the likelihood's identity leaves out."""
        return self.likelihood.not_described()

    def forward(self, output: Output | Moments, quantities: dict[str, Tensor | float] | None = None) -> Distribution:
        """The distribution of the observations.

        Args:
            output: The network's output.
            quantities: The quantities that `draw` returns; drawn now by default.
        """
        base = self.likelihood(output, quantities)
        return WeightedObservations(base, None if self.likelihood.target_names else self.target, self.weight)

    def check_shape(self, distribution: Distribution, target: Target) -> None:
        """Raise an error for targets of another shape, and for weights that are not one real number for each example.

        Args:
            distribution: The distribution of the observations.
            target: Targets and weights.
        """
        weighted: Any = distribution
        values: Any = target
        weight: Tensor = values[self.weight]
        if not weight.is_floating_point() or weight.shape != distribution.batch_shape:
            raise ValueError(
                f"likelihood Weighted: expected weights {self.weight!r} as real numbers of shape "
                f"{tuple(distribution.batch_shape)}, one for each example, got {weight.dtype} of shape "
                f"{tuple(weight.shape)}"
            )
        self.likelihood.check_shape(weighted.base, weighted.unweighted(target))

    def check_target(self, distribution: Distribution, target: Target) -> None:
        """Raise an error for targets outside the support, and for weights that are negative or not finite.

        Args:
            distribution: The distribution of the observations.
            target: Targets and weights.
        """
        weighted: Any = distribution
        values: Any = target
        wrong = ~(torch.isfinite(values[self.weight]) & (values[self.weight] >= 0))
        if bool(wrong.any()):
            raise ValueError(
                f"likelihood Weighted: expected weights from 0 up, got {int(wrong.sum())} others, among them "
                f"{values[self.weight][wrong][0].item():g}"
            )
        self.likelihood.check_target(weighted.base, weighted.unweighted(target))

"""What is read of a network's output: tensors in full precision, and log densities that show which examples meet."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrostoch._targets import Target
from pyrostoch.effects.trees import map_tensors
from pyrostoch.likelihoods.base import Likelihood
from pyrostoch.likelihoods.parts import reads_in_its_own_way

__all__ = ["LogDensities", "full_precision", "reading_of"]


def full_precision(output: Any) -> Any:
    """The output with tensors in half precision converted to float32, which densities and their sums need.

    Args:
        output: A tensor, or tensors in nested tuples, lists, dictionaries and dataclasses.

    Example:
        >>> full_precision({"logits": torch.zeros(2, dtype=torch.bfloat16)})["logits"].dtype
        torch.float32
    """
    return map_tensors(lambda part: part.float() if part.dtype in (torch.bfloat16, torch.float16) else part, output)


class LogDensities:
    """Log densities of given targets, or of the first ones drawn, to see which examples they depend on.

    They are computed by a copy of the likelihood, whose state the experiment may change. `None` where there are neither
    targets nor draws.

    Args:
        likelihood: The likelihood.
        y: Targets, of which the first ones are taken.
    """

    def __init__(self, likelihood: Likelihood, y: Target | None = None) -> None:
        self.likelihood, self.y = likelihood, y
        self.copied = False
        self.targets: dict[torch.Size, Target] = {}

    def __call__(self, output: Any) -> Tensor | None:
        """Log densities of the same targets for all outputs of this shape, one for each example.

        Args:
            output: The network's output.
        """
        if not self.copied:
            self.likelihood, self.copied = copy.deepcopy(self.likelihood), True
            for part in self.likelihood.modules():
                part.training = False
        with pyro.validation_enabled(False):  # perturbed outputs may leave a distribution's support
            distribution: Any = self.likelihood(full_precision(output))
            shape = distribution.batch_shape + distribution.event_shape
            if shape not in self.targets and self.y is not None and len(self.y) >= shape[0]:
                given = self.y[: shape[0]].detach()
                with contextlib.suppress(TypeError, ValueError):
                    self.likelihood.check_shape(distribution, given)
                    self.targets[shape] = given
            if shape not in self.targets:
                try:
                    self.targets[shape] = distribution.sample().detach()
                except NotImplementedError:  # a density alone, as of a robust loss: there is no target to read
                    return None
            log_prob: Tensor = distribution.log_prob(self.targets[shape])
            return log_prob


def reading_of(likelihood: Likelihood, y: Target | None) -> LogDensities | None:
    """What a likelihood of the user's own reads of the output; those of this library keep examples apart.

    Args:
        likelihood: The likelihood.
        y: Targets, of which the first ones are taken.

    Example:
        >>> from pyrostoch.likelihoods import Categorical
        >>> reading_of(Categorical(), None) is None
        True
    """
    return LogDensities(likelihood, y) if reads_in_its_own_way(likelihood) else None

"""The Pyro statements of observations."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._targets import Target
from pyrostoch.likelihoods.several import observations

__all__ = ["observe"]


class _ExampleWeights(Messenger):
    """Multiplies log densities by weights, of which some may be 0; `pyro.poutine.scale` reads and refuses those."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = msg["scale"] * self.weight


def observe(distribution: Distribution, y: Target | None) -> Any:
    """Observe targets, or draw them, at the site `obs`, or at a site for each head, such as `obs.digit`.

    Call it inside the plate of the examples.

    Args:
        distribution: The distribution of the observations.
        y: Targets; `None` draws them.

    Returns:
        The observed or drawn targets; a dictionary of several.
    """
    found: dict[str, Any] = {}
    for part in observations(distribution, y):
        own: Any = part.distribution
        with contextlib.nullcontext() if part.weight is None else _ExampleWeights(part.weight):
            found[part.name] = pyro.sample(f"obs.{part.name}" if part.name else "obs", own, obs=part.value)
    return found[""] if "" in found else found

"""Quantities of likelihoods besides the network's output, such as the scale of the noise."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_positive
from pyrostoch.priors import FromDistribution

__all__ = ["Noise"]


class Noise(nn.Module):
    """A positive quantity of a likelihood: fixed, fitted by maximum likelihood, or random.

    Args:
        value: A number; a tensor of numbers, one for each output; or a distribution on the positive numbers (the
            quantity is then a Pyro site).
        learn: Whether to fit the quantity, starting from the number.
        site: Name of the Pyro site of a random quantity.

    Example:
        >>> Noise(0.5, learn=False, site="likelihood.scale")()
        0.5
    """

    value: Tensor | float

    def __init__(self, value: float | Tensor | Distribution, *, learn: bool, site: str) -> None:
        super().__init__()
        self.site = site
        self.prior: FromDistribution | None = None
        if isinstance(value, Distribution):
            if learn:
                raise ValueError(
                    f"{site}: learn=True expects a number to start from, got a distribution; give one or the other"
                )
            self.prior = FromDistribution(value)
            self.shape = value.batch_shape + value.event_shape
        elif isinstance(value, Tensor):
            positive = bool(((value > 0) & torch.isfinite(value)).all())
            if not value.is_floating_point() or value.dim() != 1 or not positive:
                raise ValueError(f"{site}: expected a number, or positive numbers of shape (outputs,), got {value}")
            if learn:
                self.log_value = nn.Parameter(value.detach().log())
            else:
                self.register_buffer("value", value.detach().clone())
        elif learn:
            self.log_value = nn.Parameter(torch.tensor(math.log(check_positive(site, value))))
        else:
            self.value = float(check_positive(site, value))

    def forward(self) -> Tensor | float:
        """The quantity: a number, or a tensor without axes or with one for the outputs; drawn if it is random."""
        if self.prior is not None:
            prior: Any = self.prior.distribution(self.site, self.shape)
            drawn: Tensor = pyro.sample(self.site, prior.to_event(len(prior.batch_shape)))
            return drawn
        return self.log_value.exp() if hasattr(self, "log_value") else self.value

    def identity(self) -> str:
        """The fixed number, the word `learned`, or the prior."""
        if self.prior is not None:
            return repr(self.prior)
        return "learned" if hasattr(self, "log_value") else _number_text(self.value, 9)

    def __repr__(self) -> str:
        if self.prior is not None:
            return f"random, {self.prior!r}"
        learned = hasattr(self, "log_value")
        return f"{'learned, ' * learned}{_number_text(self.log_value.detach().exp() if learned else self.value, 6)}"


def _number_text(value: Tensor | float, digits: int) -> str:
    if isinstance(value, Tensor) and value.dim():
        return "[" + ", ".join(f"{number:.{digits}g}" for number in value.tolist()) + "]"
    return f"{float(value):.{digits}g}"

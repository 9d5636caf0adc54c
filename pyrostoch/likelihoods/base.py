"""What a likelihood is: a module that turns a network's output into the distribution of the observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from pyrostoch._checks import check_positive
from pyrostoch.moments import Moments
from pyrostoch.moments.predictive import Closed, OutputDistribution
from pyrostoch.priors import FromDistribution

__all__ = ["FromOutput", "Likelihood", "Noise", "as_likelihood", "per_example"]


def per_example(distribution: Any, batch: int = 1) -> Any:
    """Declare all but the first `batch` axes of a distribution as one example's event."""
    extra = len(distribution.batch_shape) - batch
    return distribution.to_event(extra) if extra > 0 else distribution


class Likelihood(nn.Module):
    """The distribution of an observation given the network's output.

    Called with the output, it draws its own random quantities (if it has any) as Pyro sites and returns a distribution
    with one batch axis, the examples. A subclass implements `distribution`, and `check_target` where targets are
    restricted.
    """

    def draw(self) -> dict[str, Tensor | float]:
        """The likelihood's own quantities: fixed, learned or sampled, by name."""
        return {name: noise() for name, noise in self.named_children() if isinstance(noise, Noise)}

    def identity(self) -> str:
        """What tells this likelihood from others: its type and its fixed numbers, without those that are fitted."""
        noises = [f"{name}={part.identity()}" for name, part in self.named_children() if isinstance(part, Noise)]
        return f"{type(self).__name__}({', '.join(text for text in (self.extra_repr(), *noises) if text)})"

    def distribution(self, output: Any, **quantities: Tensor | float) -> Distribution:
        """The observation's distribution, one batch axis, from the output and the likelihood's own quantities."""
        raise TypeError(f"{type(self).__name__} must implement distribution(output)")

    def closed(self, output: Moments, **quantities: Tensor | float) -> Closed | None:
        """A closed reading of output moments, where there is one."""
        return None

    def forward(self, output: Any, quantities: dict[str, Tensor | float] | None = None) -> Distribution:
        """The observation's distribution, its own quantities drawn unless they are given; the output may be moments."""
        drawn = self.draw() if quantities is None else quantities
        if isinstance(output, Moments):
            return OutputDistribution(
                output, lambda z: self.distribution(z, **drawn), lambda: self.closed(output, **drawn)
            )
        return self.distribution(output, **drawn)

    def check_shape(self, distribution: Distribution, target: Tensor) -> None:
        """Refuse a target whose shape is not that of the distribution: broadcasting would fit something else."""
        expected = tuple(distribution.batch_shape + distribution.event_shape)
        if tuple(target.shape) != expected:
            raise ValueError(
                f"likelihood {type(self).__name__}: expected targets of shape {expected} for this network output, got "
                f"{tuple(target.shape)}; reshape the targets or the network's last layer"
            )

    def check_target(self, distribution: Distribution, target: Tensor) -> None:
        """Refuse targets outside the distribution's support. Reads values, so it synchronizes a GPU."""
        if target.is_floating_point() and not bool(torch.isfinite(target).all()):
            bad = int((~torch.isfinite(target)).sum())
            raise ValueError(f"likelihood {type(self).__name__}: {bad} target(s) are NaN or infinite")


class Noise(nn.Module):
    """A positive quantity of a likelihood: fixed, learned by maximum likelihood, or random.

    Args:
        value: A number, or a distribution on the positive numbers (the quantity is then a Pyro site).
        learn: Whether a number is a start to be fitted from.
        site: Name of the Pyro site of a random quantity.
    """

    def __init__(self, value: float | Distribution, *, learn: bool, site: str) -> None:
        super().__init__()
        self.site = site
        self.prior: FromDistribution | None = None
        if isinstance(value, Distribution):
            if learn:
                raise ValueError(
                    f"{site}: expected a start value with learn=True, got a distribution; give one or the other"
                )
            self.prior = FromDistribution(value)
        elif learn:
            self.log_value = nn.Parameter(torch.tensor(math.log(check_positive(site, value))))
        else:
            self.value = float(check_positive(site, value))

    def forward(self) -> Tensor | float:
        """The quantity: a number, or a tensor without axes; sampled where it is random."""
        if self.prior is not None:
            drawn: Tensor = pyro.sample(self.site, self.prior.distribution(self.site, torch.Size()))
            return drawn
        return self.log_value.exp() if hasattr(self, "log_value") else self.value

    def identity(self) -> str:
        """The fixed number, `learned`, or the prior."""
        if self.prior is not None:
            return repr(self.prior)
        return "learned" if hasattr(self, "log_value") else f"{self.value:.9g}"

    def __repr__(self) -> str:
        if self.prior is not None:
            return f"random, {self.prior!r}"
        return f"learned, {self.log_value.exp().item():.6g}" if hasattr(self, "log_value") else f"{self.value:.6g}"


class FromOutput(Likelihood):
    """Any Pyro distribution, made from the network's output by a function.

    Args:
        make: Function of the output that returns a distribution whose first batch axis counts the examples.

    Example:
        >>> import pyro.distributions as dist
        >>> likelihood = FromOutput(lambda out: dist.Gamma(out.exp(), 1.0))
        >>> likelihood(torch.zeros(5, 2)).batch_shape, likelihood(torch.zeros(5, 2)).event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(self, make: Callable[[Any], Distribution]) -> None:
        super().__init__()
        self.make = make

    def distribution(self, output: Any, **quantities: Tensor | float) -> Distribution:
        """What the function makes of the output."""
        distribution = self.make(output)
        if not hasattr(distribution, "to_event"):
            raise TypeError(
                f"likelihood function: expected a Pyro distribution (pyro.distributions), got {distribution!r:.60}"
            )
        return per_example(distribution)


def as_likelihood(spec: Any) -> Likelihood:
    """A likelihood from a `Likelihood` or from a function of the output.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(spec, Likelihood):
        return spec
    if callable(spec) and not isinstance(spec, (type, nn.Module)):
        return FromOutput(spec)
    raise TypeError(
        "likelihood: expected a pyrostoch.likelihoods.* instance or a function from the network's output to a Pyro "
        f"distribution, got {spec!r}"
    )


def like(value: Tensor | float, output: Tensor) -> Tensor:
    """A quantity in the dtype and on the device of the output, without a copy from the host."""
    if isinstance(value, Tensor):
        return value.to(output.dtype)
    return torch.full((), value, dtype=output.dtype, device=output.device)


def positive(raw: Tensor) -> Tensor:
    """A positive scale from an unrestricted network output: softplus, kept off zero."""
    return F.softplus(raw) + 1e-6

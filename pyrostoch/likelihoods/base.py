"""The base class of likelihoods: modules that turn a network's output into the distribution of the observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.nn import functional as F

from pyrostoch._descriptions import describe_function, describe_settings
from pyrostoch._manual import see
from pyrostoch._targets import Target, read_targets
from pyrostoch.likelihoods.missing import Missing, with_missing
from pyrostoch.likelihoods.quantities import Noise
from pyrostoch.likelihoods.select import select_output
from pyrostoch.likelihoods.support import check_support
from pyrostoch.moments import Moments
from pyrostoch.moments.predictive import Closed, OutputDistribution
from pyrostoch.protocols import Output

__all__ = ["FromOutput", "Likelihood", "LikelihoodSpec", "Noise", "as_likelihood", "per_example"]


def per_example(distribution: Distribution, batch: int = 1) -> Distribution:
    """Declare all but the first `batch` batch axes of a Pyro distribution as event axes.

    Args:
        distribution: The distribution.
        batch: Number of batch axes to keep.
    """
    extra = len(distribution.batch_shape) - batch
    event = cast(Any, distribution)  # torch's class has no `to_event`, Pyro's subclasses do
    return event.to_event(extra) if extra > 0 else distribution


class Likelihood(nn.Module):
    """Base class: the distribution of the observations given the network's output.

    Called with the output, a likelihood draws its random quantities (such as the scale of the noise), if it has any, as
    Pyro sites, and returns a distribution with one batch axis, the examples. A subclass implements `distribution`, and
    `check_target` where targets are restricted.

    Args:
        output: Which part of the network's output it reads, where that is no tensor: a key, the name of a field such as
            `"logits"`, or a position. By default the only tensor there is.
        nan_is_missing: Whether targets that are NaN are missing: they have no part in densities and scores.
        ignore_index: A label that stands for none, whose targets are missing, too.

    Example:
        >>> import pyro.distributions as dist
        >>> class Exponential(Likelihood):
        ...     def distribution(self, output, **quantities):
        ...         return per_example(dist.Exponential(output.exp()))
        >>> Exponential()(torch.zeros(5, 2)).log_prob(torch.ones(5, 2))
        tensor([-2., -2., -2., -2., -2.])
    """

    #: Those of a likelihood whose class does not call `super().__init__` with others.
    output: str | int | None = None
    nan_is_missing: bool = False
    ignore_index: int | None = None
    #: Whether its log densities are no log probabilities of the targets, as those of a loss.
    pseudo: bool = False
    #: The names of several targets, as those of `Joint`; `None` where targets are one tensor.
    target_names: tuple[str, ...] | None = None
    #: The names of those that have a likelihood each.
    head_names: tuple[str, ...] = ()

    def __init__(
        self, *, output: str | int | None = None, nan_is_missing: bool = False, ignore_index: int | None = None
    ) -> None:
        super().__init__()
        self.output, self.nan_is_missing, self.ignore_index = output, nan_is_missing, ignore_index

    @property
    def missing(self) -> Missing:
        """Which targets count as missing."""
        return Missing(self.nan_is_missing, self.ignore_index)

    def draw(self) -> dict[str, Tensor | float]:
        """The likelihood's quantities besides the output, by name: fixed, fitted or, if random, drawn."""
        return {name: noise() for name, noise in self.named_children() if isinstance(noise, Noise)}

    def identity(self) -> str:
        """A text that identifies the likelihood: its type, and its fixed parameters without those that are fitted."""
        noises = [f"{name}={part.identity()}" for name, part in self.named_children() if isinstance(part, Noise)]
        defaults = {"output": None, "nan_is_missing": False, "ignore_index": None}
        given = {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}
        options = [f"{name}={value!r}" for name, value in given.items()]
        texts = (self.extra_repr(), *noises, *options, describe_settings(self)[0])
        return f"{type(self).__name__}({', '.join(text for text in texts if text)})"

    def not_described(self) -> list[str]:
        """What `identity` leaves out although two likelihoods may differ in it, as phrases for a warning."""
        return describe_settings(self)[1]

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """The distribution of the observations, a Pyro distribution with one batch axis.

        Args:
            output: The network's output, (batch, ...).
            quantities: The quantities that `draw` returns.
        """
        raise TypeError(f"{type(self).__name__} must implement distribution(output){see('how-to/write_a_likelihood')}")

    def closed(self, output: Moments, **quantities: Tensor | float) -> Closed | None:
        """Predictions and log-likelihoods in closed form for moments of the output; `None` where there is no formula.

        Args:
            output: Moments of the network's output.
            quantities: The quantities that `draw` returns.
        """
        return None

    def bound(self, output: Moments, **quantities: Tensor | float) -> Callable[[Tensor], Tensor] | None:
        """A closed lower bound of the mean log density of targets, one value for each example; `None` without one.

        Args:
            output: Moments of the network's output.
            quantities: The quantities that `draw` returns.
        """
        return None

    def forward(self, output: Output | Moments, quantities: dict[str, Tensor | float] | None = None) -> Distribution:
        """The distribution of the observations.

        Args:
            output: The network's output, or its moments.
            quantities: The quantities that `draw` returns; drawn now by default.
        """
        drawn = self.draw() if quantities is None else quantities
        read: Any = output if isinstance(self, FromOutput) else select_output(output, self.output, type(self).__name__)
        if isinstance(read, Moments):
            # There is no formula for targets of which some are missing.
            closed = (lambda: None) if self.missing else (lambda: self.closed(read, **drawn))
            bound = (lambda: None) if self.missing else (lambda: self.bound(read, **drawn))
            return OutputDistribution(read, lambda z: self._observed(z, drawn), closed, bound)
        return self._observed(read, drawn)

    def _observed(self, output: Tensor, quantities: dict[str, Tensor | float]) -> Distribution:
        distribution = self.distribution(output, **quantities)
        return with_missing(distribution, self.missing) if self.missing else distribution

    def read_target(self, given: object, what: str = "targets y") -> Target:
        """The targets that a user gave: a tensor, or a dictionary of tensors where there are several.

        Args:
            given: The targets.
            what: Name of the targets in error messages.

        Raises:
            TypeError: They are something else.
            ValueError: The dictionary has other names.
        """
        return read_targets(given, self.target_names, what, type(self).__name__)

    def check_shape(self, distribution: Distribution, target: Any) -> None:
        """Raise a `ValueError` if the targets' shape is not the distribution's, since they would be broadcast.

        Args:
            distribution: The distribution of the observations.
            target: The targets.
        """
        expected = tuple(distribution.batch_shape + distribution.event_shape)
        if tuple(target.shape) != expected:
            raise ValueError(
                f"likelihood {type(self).__name__}: expected targets of shape {expected} for this network output, got "
                f"{tuple(target.shape)}; reshape the targets or the network's last layer"
            )

    def check_target(self, distribution: Distribution, target: Any) -> None:
        """Raise a `ValueError` if targets are outside the distribution's support. This synchronizes with a GPU.

        Args:
            distribution: The distribution of the observations.
            target: The targets.
        """
        if self.missing:
            target = self.missing.filled(target, elementwise(distribution))
        if target.is_floating_point() and not bool(torch.isfinite(target).all()):
            bad = int((~torch.isfinite(target)).sum())
            has_option = not self.missing and not isinstance(self, FromOutput)
            own = "; NaN stands for missing targets with nan_is_missing=True" if has_option else ""
            raise ValueError(
                f"likelihood {type(self).__name__}: {bad} target(s) are NaN or infinite{own}; where a mask leaves them "
                f"out, put any number in their place, since NaN would pass into gradients"
                f"{see('how-to/write_a_likelihood')}"
            )
        check_support("function" if isinstance(self, FromOutput) else type(self).__name__, distribution, target)


class FromOutput(Likelihood):
    """A likelihood given by a function from the network's output to a Pyro distribution.

    Args:
        make: The function. The first batch axis of its distribution counts the examples.

    Example:
        >>> import pyro.distributions as dist
        >>> likelihood = FromOutput(lambda out: dist.Gamma(out.exp(), 1.0))
        >>> likelihood(torch.zeros(5, 2)).batch_shape, likelihood(torch.zeros(5, 2)).event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(self, make: Callable[[Any], Distribution]) -> None:
        super().__init__()
        self.make = make

    def identity(self) -> str:
        """The type, and the source of the function with the values that it uses."""
        return f"{type(self).__name__}({describe_function(self.make)[0]})"

    def not_described(self) -> list[str]:
        """What the function uses and no text can describe, such as objects of the user's classes."""
        return describe_function(self.make)[1]

    def distribution(self, output: Output, **quantities: Tensor | float) -> Distribution:
        """The distribution that the function returns for the output, all axes but the first as event axes."""
        distribution = self.make(output)
        if not hasattr(distribution, "to_event"):
            raise TypeError(
                f"likelihood function: expected a Pyro distribution (pyro.distributions), got {distribution!r:.60}"
                f"{see('how-to/write_a_likelihood')}"
            )
        return per_example(distribution)

    def check_target(self, distribution: Distribution, target: Tensor) -> None:
        """Raise a `ValueError` for targets that are NaN or infinite, and for labels that are no classes."""
        super().check_target(distribution, target)
        if isinstance(elementwise(distribution), Categorical):
            check_labels("function", distribution, target, "where a mask leaves them out, put any class in their place")


#: What a user may give as a likelihood: a `Likelihood`, or a function from the network's output to a Pyro distribution.
LikelihoodSpec = Likelihood | Callable[[Any], Distribution]


def as_likelihood(spec: LikelihoodSpec) -> Likelihood:
    """Convert what a user may give as a likelihood to a `Likelihood`.

    Args:
        spec: A `Likelihood`, or a function from the network's output to a Pyro distribution.

    Raises:
        TypeError: It is neither.

    Example:
        >>> import pyro.distributions as dist
        >>> as_likelihood(lambda output: dist.Normal(output, 1.0))
        FromOutput()
    """
    if isinstance(spec, Likelihood):
        return spec
    if callable(spec) and not isinstance(spec, (type, nn.Module)):
        return FromOutput(spec)
    hint = ""
    if isinstance(spec, type) and issubclass(spec, Likelihood):
        hint = f"; use an instance: {spec.__name__}()"
    elif isinstance(spec, nn.Module):
        hint = (
            "; for a mean squared error that is Gaussian(), for a cross-entropy Categorical() or Bernoulli(), for any "
            "other loss Loss(...)"
        )
    raise TypeError(
        "likelihood: expected a pyrostoch.likelihoods.* instance or a function from the network's output to a Pyro "
        f"distribution, got {spec!r}{hint}{see('how-to/write_a_likelihood')}"
    )


def elementwise(distribution: Distribution) -> Any:
    """The elementwise distribution inside `Independent` and other wrappers."""
    base: Any = distribution
    while hasattr(base, "base_dist"):
        base = base.base_dist
    return base


def check_labels(name: str, distribution: Distribution, target: Tensor, advice: str) -> None:
    """Raise a `ValueError` if labels are outside 0 ... C - 1.

    Args:
        name: Name of the likelihood.
        distribution: A categorical distribution.
        target: Labels.
        advice: What to do about others.
    """
    classes = elementwise(distribution).logits.shape[-1]
    wrong = (target < 0) | (target >= classes)
    if bool(wrong.any()):
        if classes == 1:
            expected = "labels 0, since the network has a single output, so a single class"
            advice = "give it an output for each class, or use Bernoulli() for two classes and a single output"
        else:
            expected = f"labels from 0 to {classes - 1} (the network has {classes} outputs)"
        raise ValueError(
            f"likelihood {name}: expected {expected}, got {int(wrong.sum())} outside, among them "
            f"{int(target[wrong][0])}; {advice}"
        )


def like(value: Tensor | float, output: Tensor) -> Tensor:
    """A quantity as a tensor with the dtype and device of the output, without a copy from the host.

    Raises:
        ValueError: It has numbers for outputs that are not there.
    """
    if isinstance(value, Tensor):
        if value.dim() == 1 and (output.dim() < 2 or output.shape[-1] != len(value)):
            raise ValueError(
                f"likelihood: expected a network output of shape (batch, {len(value)}), as there are {len(value)} "
                f"scales, one for each output, got {tuple(output.shape)}{see('how-to/write_a_likelihood')}"
            )
        return value.to(output.dtype)
    return torch.full((), value, dtype=output.dtype, device=output.device)


def positive(raw: Tensor) -> Tensor:
    """A positive scale from an unconstrained network output: its softplus, plus 1e-6."""
    return F.softplus(raw) + 1e-6

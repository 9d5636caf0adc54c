"""What a prior is: a module that gives the distribution of each weight of a site."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Transform, constraints

__all__ = ["FromDistribution", "Prior", "PriorSpec", "as_prior"]


class Prior(nn.Module):
    """The prior of a site's weights.

    Each site holds a copy of its own, so numbers that belong to a prior move with the model (`.to`), are saved with it,
    and a learned or random scale is the site's own. A subclass implements `distribution`.

    Attributes:
        improper: Whether the prior has no finite integral, so that an ELBO is defined up to a constant per weight.
    """

    improper = False

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The elementwise distribution of a site's weights, with batch shape `shape`.

        Args:
            name: The site's name; a random scale is a site named after it.
            shape: Shape of the weights.

        Returns:
            A Pyro distribution of batch shape `shape` and no event axes.
        """
        raise TypeError(f"{type(self).__name__} must implement distribution(name, shape)")

    def for_parameter(self, parameter: Tensor) -> Prior:
        """A copy for one parameter, on its device and in its dtype."""
        return copy.deepcopy(self).to(device=parameter.device, dtype=parameter.dtype)

    def extra_repr(self) -> str:
        """The prior's numbers, for its text."""
        return ", ".join(f"{name}={_text(value)}" for name, value in self.named_buffers(recurse=False))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


PriorSpec = Prior | Distribution | Callable[[str, Tensor], Any] | dict[str, Any] | None


def _text(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"


class FromDistribution(Prior):
    """Any Pyro distribution as the prior of every weight of a site.

    Its numbers move with the model, whatever the distribution is made of.

    Args:
        distribution: A distribution whose shape broadcasts to that of the weights.

    Raises:
        TypeError: It is no Pyro distribution, or not one over single real weights.

    Example:
        >>> import pyro.distributions as dist
        >>> FromDistribution(dist.Cauchy(0.0, 1.0)).distribution("w", torch.Size([2, 3])).batch_shape
        torch.Size([2, 3])
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        if not hasattr(distribution, "to_event"):
            raise TypeError(
                f"prior: expected a Pyro distribution, got torch's {type(distribution).__name__}; take "
                f"pyro.distributions.{type(distribution).__name__}"
            )
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        if distribution.event_shape or distribution.support is constraints.boolean:
            raise TypeError(f"prior: expected a distribution over single weights, got {distribution}")
        self.base = distribution
        self.improper = bool(getattr(distribution, "improper", False))

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The distribution, expanded to the weights."""
        return self.base.expand(shape)

    def __repr__(self) -> str:
        numbers = [name for name in self.base.arg_constraints if hasattr(self.base, name)]
        if not numbers:
            return repr(self.base)
        texts = (f"{name}={_text(torch.as_tensor(getattr(self.base, name)))}" for name in numbers)
        return f"{type(self.base).__name__}({', '.join(texts)})"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.base = _mapped(self.base, fn)
        return super()._apply(fn, recurse)


def _mapped(part: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a distribution, or of a part of one, with every tensor in it mapped."""
    if isinstance(part, Tensor):
        return fn(part)
    if isinstance(part, (list, tuple)) and not isinstance(part, torch.Size):
        return type(part)(_mapped(item, fn) for item in part)
    if isinstance(part, (Distribution, Transform)):
        twin = copy.copy(part)
        twin.__dict__.update({name: _mapped(value, fn) for name, value in vars(part).items()})
        return twin
    return part


def as_prior(spec: Any) -> Prior | None:
    """A prior from what a user may give for one: a `Prior`, a distribution, or `None`.

    Raises:
        TypeError: It is none of these.
    """
    if spec is None or isinstance(spec, Prior):
        return spec
    if isinstance(spec, Distribution):
        return FromDistribution(spec)
    if isinstance(spec, type):
        raise TypeError(f"prior: expected a prior, got the class {spec.__name__}; make one of it: {spec.__name__}()")
    raise TypeError(
        f"prior: expected a prior (pyrostoch.priors.*), a Pyro distribution or None, got {type(spec).__name__}"
    )

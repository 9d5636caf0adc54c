"""The base class of priors: modules that return the elementwise distribution of a parameter's weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Transform, constraints

from pyrostoch._descriptions import is_cached
from pyrostoch._manual import see
from pyrostoch.protocols import SiteGuide

__all__ = [
    "FromDistribution",
    "HoldsDistribution",
    "LearnedPrior",
    "Prior",
    "PriorSpec",
    "as_prior",
    "tensors_of",
    "values_of",
]


class Prior(nn.Module):
    """Base class of the priors of weights.

    Each parameter gets a copy of its prior. The copy's buffers and parameters move with the model (`.to`) and are saved
    with it, and a fitted or random scale is not shared between parameters. A subclass implements `distribution`.

    Attributes:
        improper: Whether the density has no finite integral, so that the ELBO is defined up to a constant per weight.

    Example:
        >>> import pyro.distributions as dist
        >>> class Cauchy(Prior):
        ...     def distribution(self, name, shape):
        ...         return dist.Cauchy(0.0, 1.0).expand(shape)
        >>> Cauchy().distribution("weight", torch.Size([2, 3])).batch_shape
        torch.Size([2, 3])
    """

    improper = False

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The elementwise distribution of a site's weights.

        Args:
            name: The site's name; a random scale becomes the site `<name>_prior_scale`.
            shape: Shape of the weights.

        Returns:
            A Pyro distribution of batch shape `shape` and no event axes. Where weights are drawn together, the event
            axes are the last ones of `shape`, or all of them.
        """
        raise TypeError(f"{type(self).__name__} must implement distribution(name, shape){see('how-to/write_a_prior')}")

    def for_parameter(self, parameter: Tensor) -> Prior:
        """A copy for one parameter, on its device and in its dtype.

        Args:
            parameter: The parameter.
        """
        return copy.deepcopy(self).to(device=parameter.device, dtype=parameter.dtype)

    def for_layer(self, name: str, parameter: Tensor, layers: Sequence[nn.Module]) -> Prior:
        """The copy for one parameter where it is known which layers hold it, as in a network.

        A prior overrides this if it depends on the layer, as one does whose scale belongs to a neuron.

        Args:
            name: The parameter's name.
            parameter: The parameter.
            layers: The modules that hold it: several where it is tied.
        """
        return self.for_parameter(parameter)

    def extra_repr(self) -> str:
        """The prior's parameters, for `repr`."""
        return ", ".join(f"{name}={_text(value)}" for name, value in self.named_buffers(recurse=False))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


#: What a user may give as the prior of a network: one prior, a guide, a function of each parameter's name and value, or
#: a dictionary from name patterns to priors, guides or functions; see `pyrostoch.priors.assign`.
PriorSpec = (
    Prior | Distribution | SiteGuide | Callable[[str, Tensor], Prior | Distribution | None] | dict[str, Any] | None
)


def _text(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"


class HoldsDistribution(nn.Module):
    """Base class of modules with a Pyro distribution as `base`, whose tensors move with the module."""

    base: Any

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.base = map_tensors(self.base, fn)
        return super()._apply(fn, recurse)


class LearnedPrior(nn.Module):
    """Base class of modules inside a network that are priors themselves: no single prior makes their parameters random.

    Example:
        >>> from pyrostoch import layers, priors
        >>> net = layers.StochasticLinear(3, 2, prior="learned")
        >>> list(priors.assign(net, priors.Normal()))
        ['kernel.weight']
    """


class FromDistribution(HoldsDistribution, Prior):
    """Any Pyro distribution as the prior of every weight of a site.

    A prior takes values: the tensors in the distribution are copied without their graph, so that no gradient reaches
    them and later changes do not reach the prior. The copies move with the model (`.to`).

    Args:
        distribution: A distribution whose batch shape broadcasts to the shape of the weights.

    Raises:
        TypeError: It is not a Pyro distribution, or not the distribution of a single real weight.

    Example:
        >>> import pyro.distributions as dist
        >>> FromDistribution(dist.Cauchy(0.0, 1.0)).distribution("w", torch.Size([2, 3])).batch_shape
        torch.Size([2, 3])
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        if not hasattr(distribution, "to_event"):
            raise TypeError(
                f"prior: expected a Pyro distribution, got torch's {type(distribution).__name__}; use "
                f"pyro.distributions.{type(distribution).__name__}"
                f"{see('how-to/write_a_prior')}"
            )
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        if distribution.event_shape or distribution.support is constraints.boolean:
            raise TypeError(
                f"prior: expected a distribution of single real weights, got {distribution}"
                f"{see('how-to/write_a_prior')}"
            )
        self.base = values_of(distribution)
        self.improper = bool(getattr(distribution, "improper", False))

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The distribution, expanded to the shape of the weights."""
        return self.base.expand(shape)

    @property
    def is_described_by_numbers(self) -> bool:
        """Whether the text of the prior holds all of its values: each of them is one number."""
        values = [torch.as_tensor(getattr(self.base, name)) for name in self.base.arg_constraints]
        return bool(values) and all(value.numel() == 1 for value in values)

    def __repr__(self) -> str:
        names = [name for name in self.base.arg_constraints if hasattr(self.base, name)]
        if not names:
            return repr(self.base)
        texts = (f"{name}={_text(torch.as_tensor(getattr(self.base, name)))}" for name in names)
        return f"{type(self.base).__name__}({', '.join(texts)})"


def values_of(distribution: Distribution) -> Any:
    """A copy of a distribution whose tensors have no graph, and share no memory with those of the original.

    Args:
        distribution: The distribution.

    Example:
        >>> import pyro.distributions as dist
        >>> loc = torch.zeros(2, requires_grad=True)
        >>> copied = values_of(dist.Normal(loc, 1.0))
        >>> copied.loc.requires_grad, copied.loc.data_ptr() == loc.data_ptr()
        (False, False)
    """
    return map_tensors(distribution, _copied)


def tensors_of(distribution: Distribution) -> list[Tensor]:
    """All tensors that a distribution holds.

    Args:
        distribution: The distribution.

    Example:
        >>> import pyro.distributions as dist
        >>> len(tensors_of(dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)))
        2
    """
    found: list[Tensor] = []

    def collect(value: Tensor) -> Tensor:
        found.append(value)
        return value

    map_tensors(distribution, collect)
    return found


def _copied(value: Tensor) -> Tensor:
    """A copy without graph; what an expanded tensor holds once is held once in the copy, too."""
    once = value.detach()
    for axis, stride in enumerate(once.stride()):
        if stride == 0 and once.shape[axis] > 1:
            once = once.narrow(axis, 0, 1)
    return once.clone().expand(value.shape)


def map_tensors(part: Any, fn: Callable[[Tensor], Tensor], copies: dict[int, Any] | None = None) -> Any:
    """A copy of a distribution, or of a part of one, with `fn` applied to every tensor in it.

    What its class computes once and keeps (`functools.cached_property`) is left out.

    Args:
        part: The distribution or the part.
        fn: Maps a tensor.
        copies: Copies made so far, by the original's id: a transform and its inverse refer to each other, and a tensor
            may have two names.
    """
    copies = {} if copies is None else copies
    if isinstance(part, Tensor):
        if id(part) not in copies:
            copies[id(part)] = fn(part)
        return copies[id(part)]
    if type(part) in (list, tuple):
        return type(part)(map_tensors(item, fn, copies) for item in part)
    if type(part) in (dict, OrderedDict):  # what a module holds its parameters in
        return type(part)((name, map_tensors(item, fn, copies)) for name, item in part.items())
    if isinstance(part, (Distribution, Transform, nn.Module)):
        if id(part) not in copies:
            mapped = copies[id(part)] = copy.copy(part)
            for name, value in vars(part).items():
                if is_cached(type(part), name):  # computed again when it is asked for
                    del mapped.__dict__[name]
                else:
                    mapped.__dict__[name] = map_tensors(value, fn, copies)
        return copies[id(part)]
    return part


def as_prior(spec: Prior | Distribution | None) -> Prior | None:
    """Convert what a user may give as a single prior: a `Prior`, a Pyro distribution, or `None`.

    Args:
        spec: The prior.

    Raises:
        TypeError: It is none of these.

    Example:
        >>> import pyro.distributions as dist
        >>> as_prior(dist.Normal(0.0, 2.0))
        Normal(loc=0, scale=2)
    """
    if spec is None or isinstance(spec, Prior):
        return spec
    if isinstance(spec, Distribution):
        return FromDistribution(spec)
    if isinstance(spec, type):
        raise TypeError(f"prior: expected a prior, got the class {spec.__name__}; use an instance: {spec.__name__}()")
    raise TypeError(
        f"prior: expected a prior (pyrostoch.priors.*), a Pyro distribution or None, got {type(spec).__name__}"
        f"{see('how-to/write_a_prior')}"
    )

"""The latent variables of models: what guides know of them, how they are named and drawn, and found in a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, transform_to

from pyrostoch._fixed_entries import FixedEntries
from pyrostoch._manual import see
from pyrostoch.distributions import PartlyFixed
from pyrostoch.effects import base_distribution, independent
from pyrostoch.effects.activation_sites import activation_of
from pyrostoch.protocols import PyroCallable

__all__ = [
    "Site",
    "activation_sites",
    "announce_parameters",
    "describe_sites",
    "draw_weight",
    "latent_sites",
    "site_key",
    "trace_of",
]


@dataclass(frozen=True, eq=False)
class Site:
    """Description of a latent variable of a model, from which guides are built.

    Args:
        name: Name of the Pyro site; for a weight, the parameter's name.
        init: Initial value for a guide: the network's current value, or a typical value of the prior.
        support: Support of the prior: real for most weights, positive for scales.
        role: `"weight"`, `"bias"`, or `"scale"` for a random scale of a prior or a likelihood.
        prior: The prior as text.
        improper: Whether the prior is improper.
        out_axis: Axis of `init` that counts output neurons or channels.
        layer: Class name of the module that holds the weight.
        fixed: Entries that torch holds constant, such as the padding row of an embedding; `None` if there are none.
    """

    name: str
    init: Tensor
    support: constraints.Constraint
    role: str
    prior: str
    improper: bool = False
    out_axis: int = 0
    layer: str = ""
    fixed: FixedEntries | None = None

    def __repr__(self) -> str:
        return f"Site({self.name!r}, {self.role} of shape {tuple(self.init.shape)}, prior {self.prior})"


def draw_weight(site: str, distribution: Distribution, shape: torch.Size, fixed: FixedEntries | None = None) -> Tensor:
    """Draw a weight as a Pyro site that is marked by `pyrostoch.effects.independent`.

    Args:
        site: Name of the site.
        distribution: Its Pyro distribution, elementwise, or with weights that are drawn together as its event.
        shape: Its shape.
        fixed: Entries that torch holds constant, which are not drawn.

    Raises:
        ValueError: The distribution is that of another shape, or draws entries together of which some are constant; or
            an enclosing plate or a vectorized inference gave the draw another shape.
    """
    if distribution.batch_shape + distribution.event_shape != shape:
        raise ValueError(
            f"site {site!r}: expected a prior of shape {tuple(shape)}, that of the parameter, got a "
            f"{type(distribution).__name__} of shape {tuple(distribution.batch_shape + distribution.event_shape)}; a "
            f"prior's distribution(name, shape) expands what it returns{see('how-to/write_a_prior')}"
        )
    if fixed is not None and distribution.event_shape:
        raise ValueError(
            f"site {site!r}: its prior {type(distribution).__name__} draws the entries together, but torch holds some "
            "of them constant (a padding row, or weights that torch.nn.utils.prune cut); give it an elementwise prior, "
            f"or none: {{{site!r}: None}}{see('how-to/write_a_prior')}"
        )
    drawn = distribution if fixed is None else PartlyFixed(distribution, fixed)
    fn = cast(Any, drawn)  # torch's class has no `to_event`, Pyro's subclasses do
    value: Tensor = pyro.sample(site, fn.to_event(len(fn.batch_shape)), infer=independent())
    if value.shape != shape:
        raise ValueError(
            f"site {site!r}: expected a draw of shape {tuple(shape)}, got {tuple(value.shape)}. The weights are drawn "
            "inside a pyro.plate (vectorize_particles and Predictive(parallel=True) open one), which draws them once "
            "for each of its entries; put only the observation inside plates, and draw in a loop"
        )
    return value


def site_key(site: str) -> str:
    """A site's name as the name of a submodule, which must not contain a dot or be that of a module's attribute.

    Example:
        >>> site_key("fc1.weight")
        'fc1/weight'
    """
    key = site.replace(".", "/")
    return f"/{key}" if hasattr(nn.ModuleDict, key) else key


def trace_of(fn: PyroCallable, *args: Any, **kwargs: Any) -> poutine.Trace:
    """Pyro's trace of a call, with errors as they were raised: Pyro appends the shapes of all sites to their message.

    Args:
        fn: A model or a guide.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> list(trace_of(lambda: pyro.sample("a", pyro.distributions.Normal(0.0, 1.0))).nodes)
        ['_INPUT', 'a', '_RETURN']
    """
    try:
        return poutine.trace(fn).get_trace(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        raised: BaseException = error
        while "Trace Shapes:" in str(raised) and raised.__cause__ is not None:
            raised = raised.__cause__
        if raised is error:
            raise
        raise raised from raised.__cause__


def latent_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Name and message of the latent variables of a trace, in order; without random activations and subsampling.

    Args:
        trace: A trace of a model or a guide.
    """
    for name, node in trace.nodes.items():
        if _is_latent(node) and activation_of(node) is None:
            yield name, node


def activation_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Name and message of the random activations of a trace that are latent, in order.

    Args:
        trace: A trace of a model or a guide.
    """
    for name, node in trace.nodes.items():
        if _is_latent(node) and activation_of(node) is not None:
            yield name, node


def _is_latent(node: Any) -> bool:
    return node["type"] == "sample" and not node["is_observed"] and type(node["fn"]).__name__ != "_Subsample"


def describe_sites(
    draw: Callable[[], object],
    start: Mapping[str, Tensor],
    describe_weight: Callable[[str, Tensor, constraints.Constraint], Site],
) -> dict[str, Site]:
    """Descriptions of the latent variables that a function draws, by name, in the order they are drawn.

    Args:
        draw: Draws them.
        start: The network's own values of the weights, by site name.
        describe_weight: Describes a weight, from its name, its value and its support; others are scales.
    """
    described = {}
    with poutine.block(), _StartValues(start), poutine.trace() as tracer:
        draw()
    for name, node in latent_sites(tracer.trace):
        distribution = base_distribution(node["fn"])
        init, support = node["value"].detach().clone(), cast(constraints.Constraint, distribution.support)
        while isinstance(support, (constraints.MixtureSameFamilyConstraint, constraints.independent)):
            support = support.base_constraint  # of an entry, where entries are drawn together
        if name in start:
            described[name] = describe_weight(name, init, support)
        else:
            described[name] = Site(name, init, support, "scale", type(distribution).__name__)
    return described


class _StartValues(Messenger):
    """Sets weights to their initial values and scales to typical ones, so that improper priors need not be drawn."""

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.start = start

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.start:
            value = self.start[msg["name"]]
        else:
            distribution = base_distribution(msg["fn"])
            value = distribution.mean
            if not bool(torch.isfinite(value).all()):
                value = _median(distribution)
            if not bool(torch.isfinite(value).all()):
                value = transform_to(distribution.support)(
                    torch.zeros(distribution.batch_shape, dtype=value.dtype, device=value.device)
                )
        msg["value"] = value
        msg["done"] = True


def _median(distribution: Distribution) -> Tensor:
    """The medians of a distribution without means; NaN where torch does not know its quantile function."""
    half: Tensor = torch.full_like(distribution.mean, 0.5)
    try:
        return distribution.icdf(half)
    except NotImplementedError:
        return torch.full_like(half, torch.nan)


def announce_parameters(module: nn.Module, prefix: str) -> None:
    """Send Pyro's handlers a `param` message for each trainable parameter of a module.

    `pyro.infer.SVI` optimizes the parameters of which it sees such messages. Unlike `pyro.module`, this does not copy
    them to the global parameter store.

    Args:
        module: The module.
        prefix: Prefix of the parameters' names.
    """
    if not am_i_wrapped():
        return
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            value: Any = parameter.detach()
            value.unconstrained = lambda parameter=parameter: parameter
            full = f"{prefix}.{name}"
            _parameter(value, constraint=constraints.real, event_dim=0, name=full)


@effectful(type="param")
def _parameter(value: Tensor, **_: Any) -> Tensor:
    return value

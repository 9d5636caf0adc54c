"""Buffers of a network that belong to a draw of its weights, such as the running statistics of batch normalization.

A guide announces them beside its draw, as deterministic sites of its trace. A model that runs on this draw, by replay
or condition, finds them there, and the network has them in place of its own buffers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.poutine import Trace
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyrostoch.effects.swap import tied_values

__all__ = [
    "announce_buffers",
    "buffer_sites",
    "drawn_buffers",
    "holding_buffers",
    "replayed_buffers",
    "with_buffers",
]

# No parameter, layer or quantity of a likelihood has such a name.
_PREFIX = "buffer: "


def announce_buffers(buffers: Mapping[str, Tensor]) -> None:
    """Say in a guide which buffers the network has under its draw; called within the guide.

    Args:
        buffers: The tensors, by the first name of each buffer in the network. A network in training mode writes into
            them.

    Example:
        >>> import torch
        >>> list(pyro.poutine.trace(announce_buffers).get_trace({"1.running_mean": torch.zeros(2)}).nodes)[1]
        'buffer: 1.running_mean'
    """
    for name, value in buffers.items():
        known: Any = dist.Delta(value, event_dim=value.dim(), validate_args=False).mask(False)
        pyro.sample(f"{_PREFIX}{name}", known, obs=value, infer={"_deterministic": True, "is_auxiliary": True})


def drawn_buffers(trace: Trace) -> dict[str, Tensor]:
    """The buffers that a guide has announced, by name.

    Args:
        trace: A trace of the guide.

    Example:
        >>> import torch
        >>> trace = pyro.poutine.trace(announce_buffers).get_trace({"1.running_mean": torch.zeros(2)})
        >>> drawn_buffers(trace)
        {'1.running_mean': tensor([0., 0.])}
    """
    return {name.removeprefix(_PREFIX): value for name, value in buffer_sites(trace).items()}


def buffer_sites(trace: Trace) -> dict[str, Tensor]:
    """The same by the names of the sites.

    Args:
        trace: A trace of the guide.
    """
    nodes: Any = trace.nodes
    return {name: node["value"] for name, node in nodes.items() if name.startswith(_PREFIX)}


def with_buffers(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """A copy of a guide's trace with the buffers of another draw.

    Args:
        trace: The trace.
        values: The result of `buffer_sites`, perhaps among values of other sites.
    """
    other = trace.copy()
    for name in buffer_sites(trace).keys() & values.keys():
        other.nodes[name] = {**other.nodes[name], "value": values[name]}
    return other


def replayed_buffers() -> dict[str, Tensor]:
    """The buffers of the draw that the running model is replayed on, or conditioned on; empty where there are none."""
    found: dict[str, Tensor] = {}
    for handler in _PYRO_STACK:
        if isinstance(handler, ReplayMessenger) and handler.trace is not None:
            found |= drawn_buffers(handler.trace)
        elif isinstance(handler, ConditionMessenger):
            data: Any = handler.data
            sites = buffer_sites(data) if isinstance(data, Trace) else data
            found |= {name.removeprefix(_PREFIX): v for name, v in sites.items() if name.startswith(_PREFIX)}
    return found


@contextlib.contextmanager
def holding_buffers(net: nn.Module, buffers: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a network hold other tensors in place of its buffers; what it writes goes into them, not into its own.

    Args:
        net: The network.
        buffers: The tensors, by the first name of each buffer.

    Example:
        >>> import torch
        >>> norm, mean = nn.BatchNorm1d(1, affine=False), torch.zeros(1)
        >>> with holding_buffers(norm, {"running_mean": mean}):
        ...     _ = norm(torch.ones(4, 1))
        >>> mean, norm.running_mean
        (tensor([0.1000]), tensor([0.]))
    """
    swapped: list[tuple[dict[str, Any], str, Tensor, Any]] = []
    try:
        for place, value in tied_values(net, buffers).items():
            prefix, _, last = place.rpartition(".")
            held: Any = net.get_submodule(prefix)._buffers
            swapped.append((held, last, value, held[last]))
            held[last] = value
        yield
    finally:
        for held, last, value, own in reversed(swapped):
            # A network may put a new tensor in the place of a buffer instead of writing into it.
            if held.get(last) is not value and isinstance(held.get(last), Tensor):
                value.detach().copy_(held[last].detach())
            held[last] = own

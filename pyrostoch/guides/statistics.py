"""Running statistics that belong to a guide: each member of a set has its own network, and the buffers with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.effects.statistics import announce_buffers
from pyrostoch.priors import fixed_parameters
from pyrostoch.sites import site_key

__all__ = [
    "Statistics",
    "announce_buffers_of",
    "give_statistics",
    "layers_with_statistics",
    "refuse_own",
    "refuse_unknown",
    "running_buffers",
    "statistics_of",
]


class Statistics(nn.Module):
    """Buffers of a network, such as the running statistics of batch normalization, that belong to a guide.

    They are saved, moved and copied with the guide, and the network has them in place of its own whenever it runs on a
    draw of the guide.

    Args:
        values: The tensors, which are copied, by the first name of each buffer in the network; of draws that are kept,
            those of all draws, (K, *shape). There are none where they are not known, and will be given.
        layers: Names of the layers whose buffers training changes.
        known: Whether the values are those of the guide's weights.

    Example:
        >>> found = Statistics({"1.running_mean": torch.zeros(2)}, ["1"], known=True)
        >>> found.values(), bool(found.known)
        ({'1.running_mean': tensor([0., 0.])}, True)
    """

    known: Tensor

    def __init__(self, values: Mapping[str, Tensor], layers: Iterable[str], *, known: bool = False) -> None:
        super().__init__()
        self.register_buffer("known", torch.tensor(known))
        self.names, self.layers = tuple(values), tuple(layers)
        self._seen: tuple[tuple[int, int], bool] | None = None
        self.held = nn.Module()
        for name, value in values.items():
            self.held.register_buffer(site_key(name), value.detach().clone())

    @property
    def are_known(self) -> bool:
        """`known` as a number of Python, which is read only after it was written to: a step never waits for it."""
        state = (id(self.known), self.known._version)
        # A graph that is traced cannot read it; the eager step before has.
        if self._seen is None or (self._seen[0] != state and not is_in_torch_dispatch_mode()):
            self._seen = (state, bool(self.known))
        return self._seen[1]

    def values(self, index: int | None = None) -> dict[str, Tensor]:
        """The tensors themselves, by the name of the network's buffer.

        Args:
            index: Number of the draw, where those of several are kept.
        """
        values = {name: self.held.get_buffer(site_key(name)) for name in self.names}
        return values if index is None else {name: value[index] for name, value in values.items()}


def layers_with_statistics(net: object) -> dict[str, nn.Module]:
    """The layers of a network whose buffers training changes: batch and spectral normalization, by name.

    Batch normalization whose parameters the user has fixed (`requires_grad=False`) keeps its statistics in `fit`, and
    is not among them.

    Args:
        net: The network.

    Example:
        >>> list(layers_with_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1']
    """
    if not isinstance(net, nn.Module):
        return {}
    fixed = fixed_parameters(net)
    return {name: module for name, module in net.named_modules() if _changes(module, fixed)}


def running_buffers(net: object) -> dict[str, Tensor]:
    """The buffers of the layers of `layers_with_statistics` that an output depends on, by name.

    Args:
        net: The network.

    Example:
        >>> list(running_buffers(nn.Sequential(nn.BatchNorm1d(2))))
        ['0.running_mean', '0.running_var']
    """
    return {
        f"{name}.{last}" if name else last: buffer
        for name, module in layers_with_statistics(net).items()
        for last, buffer in module._buffers.items()
        if buffer is not None and last != "num_batches_tracked"
    }


def statistics_of(guide: object) -> Statistics | None:
    """The statistics that belong to a guide, if there are any.

    Args:
        guide: The guide.
    """
    found = getattr(guide, "own_statistics", None)
    return found if isinstance(found, Statistics) else None


def give_statistics(net: nn.Module, guide: nn.Module, *, known: bool = False) -> Statistics | None:
    """Give a guide buffers of its own, which start at the network's; one that has some keeps them.

    Args:
        net: The network.
        guide: The guide, which is changed.
        known: Whether the network's are those of the guide's weights.

    Returns:
        What the guide has now; `None` where the network has no buffers.
    """
    buffers, found = dict(net.named_buffers()), statistics_of(guide)
    if buffers and (found is None or not found.names):
        guide.own_statistics = Statistics(buffers, layers_with_statistics(net), known=known)
    return statistics_of(guide)


def announce_buffers_of(guide: nn.Module, index: int | None = None) -> None:
    """Announce within a guide the buffers that belong to its draw, if it has some.

    Args:
        guide: The guide.
        index: Number of the draw, where those of several are kept.

    Raises:
        ValueError: They were never computed.
    """
    found = statistics_of(guide)
    if found is None:
        return
    if found.layers and not found.are_known:
        refuse_unknown(type(guide).__name__, found.layers)
    announce_buffers(found.values(index))


def refuse_unknown(guide: str, layers: Iterable[str], remedy: str = "") -> NoReturn:
    """Raise the error for draws whose statistics are not known.

    Args:
        guide: Class of the guide.
        layers: The layers whose statistics they are.
        remedy: What to do; by default, to compute them.

    Raises:
        ValueError: Always.
    """
    remedy = remedy or "compute them by fit_statistics(model, guide, train), or let fit train the whole ensemble"
    raise ValueError(
        f"guide {guide}: expected running statistics of each draw for the layer(s) {name_list(layers)}, but the "
        f"network has only those of the weights that were trained last; {remedy}{see('how-to/ensembles')}"
    )


def refuse_own(guide: object, purpose: str) -> None:
    """Raise an error for a guide with statistics of its own, where only the network's are read.

    Args:
        guide: The guide.
        purpose: Name of the calling function.

    Raises:
        ValueError: It has some; the layers are named.
    """
    own = statistics_of(guide)
    if own is not None and own.layers:
        raise ValueError(
            f"{purpose}: expected a guide that shares the network's running statistics, but this "
            f"{type(guide).__name__} has its own for the layer(s) {name_list(own.layers)}; put them into the network "
            "first: model.net.load_state_dict(guide.own_statistics.values(), strict=False); del guide.own_statistics"
            f"{see('how-to/ensembles')}"
        )


def _changes(module: nn.Module, fixed: set[int]) -> bool:
    """Whether training changes the buffers of a module."""
    if isinstance(module, _NormBase):
        own = list(module.parameters(recurse=False))
        kept = "_pyrostoch_keeps_statistics" in vars(module) or (own and all(id(part) in fixed for part in own))
        return module.running_mean is not None and not kept
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)

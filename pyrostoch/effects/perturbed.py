"""A network with perturbed parameters and buffers, for passes that are repeated and compared.

The values of a network that has not been trained hide what it does: a branch that begins at zero, equal weights,
running statistics of 0 and 1. So every entry is moved a little before it is studied what the network does with its
weights and examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from pyro.poutine import block
from torch import Tensor, nn

from pyrostoch.effects.activation import ExpectedActivations
from pyrostoch.effects.active import entered
from pyrostoch.effects.repeatable import attributes_restored, same_randomness, size_of
from pyrostoch.effects.swap import call_with
from pyrostoch.effects.trees import map_tensors, tensors_in

__all__ = ["SEED", "Reading", "PerturbedNetwork", "on_first_terms"]

#: Seed of the passes and, with the number of the attempt added, of the perturbations.
SEED = 20_240_229

# Number of parameters from which on a copy in double precision would take too much memory.
_MAX_DOUBLE = 10**8

_PERTURBATION, _LARGE_PERTURBATION = 0.1, 2.0
# Whether the network runs in double precision, and whether buffers are perturbed: tried in this order.
_TERMS = ((True, True), (False, True), (False, False))

#: Computes tensors from a network's output: (output) -> tensors, or `None` where it cannot.
Reading = Callable[[Any], Any]

_T = TypeVar("_T")


def on_first_terms(run: Callable[[bool, bool], _T]) -> _T:
    """Run an experiment in double precision with all buffers moved, or else in a way that the network supports.

    Own dtypes may be fixed in a network's code; a buffer may hold what a perturbation makes invalid, such as
    probabilities or a covariance.

    Args:
        run: The experiment: (double precision?, move buffers?) -> result.

    Returns:
        Its first result.

    Raises:
        Exception: What the experiment raised in the last of these ways.
    """
    for double, move_buffers in _TERMS[:-1]:
        try:
            return run(double, move_buffers)
        except Exception:  # a network may raise anything
            continue
    return run(*_TERMS[-1])


class PerturbedNetwork:
    """A network's perturbed values, and passes with them.

    Args:
        net: The network; its own parameters and buffers are not changed.
        random: Names of its random weights, which every pass is given.
        args: Positional inputs.
        kwargs: Keyword inputs.
        seed: Number of the attempt: another perturbation each, and larger ones from the second on.
        double: Whether the network runs in double precision, where small effects beside large entries are seen; not if
            it has more than 100 million parameters.
        move_buffers: Whether buffers are perturbed, too.
        reading: What is computed from the network's output, such as log densities; `None` for the output itself.
        device: Where the passes run; by default where the network is.

    Attributes:
        weights: The perturbed random weights.
        args: Positional inputs, in the precision of the passes.
        kwargs: Keyword inputs, in the precision of the passes.
        device: The network's device.
        draws: Whether the network has drawn random numbers in a pass so far.

    Example:
        >>> moved = PerturbedNetwork(nn.Linear(2, 1), ["weight"], (torch.ones(3, 2),), {})
        >>> output, = moved.call(moved.weights)
        >>> output.shape, output.dtype, moved.draws
        (torch.Size([3, 1]), torch.float64, False)
    """

    def __init__(
        self,
        net: nn.Module,
        random: Iterable[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        seed: int = 0,
        double: bool = True,
        move_buffers: bool = True,
        reading: Reading | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.net, self._reading, self._device = net, reading, device
        self._double = double and sum(parameter.numel() for parameter in net.parameters()) <= _MAX_DOUBLE
        self.args, self.kwargs = self.cast((args, kwargs))
        self._generator = torch.Generator().manual_seed(SEED + seed)
        self._size = _PERTURBATION if seed == 0 else _LARGE_PERTURBATION
        self.weights = {name: self._moved(net.get_parameter(name)) for name in random}
        others = {name: self._moved(value) for name, value in net.named_parameters() if name not in self.weights}
        aliases = {id(parameter) for parameter in net.parameters()}
        buffers = {name: buffer for name, buffer in net.named_buffers() if id(buffer) not in aliases}
        others |= {n: self._moved(b) if move_buffers else self._cast(b.clone()) for n, b in buffers.items()}
        self._others = others
        tensors = (*net.parameters(), *net.buffers(), *tensors_in((args, kwargs)))
        self.device = device or next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.draws = False

    def call(
        self,
        weights: Mapping[str, Tensor],
        mode: AbstractContextManager[Any] | None = None,
        seed: int = SEED,
        inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    ) -> list[Tensor]:
        """One pass, with the same random numbers as every other of this seed.

        Args:
            weights: The random weights.
            mode: A context around the pass, such as a `TorchFunctionMode`.
            seed: Seed of the network's own random numbers.
            inputs: Positional and keyword inputs; by default those given at the start.

        Returns:
            The real tensors of the output, or of what is read from it, a complex one as pairs.
        """
        values = {name: value.clone() for name, value in self._others.items()} | dict(weights)
        args, kwargs = map_tensors(torch.clone, (self.args, self.kwargs) if inputs is None else inputs)
        with (
            attributes_restored(self.net),
            same_randomness(self.device, seed) as has_drawn,
            torch.enable_grad(),
            torch.autocast(self.device.type, enabled=False),
            block(),
            entered(None),
            # Draws may happen not to move where their inputs do, and rejection takes more or less random numbers for
            # others; means do what the inputs do.
            ExpectedActivations(),
            mode or nullcontext(),
        ):
            found = call_with(self.net, values, args, kwargs)
            self.draws = self.draws or has_drawn()
            if self._reading is not None:
                read = self._reading(found)
                found = found if read is None else read
        real = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors_in(found))
        return [tensor for tensor in real if tensor.is_floating_point()]

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers, new ones at each call.

        Args:
            like: Gives shape, device and dtype.
        """
        return torch.randn(like.shape, generator=self._generator).to(device=like.device, dtype=like.dtype)

    def cast(self, tree: Any) -> Any:
        """Tensors in nested tuples, lists and dictionaries, in the precision of the passes.

        Args:
            tree: The tensors.
        """
        return map_tensors(self._cast, tree)

    def _cast(self, value: Tensor) -> Tensor:
        value = value if self._device is None else value.to(self._device)
        return value.double() if self._double and value.is_floating_point() else value

    def _moved(self, value: Tensor) -> Tensor:
        """Every entry scaled a little, and zeros moved off zero: a branch that begins at zero would hide."""
        value = self._cast(value.detach().clone())
        if not value.is_floating_point() or not value.numel():
            return value
        noise = self.noise(value)
        moved = value * (1 + self._size * noise)
        moved = torch.where(value == 0, 0.3 * size_of(value) * noise, moved)
        return torch.where(torch.isfinite(value), moved, value)

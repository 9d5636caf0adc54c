"""Weight usage: where a network uses each random weight, found by one pass that changes nothing.

Treating a weight by the distribution of a layer's output is right only where that layer is the weight's one use. A
weight that is tied, looped over, transposed or handed to attention would be silently wrong, so the uses are counted
first, by identity.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from pyro.poutine import block
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode, resolve_name

from pyrostoch._ops import bind
from pyrostoch.effects.active import entered

__all__ = ["Use", "batch_of", "weight_usage", "tensors_in"]


@dataclass(frozen=True)
class Use:
    """One use of a weight: the function, its part in it, and how often the function applies it to one example.

    Args:
        function: Readable name of the torch function.
        role: `"weight"` or `"bias"` of a linear or convolution, `"other"` elsewhere.
        applications: Applications to one row of the input: conv positions or tokens; 1 for a plain linear layer.
        folded: Rows of the input that belong to one example; more than 1 where tokens are folded into the batch.
        spatial: Number of spatial dimensions; 0 for a linear layer.
        output: Whether what this linear operation returned is what the network returns, reshaped or normalized by a
            log-softmax at most.
    """

    function: str
    role: str
    applications: int = 1
    folded: int = 1
    spatial: int = 0
    output: bool = False


# What hands on a layer's output entry by entry, or up to the constant that a softmax does not see.
_NAMES = ("flatten", "log_softmax", "permute", "reshape", "squeeze", "transpose", "unsqueeze")
_METHODS = (*_NAMES, "__getitem__", "contiguous", "double", "float", "to", "view")
_HANDS_ON: frozenset[Any] = frozenset(
    [F.log_softmax, *(getattr(torch, name) for name in _NAMES), *(getattr(Tensor, name) for name in _METHODS)]
)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_in(item)


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of examples of a network call: the first axis of its first input."""
    first = next(tensors_in((args, kwargs)), None)
    return 1 if first is None or first.dim() == 0 else len(first)


@dataclass
class _UsageMode(TorchFunctionMode):
    """Write down every function that reads a weight."""

    weights: dict[str, Tensor]
    replaced: dict[str, Tensor]
    batch: int
    uses: dict[str, list[Use]] = field(default_factory=dict)
    bypassed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.uses = {name: [] for name in self.weights}
        # The dictionaries keep every tensor alive, so an id stands for one tensor throughout.
        self._names = {id(value): name for name, value in self.weights.items()}
        self._stale = {id(value): name for name, value in self.replaced.items()}
        # Outputs of layers, by identity as long as they live, and unchanged in place since: what made them.
        self._made: dict[int, tuple[weakref.ref[Tensor], int, tuple[str, int]]] = {}

    def _maker(self, tensor: Tensor) -> tuple[str, int] | None:
        """The weight (and which of its uses) whose layer made this very tensor, if one did."""
        reference, version, maker = self._made.get(id(tensor), (None, 0, None))
        alive = reference is not None and reference() is tensor
        return maker if alive and version == _version(tensor) else None

    def _note(self, result: Any, maker: tuple[str, int]) -> None:
        if isinstance(result, Tensor):
            self._made[id(result)] = (weakref.ref(result), _version(result), maker)

    def mark_outputs(self, output: Any) -> None:
        """Mark the uses that made what the network returned."""
        for name, index in {maker for tensor in tensors_in(output) if (maker := self._maker(tensor)) is not None}:
            self.uses[name][index] = replace(self.uses[name][index], output=True)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Reading `weight.shape` or `weight.device` is no use of the weight.
        if next(tensors_in(result), None) is None:
            return result
        op = bind(func, args, kwargs)
        first = next(tensors_in(args), None)
        if func in _HANDS_ON and first is not None and (maker := self._maker(first)) is not None:
            self._note(result, maker)
        for tensor in tensors_in((args, kwargs)):
            if id(tensor) in self._stale:
                self.bypassed.add(self._stale[id(tensor)])
            name = self._names.get(id(tensor))
            if name is None:
                continue
            if op is None or not (tensor is op.weight or tensor is op.bias):
                self.uses[name].append(Use(_readable(func), "other"))
                continue
            role = "weight" if tensor is op.weight else "bias"
            applications, folded = op.applications(result), op.folded(self.batch)
            self.uses[name].append(Use(_readable(func), role, applications, folded, op.spatial))
            if role == "weight":
                self._note(result, (name, len(self.uses[name]) - 1))
        return result


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _readable(func: Callable[..., Any]) -> str:
    return resolve_name(func) or getattr(func, "__name__", repr(func))


def weight_usage(
    net: nn.Module, weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[Use, ...]]:
    """Count the uses of each weight in one pass of `net` that leaves buffers and random generators as they were.

    Args:
        net: The network.
        weights: Sampled weights by parameter name.
        args: Positional inputs of the network.
        kwargs: Keyword inputs of the network.

    Returns:
        For each weight, its uses in order.

    Raises:
        RuntimeError: A weight was never used, or the network also reads its parameter through another reference: the
            drawn value would have no effect, or not its full effect.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> uses = weight_usage(net, {"weight": torch.ones(3, 2)}, (torch.ones(5, 2),), {})
        >>> uses["weight"][0].role, uses["weight"][0].applications
        ('weight', 1)
    """
    # Copies: a network may write into its weights (a mask, max_norm), and these share memory with the guide's.
    weights = {name: value.detach().clone() for name, value in weights.items()}
    replaced: dict[str, Tensor] = {name: net.get_parameter(name) for name in weights}
    mode = _UsageMode(weights, replaced, batch_of(args, kwargs))
    aliases = {id(parameter) for parameter in net.parameters()}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers() if id(buffer) not in aliases}
    devices = sorted({w.device.index for w in weights.values() if w.device.type == "cuda"})
    with (
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        warnings.catch_warnings(),
        block(),
        entered(None),
        mode,
    ):
        warnings.simplefilter("ignore")  # the real pass follows, warns, and draws what the network draws itself
        output = functional_call(net, {**buffers, **weights}, args, kwargs)
    mode.mark_outputs(output)
    if mode.bypassed:
        raise RuntimeError(
            f"random weight(s) {', '.join(map(repr, sorted(mode.bypassed)))} of {type(net).__name__}: the network also "
            "reads the parameter through another reference (a list, a partial, a closure), which keeps the old value "
            "while the weight is drawn; read it as an attribute of its module each time"
        )
    unused = [name for name, uses in mode.uses.items() if not uses]
    if unused:
        raise RuntimeError(
            f"random weight(s) {', '.join(map(repr, unused))} of {type(net).__name__} are drawn, but the network never "
            "uses them in its forward pass (an unused branch, one taken in another thread or only with gradients on, a "
            "cached copy, a scripted module), so they cannot be made random; exclude them by a prior rule such as "
            f"{{{unused[0]!r}: None}}"
        )
    return {name: tuple(uses) for name, uses in mode.uses.items()}

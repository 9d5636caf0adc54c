"""Weight usage: where a network uses each random weight, found by one pass that changes no state.

Replacing a weight by the distribution of its layer's output is correct only where this layer is the weight's only use.
For a weight that is tied, reused in a loop, transposed or passed to attention it would be wrong without an error, so
the uses are counted first. Tensors are recognized by identity.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from pyro.poutine import block
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pyrostoch._inputs import count_examples
from pyrostoch._manual import see
from pyrostoch._ops import bind
from pyrostoch._structure import Structure
from pyrostoch.effects.active import entered
from pyrostoch.effects.repeatable import attributes_restored
from pyrostoch.effects.swap import call_with
from pyrostoch.effects.trees import map_tensors, tensors_in
from pyrostoch.protocols import InDims

__all__ = ["Usage", "UsageCache", "Use", "batch_of", "call_kind", "warn_of_unused", "weight_usage"]

# Passes after which a weight that none of them has used is worth a warning.
_MANY_PASSES = 100


@dataclass(frozen=True)
class Use:
    """One use of a weight by a torch function.

    Args:
        function: Readable name of the function.
        role: `"weight"` or `"bias"` of a linear layer or a convolution, `"other"` in any other function.
        applications: How often the weight is applied to one row of the input: the number of output positions of a
            convolution, or of tokens; 1 for a linear layer on `(batch, features)`.
        folded: Rows of the input that belong to one example; more than 1 where tokens are folded into the batch.
        spatial: Number of spatial dimensions; 0 for a linear layer.
        output: Whether the network returns the result of this linear operation, at most reshaped or passed through a
            log-softmax.
    """

    function: str
    role: str
    applications: int = 1
    folded: int = 1
    spatial: int = 0
    output: bool = False


@dataclass
class Usage:
    """What is known of a network's random weights from its first pass.

    Args:
        uses: Uses of each weight, in order.
        obstacles: Of each weight that was analyzed, why it may not be replaced by the distribution of its layer's
            output, as `separation.obstacles` finds it; `None` where it may.
        batch: Number of examples on which that was found.
        writes_inputs: Whether the network writes into its inputs, so that it must be given copies.

    Attributes:
        unused: Weights that no pass has used so far.
        passes: Number of passes since the first one, while there are such weights.
    """

    uses: dict[str, tuple[Use, ...]]
    obstacles: dict[str, str | None] = field(default_factory=dict)
    batch: int = 0
    writes_inputs: bool = False
    unused: set[str] = field(default_factory=set)
    passes: int = 0

    def __post_init__(self) -> None:
        self.unused = {name for name, uses in self.uses.items() if not uses}

    def count_pass(self, net: nn.Module) -> None:
        """Count a pass of the network; warn if after many of them a weight has not been used.

        Args:
            net: The network, for the warning.
        """
        self.passes += 1
        if self.unused and self.passes == _MANY_PASSES:
            warn_of_unused(net, self.unused, f"the first {self.passes} forward passes")


#: Results by the kind of a call; see `call_kind`.
UsageCache = dict[tuple[Any, ...], Usage]

# Functions that only rearrange, select or convert the entries of a layer's output, or that shift them by a constant,
# which does not change their softmax.
_NAMES = ("flatten", "log_softmax", "permute", "reshape", "squeeze", "transpose", "unsqueeze")
_METHODS = (*_NAMES, "__getitem__", "contiguous", "double", "float", "to", "view")
_PASS_THROUGH: frozenset[Any] = frozenset(
    [F.log_softmax, *(getattr(torch, name) for name in _NAMES), *(getattr(Tensor, name) for name in _METHODS)]
)


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any], in_dims: InDims = 0) -> int:
    """Number of examples of a network call.

    Args:
        args: Positional inputs.
        kwargs: Keyword inputs.
        in_dims: The axis of each positional input that counts the examples; a number stands for the first tensor.

    Returns:
        The number; 1 where no input has such an axis.
    """
    if isinstance(in_dims, tuple):
        return count_examples(args, in_dims) or 1
    first = next(tensors_in((args, kwargs)), None)
    if first is None or first.dim() == 0 or in_dims is None:
        return 1
    return count_examples(first, in_dims) or 1


def warn_of_unused(net: nn.Module, names: Iterable[str], when: str) -> None:
    """Warn of random weights whose draws have had no effect.

    A module that chooses among its parts by the input, as `layers.Conditional` does by the label, says so by an
    attribute `chooses_parts`; what is in it is left out.

    Args:
        net: The network.
        names: The weights.
        when: The passes that did not use them.
    """
    choosing = [name for name, part in net.named_modules() if getattr(part, "chooses_parts", False)]
    chosen = tuple(f"{name}." if name else "" for name in choosing)
    listed = sorted(name for name in names if not name.startswith(chosen))
    if not listed:
        return
    warnings.warn(
        f"random weight(s) {', '.join(map(repr, listed))} of {type(net).__name__}: {when} did not use them, so their "
        "draws have had no effect. If the network never uses them (an unused branch, one in another thread, a cached "
        f"copy), exclude them by a prior rule such as {{{listed[0]!r}: None}}",
        UserWarning,
        stacklevel=2,
    )


def call_kind(
    net: nn.Module, weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """What calls have in common that use their weights alike: modes, random weights, kinds of inputs, options.

    Args:
        net: The network.
        weights: Random weights by parameter name.
        args: Positional inputs.
        kwargs: Keyword inputs.
    """
    inputs = tuple((tensor.dim(), tensor.dtype) for tensor in tensors_in((args, kwargs)))
    options = tuple(
        option
        for option in (*args, *kwargs.values())
        if option is None or type(option) in (bool, int, float, str, Structure)
    )
    parts = list(net.modules())
    modes = tuple(part.training for part in parts)
    # Flags and names may choose what a forward pass does. Numbers are mostly counters.
    flags = tuple(
        value
        for part in parts
        for name, value in vars(part).items()
        if type(value) in (bool, str) and name != "training"
    )
    # Numbers of nodes and groups may tell which examples meet; a single number is a counter.
    indices = tuple(
        (id(buffer), _version(buffer))
        for part in parts
        for buffer in part._buffers.values()
        if buffer is not None and buffer.numel() > 1 and not (buffer.is_floating_point() or buffer.is_complex())
    )
    return (modes, flags, indices, tuple(weights), inputs, options, tuple(kwargs))


@dataclass
class _UsageMode(TorchFunctionMode):
    """Record every function that reads a weight."""

    weights: dict[str, Tensor]
    replaced: dict[str, Tensor]
    batch: int
    uses: dict[str, list[Use]] = field(default_factory=dict)
    bypassed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.uses = {name: [] for name in self.weights}
        # The dictionaries keep every tensor alive, so no id is used twice.
        self._names = {id(value): name for name, value in self.weights.items()}
        self._replaced_names = {id(value): name for name, value in self.replaced.items()}
        # By id of a layer's output: a weak reference to it, its version (see `_version`), and the weight and the index
        # of the use that made it. An entry is valid while the tensor is alive and has not been written to.
        self._made: dict[int, tuple[weakref.ref[Tensor], int, tuple[str, int]]] = {}

    def _maker(self, tensor: Tensor) -> tuple[str, int] | None:
        """The weight, and the index of its use, whose layer made this tensor; `None` where no layer did."""
        reference, version, maker = self._made.get(id(tensor), (None, 0, None))
        alive = reference is not None and reference() is tensor
        return maker if alive and version == _version(tensor) else None

    def _note(self, result: Any, maker: tuple[str, int]) -> None:
        if isinstance(result, Tensor):
            self._made[id(result)] = (weakref.ref(result), _version(result), maker)

    def mark_outputs(self, output: Any) -> None:
        """Mark the uses that made the tensors which the network returned."""
        for name, index in {maker for tensor in tensors_in(output) if (maker := self._maker(tensor)) is not None}:
            self.uses[name][index] = replace(self.uses[name][index], output=True)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Reading `weight.shape` or `weight.device` does not count as a use.
        if next(tensors_in(result), None) is None:
            return result
        op = bind(func, args, kwargs)
        first = next(tensors_in(args), None)
        if func in _PASS_THROUGH and first is not None and (maker := self._maker(first)) is not None:
            self._note(result, maker)
        for tensor in tensors_in((args, kwargs)):
            if id(tensor) in self._replaced_names:
                self.bypassed.add(self._replaced_names[id(tensor)])
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
    """How often a tensor was written to; 0 for inference tensors, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _readable(func: Callable[..., Any]) -> str:
    return resolve_name(func) or getattr(func, "__name__", repr(func))


def weight_usage(
    net: nn.Module, weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], in_dims: InDims = 0
) -> Usage:
    """Find the uses of each weight in one pass of `net`, which leaves it, its inputs and random generators unchanged.

    Args:
        net: The network.
        weights: Sampled weights by parameter name.
        args: Positional inputs of the network.
        kwargs: Keyword inputs of the network.
        in_dims: The axis of each input that counts the examples.

    Returns:
        The usage, in which each weight has its uses in order; none for one that this pass left out, as experts chosen
        by the input are.

    Raises:
        RuntimeError: The network also reads a weight's parameter through another reference, where the drawn value would
            have no effect.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> uses = weight_usage(net, {"weight": torch.ones(3, 2)}, (torch.ones(5, 2),), {}).uses
        >>> uses["weight"][0].role, uses["weight"][0].applications
        ('weight', 1)
    """
    # Copies, since a network may write into its weights (a mask, max_norm), which share memory with the guide's.
    weights = {name: value.detach().clone() for name, value in weights.items()}
    with torch.inference_mode(False), torch.no_grad():  # what counts how often it is written to
        args, kwargs = map_tensors(torch.clone, (args, kwargs))
    replaced: dict[str, Tensor] = {name: net.get_parameter(name) for name in weights}
    mode = _UsageMode(weights, replaced, batch_of(args, kwargs, in_dims))
    aliases = {id(parameter) for parameter in net.parameters()}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers() if id(buffer) not in aliases}
    devices = sorted({w.device.index for w in weights.values() if w.device.type == "cuda"})
    with (
        attributes_restored(net),
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        warnings.catch_warnings(),
        block(),
        entered(None),
        mode,
    ):
        warnings.simplefilter("ignore")  # the network runs again after this pass, and warns then
        output = call_with(net, {**buffers, **weights}, args, kwargs)
    mode.mark_outputs(output)
    if mode.bypassed:
        raise RuntimeError(
            f"random weight(s) {', '.join(map(repr, sorted(mode.bypassed)))} of {type(net).__name__}: the network also "
            "reads the parameter through another reference (a list, a partial, a closure), which keeps the old value "
            "while the weight is drawn; read it as an attribute of its module each time"
            f"{see('how-to/convert_network')}"
        )
    writes_inputs = any(_version(tensor) > 0 for tensor in tensors_in((args, kwargs)))
    return Usage({name: tuple(uses) for name, uses in mode.uses.items()}, writes_inputs=writes_inputs)

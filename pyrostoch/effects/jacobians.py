"""Derivatives of a network's output by its random weights, example by example."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._inputs import count_examples, example_axes, have_common_part, take_examples
from pyrostoch._manual import see
from pyrostoch.effects.meeting import MOST_EXAMPLES, depends_on_place, examples_meet
from pyrostoch.effects.network import NetworkCall
from pyrostoch.effects.trees import tensors_in
from pyrostoch.effects.usage import call_kind

__all__ = ["Rows", "jacobian_rows", "output_of"]

# Bytes of the derivatives that exist at a time.
_MAX_BYTES = 2**26
# Whether examples meet in a network, for each kind of call.
_MEETS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], bool]] = weakref.WeakKeyDictionary()
# How far the outputs of single examples may be from those of the batch, in units of the largest one: rounding errors.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Rows:
    """Derivatives of the outputs of some examples.

    Args:
        examples: Which examples of the batch.
        jacobian: The derivatives by each weight, (n, *output, *weight), by the parameter's name.
    """

    examples: slice
    jacobian: dict[str, Tensor]


def output_of(call: NetworkCall) -> tuple[Any, Tensor]:
    """What a network returns for a batch, and the only tensor in it.

    Args:
        call: The network call.

    Raises:
        ValueError: There is no tensor, or several; or its first axis does not count the examples.
    """
    given = call.weights
    # Copies, since a network may write into its weights, at which it is differentiated afterwards.
    call.weights = {name: value.clone() for name, value in given.items()}
    output = call.run()
    call.weights = given
    found = [leaf for leaf in tensors_in(output) if leaf.is_floating_point()]
    count = count_examples(call.args, call.in_dims) if call.args else None
    if len(found) != 1 or found[0].dim() == 0 or len(found[0]) == 0 or (count is not None and len(found[0]) != count):
        shapes = name_list(str(tuple(leaf.shape)) for leaf in found) or "none"
        raise ValueError(
            f"{type(call.net).__name__}: linearization expects a network that returns one tensor whose first axis "
            f"counts the examples, got {shapes}; wrap the network so that it returns what the likelihood reads, or "
            f"predict with mode='mc'{see('how-to/convert_network')}"
        )
    return output, found[0]


def jacobian_rows(call: NetworkCall, output: Tensor) -> Iterator[Rows]:
    """The derivatives of a network's output by all weights of a call, for a few examples at a time.

    Where the network keeps examples apart, which is found by experiment, each example runs through it alone, several of
    them vectorized. Otherwise, and where a network cannot be vectorized, the output is differentiated entry by entry,
    for the batch as a whole.

    Args:
        call: The network call.
        output: The tensor that it returned.
    """
    entries = output[0].numel()
    size = sum(weight.numel() for weight in call.weights.values()) * output.element_size() * max(entries, 1)
    step = max(1, _MAX_BYTES // max(size, 1))
    meets = _meets(call)
    ways = [_whole] if meets else [_vectorized, _one_by_one, _whole]
    for start in range(0, len(output), step):
        examples = slice(start, min(start + step, len(output)))
        while (found := ways[0](call, output, examples)) is None:
            if len(ways) == 1:
                raise ValueError(
                    f"{type(call.net).__name__}: its output for the same inputs and weights differs from call to "
                    "call, so that it has no derivative by the weights; put it into evaluation mode, or predict with "
                    f"mode='mc'{see('how-to/convert_network')}"
                )
            ways = ways[1:]
        yield Rows(examples, found)


def _meets(call: NetworkCall) -> bool:
    """Whether an example's output may depend on the others; the result is kept for as long as the network exists."""
    args, count = call.args, count_examples(call.args, call.in_dims)
    if call.kwargs or have_common_part(args, call.in_dims) or count is None:
        return True
    # What is found on so many examples holds for any number.
    size = min(count, MOST_EXAMPLES)
    kind = (*call_kind(call.net, {}, args, {})[1:], call.in_dims, call.reading is None, size)
    known = _MEETS.setdefault(call.net, {})
    if kind not in known:
        known[kind] = examples_meet(call.net, args, call.in_dims, call.reading) or depends_on_place(
            call.net, args, call.in_dims
        )
    return known[kind]


def _output(call: NetworkCall, args: tuple[Any, ...], weights: dict[str, Tensor]) -> Tensor:
    """The tensor that the network returns for given inputs and weights."""
    copies = {name: weight.clone() for name, weight in weights.items()}
    inner = NetworkCall(call.net, copies, args, call.kwargs, call.sites, {}, call.in_dims, call.reading, call.fixed)
    inner.usage = call.usage
    return next(leaf for leaf in tensors_in(inner.run()) if leaf.is_floating_point())


def _vectorized(call: NetworkCall, output: Tensor, examples: slice) -> dict[str, Tensor] | None:
    """The derivatives of some examples that run through the network alone; `None` where that cannot be."""
    some = take_examples(call.args, examples, call.in_dims)
    axes = example_axes(some, call.in_dims)

    def single(weights: dict[str, Tensor], *parts: Any) -> tuple[Tensor, Tensor]:
        args = tuple(part if axis is None else part.unsqueeze(axis) for part, axis in zip(parts, axes, strict=True))
        found = _output(call, args, weights).squeeze(0)
        return found, found

    jacobian = torch.func.jacrev(single, has_aux=True)
    try:
        found, outputs = torch.vmap(jacobian, in_dims=(None, *axes), randomness="error")(dict(call.weights), *some)
    except Exception:  # a network may do anything that cannot be vectorized
        return None
    return {name: rows.detach() for name, rows in found.items()} if _same(outputs, output[examples]) else None


def _one_by_one(call: NetworkCall, output: Tensor, examples: slice) -> dict[str, Tensor] | None:
    """The same for a network that cannot be vectorized, with a derivative of its own for each entry of each output."""
    rows: list[dict[str, Tensor]] = []
    with torch.enable_grad():
        weights = _leaves(call)
        for index in range(*examples.indices(len(output))):
            one = _output(call, take_examples(call.args, slice(index, index + 1), call.in_dims), weights)
            if not _same(one, output[index : index + 1]):
                return None
            rows += [_gradients(entry, weights) for entry in one.reshape(-1)]
    return _stacked(rows, output[examples].shape)


def _whole(call: NetworkCall, output: Tensor, examples: slice) -> dict[str, Tensor] | None:
    """The same for a network in which examples meet, whose whole batch runs."""
    with torch.enable_grad():
        weights = _leaves(call)
        batch = _output(call, call.args, weights)
        if not _same(batch, output):
            return None
        rows = [_gradients(entry, weights) for entry in batch[examples].reshape(-1)]
    return _stacked(rows, output[examples].shape)


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether outputs are those of the batch, up to rounding errors."""
    if found.shape != expected.shape:
        return False
    limit = _TOLERANCE.get(expected.dtype, 1e-2) * (1.0 + expected.detach().abs().amax())
    return bool(((found - expected).abs() <= limit).all())


def _leaves(call: NetworkCall) -> dict[str, Tensor]:
    return {name: weight.detach().clone().requires_grad_() for name, weight in call.weights.items()}


def _stacked(rows: list[dict[str, Tensor]], shape: torch.Size) -> dict[str, Tensor]:
    return {
        name: torch.stack([row[name] for row in rows]).reshape((*shape, *first.shape))
        for name, first in rows[0].items()
    }


def _gradients(entry: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if not entry.requires_grad:
        return {name: torch.zeros_like(weight) for name, weight in weights.items()}
    found = torch.autograd.grad(entry, list(weights.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient.detach()
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }

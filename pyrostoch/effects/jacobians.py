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
from pyrostoch.effects.meeting import depends_on_place, examples_meet
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
    output = call.run()
    found = [leaf for leaf in tensors_in(output) if leaf.is_floating_point()]
    count = count_examples(call.args, call.in_dims) if call.args else None
    if len(found) != 1 or found[0].dim() == 0 or len(found[0]) == 0 or (count is not None and len(found[0]) != count):
        shapes = name_list(str(tuple(leaf.shape)) for leaf in found) or "none"
        raise ValueError(
            f"{type(call.net).__name__}: linearization expects a network that returns one tensor whose first axis counts "
            f"the examples, got {shapes}; wrap the network so that it returns what the likelihood reads, or predict with "
            f"mode='mc'{see('how-to/convert_network')}"
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
    vectorized = not meets
    for start in range(0, len(output), step):
        examples = slice(start, min(start + step, len(output)))
        found = _vectorized(call, output, examples) if vectorized else None
        if found is None:
            vectorized = False
            found = _by_entry(call, output.shape, examples, whole=meets)
        yield Rows(examples, found)


def _meets(call: NetworkCall) -> bool:
    """Whether an example's output may depend on the others; the result is kept for as long as the network exists."""
    args = call.args
    if call.kwargs or have_common_part(args, call.in_dims) or count_examples(args, call.in_dims) is None:
        return True
    kind = (*call_kind(call.net, {}, args, {})[1:], call.in_dims, call.reading is None)
    known = _MEETS.setdefault(call.net, {})
    if kind not in known:
        known[kind] = examples_meet(call.net, args, call.in_dims, call.reading) or depends_on_place(
            call.net, args, call.in_dims
        )
    return known[kind]


def _output(call: NetworkCall, args: tuple[Any, ...], weights: dict[str, Tensor]) -> Tensor:
    """The tensor that the network returns for given inputs and weights."""
    inner = NetworkCall(
        call.net, weights, args, call.kwargs, call.sites, {}, call.in_dims, call.reading, call.fixed
    )
    return next(leaf for leaf in tensors_in(inner.run()) if leaf.is_floating_point())


def _vectorized(call: NetworkCall, output: Tensor, examples: slice) -> dict[str, Tensor] | None:
    """The derivatives of some examples that run through the network alone; `None` where that cannot be."""
    some = take_examples(call.args, examples, call.in_dims)
    axes = example_axes(some, call.in_dims)

    def single(weights: dict[str, Tensor], *parts: Any) -> tuple[Tensor, Tensor]:
        args = tuple(
            part if axis is None else part.unsqueeze(axis) for part, axis in zip(parts, axes, strict=True)
        )
        found = _output(call, args, weights).squeeze(0)
        return found, found

    jacobian = torch.func.jacrev(single, has_aux=True)
    try:
        found, outputs = torch.vmap(jacobian, in_dims=(None, *axes), randomness="error")(dict(call.weights), *some)
    except Exception:  # a network may do anything that cannot be vectorized
        return None
    expected = output[examples].detach()
    if outputs.shape != expected.shape:
        return None
    limit = _TOLERANCE.get(output.dtype, 1e-2) * (1.0 + expected.abs().amax())
    if not bool(((outputs - expected).abs() <= limit).all()):
        return None
    return {name: rows.detach() for name, rows in found.items()}


def _by_entry(call: NetworkCall, shape: torch.Size, examples: slice, *, whole: bool) -> dict[str, Tensor]:
    """The same, with a derivative of its own for each entry of each output."""
    names = list(call.weights)
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    indices = range(*examples.indices(shape[0]))
    with torch.enable_grad():
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in call.weights.items()}
        batch = _output(call, call.args, weights) if whole else None
        for index in indices:
            if batch is None:
                one = take_examples(call.args, slice(index, index + 1), call.in_dims)
                flat = _output(call, one, weights).reshape(-1)
            else:
                flat = batch[index].reshape(-1)
            for entry in flat:
                gradients = _gradients(entry, [weights[name] for name in names])
                for name, gradient in zip(names, gradients, strict=True):
                    rows[name].append(gradient)
    lead = (len(indices), *shape[1:])
    return {name: torch.stack(found).reshape((*lead, *call.weights[name].shape)) for name, found in rows.items()}


def _gradients(entry: Tensor, weights: list[Tensor]) -> list[Tensor]:
    if not entry.requires_grad:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g.detach() for w, g in zip(weights, found, strict=True)]



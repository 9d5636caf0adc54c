"""Which weights may be replaced by the distribution of their layer's output, shown by experiment for each network.

Local reparameterization, flipout and moments draw the output of a layer for each example in place of the layer's
weight. That is right only if (i) the weight enters the network's output through this one linear operation alone, and
(ii) the rows of the operation are the examples of the batch and stay apart from there to the output. Counting the uses
of a weight shows neither: a derivative by the input reads a weight again in its backward pass, and examples may meet in
a graph convolution, in attention over the batch, or in a mean. So the network is run a few times with perturbed
parameters and buffers, to see what moves what:

1. with other weights but the old outputs of their operations, the network's output must not move;
2. the gradient by each weight must be the one that passes through the output of its operation;
3. with the outputs of the operations changed for some examples, the output for the other examples must not move.

For the third, the sets of changed examples are such that for any two examples there is one with the first and without
the second: 6 sets for 16 examples, 8 for 64. All operations are changed together, and one by one only if something
moved. Batch normalization is in evaluation mode, since in training mode it makes examples meet in every network.

It is an experiment and not a proof: where a forward pass depends on more than was tried, one shared draw is right
whatever the network does.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._inputs import take_examples
from pyrostoch.effects.meeting import cut_is_safe, examples_meet, scrambled_examples_meet
from pyrostoch.effects.perturbed import SEED, PerturbedNetwork, Reading, on_first_terms
from pyrostoch.effects.probe import Operation, Probe
from pyrostoch.effects.repeatable import (
    attributes_restored,
    batch_norm_in_evaluation,
    close,
    same,
    separating_sets,
    size_of,
)
from pyrostoch.effects.trees import map_tensors, tensors_in
from pyrostoch.protocols import InDims

__all__ = ["obstacles"]

# Examples of a first round, and of a second one for couplings further apart: without gradients if the first round saw
# them, and with steps whose sizes alternate. A whole large batch would take more memory than the predictions that the
# analysis is for.
_FEW, _MANY = 16, 64
# Sizes of the changes, in an output's spread: small ones for functions that saturate, large ones for ranks and gates.
_STEPS = (1e-2, 30.0)
_ATTEMPTS = 3
_MEET = "examples meet"
_NOTHING_SHOWN = "no gradient passes through its operation"

#: The random parameters of one operation.
_Names = tuple[str, ...]


def obstacles(
    net: nn.Module,
    weights: Iterable[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: int,
    in_dims: InDims = 0,
    reading: Reading | None = None,
) -> dict[str, str]:
    """Why weights may not be replaced by the distribution of their operation's output.

    Args:
        net: The network; it, its buffers and all random generators are left as they were.
        weights: Names of its random weights, each used in one linear operation.
        args: Positional inputs of the network.
        kwargs: Keyword inputs of the network.
        batch: Number B of examples.
        in_dims: The axis of each positional input that counts them; 0 for the first axis of all tensors that have B
            entries there.
        reading: What is computed from the network's output; examples may meet there, too.

    Returns:
        The reason for each weight that may not be replaced; the others are left out.

    Example:
        >>> layer, x = nn.Linear(3, 2, bias=False), torch.randn(8, 3)
        >>> obstacles(nn.Sequential(layer, nn.Softmax(dim=1)), ["0.weight"], (x,), {}, 8)
        {}
        >>> obstacles(nn.Sequential(layer, nn.Softmax(dim=0)), ["0.weight"], (x,), {}, 8)
        {'0.weight': 'examples meet'}
    """
    weights = list(weights)
    if isinstance(in_dims, tuple) and None in in_dims:
        # It may say who meets whom, and another one may say otherwise.
        return dict.fromkeys(weights, "an input belongs to all examples")
    found: dict[str, str] = {}
    with (
        torch.inference_mode(False),
        attributes_restored(net),
        batch_norm_in_evaluation(net),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the network runs again after the analysis, and warns then
        gradients = True
        if cut := batch > _FEW and cut_is_safe(net, (args, kwargs), batch):
            with contextlib.suppress(Exception):  # a network may need its own batch size: more examples follow
                few = _first(_FEW, args, kwargs, batch, in_dims)
                found.update(_experiment(net, weights, *few, _STEPS, reading, gradients))
                gradients = False
        left = [name for name in weights if name not in found]
        steps = _STEPS if batch <= _FEW else (None,)
        for size in (_MANY, batch) if cut and batch > _MANY else (batch,):
            try:
                many = _first(size, args, kwargs, batch, in_dims)
                found.update(_experiment(net, left, *many, steps, reading, gradients))
                break
            except Exception as error:
                if size == batch:
                    found.update(dict.fromkeys(left, f"cannot be analyzed: {type(error).__name__}"))
        if len(found) < len(weights) and _MEET not in found.values() and _meet_by_input(net, args, in_dims, reading):
            found.update({name: _MEET for name in weights if name not in found})
    return found


def _first(size: int, args: Any, kwargs: Any, batch: int, in_dims: InDims) -> tuple[Any, Any, int]:
    """The first examples of a batch, and their number."""
    if isinstance(in_dims, tuple):
        return take_examples(args, slice(size), in_dims), kwargs, size
    cut = map_tensors(lambda t: t[:size] if t.dim() and len(t) == batch else t, (args, kwargs))
    return *cut, size


def _meet_by_input(net: nn.Module, args: tuple[Any, ...], in_dims: InDims, reading: Reading | None) -> bool:
    """Whether inputs, such as numbers of groups, positions or rows of a matrix, may tell which examples meet."""
    try:
        if all(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors_in(args)):
            return scrambled_examples_meet(net, args, in_dims, reading)
        return examples_meet(net, args, in_dims, reading)
    except (TypeError, ValueError):  # nested inputs, or some without an axis of examples
        return False


def _experiment(
    net: nn.Module,
    weights: list[str],
    args: Any,
    kwargs: Any,
    batch: int,
    steps: tuple[float | None, ...],
    reading: Reading | None,
    gradients: bool,
) -> dict[str, str]:
    """The reasons found on one batch."""
    found: dict[str, str] = {}
    for attempt in range(_ATTEMPTS):
        # Units that no example activates show nothing: other values may.
        left = [name for name in weights if found.get(name, _NOTHING_SHOWN) == _NOTHING_SHOWN]
        if not left:
            break
        for name in left:
            found.pop(name, None)

        def run(double: bool, move_buffers: bool, left: list[str] = left, seed: int = attempt) -> dict[str, str]:
            moved = PerturbedNetwork(
                net, left, args, kwargs, seed=seed, double=double, move_buffers=move_buffers, reading=reading
            )
            experiment = _Experiment(moved, batch, steps, gradients)
            experiment.run()
            return experiment.found

        latest = on_first_terms(run)
        found |= latest
        if _NOTHING_SHOWN not in latest.values():
            break
    return found


class _Experiment:
    """The passes on one batch; `found` collects the reasons.

    Args:
        moved: The network, perturbed.
        batch: Number of examples.
        steps: Sizes of changes, each tried on every set of examples; `None` alternates between the sizes.
        gradients: Whether gradients by the weights are checked, too.
    """

    def __init__(self, moved: PerturbedNetwork, batch: int, steps: tuple[float | None, ...], gradients: bool) -> None:
        self.moved, self.batch, self.steps, self.gradients = moved, batch, steps, gradients
        self.weights = moved.weights
        self.found: dict[str, str] = {}

    def run(self) -> None:
        """Find a reason for each weight that has one."""
        entry = torch._C._functorch.maybe_current_level()
        weights = {name: value.requires_grad_(self.gradients) for name, value in self.weights.items()}
        probe = Probe(weights)
        output = self.moved.call(weights, probe)
        names = [name for operation in probe.found for name in operation.names]
        self._blame_names((n for n in weights if names.count(n) != 1), "not used in one linear operation")
        self._check_places(probe.found, entry)
        if self.gradients:
            self._check_gradients(output, self._open(probe.found), weights)
        reference = [tensor.detach().clone() for tensor in output]
        # Masked entries may be infinite; but whatever moved an example whose entries all are would not show.
        if not all(bool(torch.isfinite(t).reshape(len(t) if t.dim() else 1, -1).any(1).all()) for t in reference):
            raise ValueError("the output is not finite")
        self.weights = {name: value.detach() for name, value in weights.items()}
        outputs = {operation.names: operation.output.detach() for operation in self._open(probe.found)}
        # What is needed no more is given back, since a batch of large layers fills much memory.
        del output, probe
        self._check_reads(reference, outputs)
        outputs = {names: values for names, values in outputs.items() if not set(names) & set(self.found)}
        changes = {names: self._change_of(values) for names, values in outputs.items()}
        del outputs
        self._check_examples(reference, changes)

    def _open(self, operations: list[Operation]) -> list[Operation]:
        return [operation for operation in operations if not set(operation.names) & set(self.found)]

    def _blame_names(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.found.setdefault(name, reason)

    def _blame(self, operations: list[_Names], moves: Callable[[list[_Names]], bool], reason: str) -> None:
        """Try all operations together, and one by one if something moved."""
        if operations and moves(operations):
            guilty = [names for names in operations if len(operations) == 1 or moves([names])]
            if guilty and reason == _MEET:  # what comes before one of them may feed it
                guilty = operations[: operations.index(guilty[-1]) + 1]
            for names in guilty or operations:
                self._blame_names(names, reason)

    def _check_places(self, operations: list[Operation], entry: int | None) -> None:
        """Whether gradients reach each operation, and its rows are the examples."""
        for operation in operations:
            rows = operation.output.shape[0] if operation.output.dim() else 0
            if operation.level != entry:
                self._blame_names(operation.names, "inside torch.func or torch.vmap")
            elif not operation.grad_enabled or operation.output.requires_grad < self.gradients:
                self._blame_names(operation.names, "inside a custom autograd function, or without gradients")
            elif rows != self.batch:
                self._blame_names(operation.names, f"{rows} rows for {self.batch} examples")

    def _check_gradients(self, output: list[Tensor], operations: list[Operation], weights: dict[str, Tensor]) -> None:
        """Whether each weight's gradient is the one through the output of its operation."""
        roots = [tensor for tensor in output if tensor.requires_grad]
        if not roots:
            self._blame_names(weights, "the output has no gradient")
        if not roots or not operations:
            return
        names = [name for operation in operations for name in operation.names]
        wanted = [*(operation.output for operation in operations), *(weights[name] for name in names)]
        cotangents = [self.moved.noise(tensor) for tensor in roots]
        gradients = torch.autograd.grad(roots, wanted, cotangents, allow_unused=True)
        by_weight = dict(zip(names, gradients[len(operations) :], strict=True))
        for operation, by_output in zip(operations, gradients, strict=False):
            if by_output is None or not bool(by_output.any()):
                self._blame_names(operation.names, _NOTHING_SHOWN)
                continue
            for name, expected in operation.gradients(by_output.detach()).items():
                total = by_weight[name]
                if total is None or not close(total, expected):
                    self._blame_names((name,), "read elsewhere, too")

    def _check_reads(self, reference: list[Tensor], outputs: dict[_Names, Tensor]) -> None:
        """Whether other weights move the output although their operations' outputs are the old ones."""
        fresh = {name: value + size_of(value) * self.moved.noise(value) for name, value in self.weights.items()}

        def moves(chosen: list[_Names]) -> bool:
            other = {name for names in chosen for name in names}
            weights = {name: fresh[name] if name in other else value for name, value in self.weights.items()}

            def put_back(operation: Operation) -> Tensor:
                if operation.names not in chosen:
                    return operation.output
                # The old value with the new gradient, since the network may take a derivative through it.
                return outputs[operation.names] + (operation.output - operation.output.detach())

            return not same(reference, self.moved.call(weights, Probe(weights, put_back)), None, self.batch)

        self._blame(list(outputs), moves, "read elsewhere, too")

    def _change_of(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """How an operation's output is changed, in its spread: a change of each example, and one common to all.

        Many examples together may fill an expert, or pass a threshold that a maximum over the batch guards.
        """
        size = size_of(output)
        common = size * self.moved.noise(output[:1])
        return size * self.moved.noise(output), common

    def _check_examples(self, reference: list[Tensor], changes: dict[_Names, tuple[Tensor, Tensor]]) -> None:
        """Whether a change of some examples' rows moves other examples; the same change in every pass."""
        sets = separating_sets(self.batch)

        # A network that draws may bring examples together in some passes only: other random numbers for each set.
        seeds = [SEED + number * self.moved.draws for number in range(len(sets))]
        references: dict[tuple[int, int], list[Tensor]] = {(SEED, 0): reference}

        def passed(
            seed: int, shift: int, rows: Tensor | None, step: float, sign: int, chosen: list[_Names]
        ) -> list[Tensor]:
            """A pass with the outputs of all examples shifted (by -1, 0 or 1), and those of some rows changed."""

            def change(operation: Operation) -> Tensor:
                if operation.names not in chosen:
                    return operation.output
                own, direction = changes[operation.names]
                moved = operation.output + _STEPS[-1] * shift * direction
                if rows is not None:
                    at = rows.to(moved.device)
                    step_to = step * (own[at] + sign * direction)
                    # From a common shift, some rows go to small values, where no threshold is passed.
                    moved[at] = step_to if shift else step_to.add_(operation.output[at])
                return moved

            return [t.detach().clone() for t in self.moved.call(self.weights, Probe(self.weights, change), seed)]

        def moves(chosen: list[_Names]) -> bool:
            known = {key: value for key, value in references.items() if not key[1]}
            for (number, rows), (shifted, step) in itertools.product(enumerate(sets), self._changes()):
                if shifted and number % 2:
                    continue
                if step is None:
                    shifted = number % 4 == 3
                    step = _STEPS[0 if shifted else number % len(_STEPS)]
                # In both directions, since a gate that all of them open may be open already.
                sign = 1 - 2 * (number // 2 % 2)
                key = (seeds[number], sign * shifted)
                if key not in known:
                    known[key] = passed(*key, None, 0.0, sign, chosen)
                if not shifted:
                    references[key] = known[key]
                outputs = passed(*key, rows, step, sign, chosen)
                if not same(known[key], outputs, ~rows, self.batch):
                    return True
            return False

        if sets:
            self._blame(list(changes), moves, _MEET)

    def _changes(self) -> list[tuple[bool, float | None]]:
        """Whether all examples are shifted first (for half of the sets), and the size of the change."""
        steps: list[tuple[bool, float | None]] = [(False, step) for step in self.steps]
        return steps if None in self.steps else [*steps, (True, _STEPS[0])]

"""Whether a network's output for one example depends on other examples of its batch, found by experiment.

In a graph network, in attention over the batch, or in a mean over it, examples meet: part of a data set is then another
network's input, so such a batch must stay whole. The inputs of some examples are exchanged, and the outputs for the
others must not move.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._inputs import count_examples, example_axes, have_common_part, take_examples
from pyrostoch.effects.held_state import HeldState
from pyrostoch.effects.perturbed import SEED, PerturbedNetwork, Reading, on_first_terms
from pyrostoch.effects.repeatable import attributes_restored, same, separating_sets, size_of
from pyrostoch.effects.trees import tensors_in
from pyrostoch.protocols import InDims

__all__ = [
    "MOST_EXAMPLES",
    "cut_is_safe",
    "depends_on_place",
    "examples_meet",
    "plain",
    "quiet_evaluation",
    "scrambled_examples_meet",
]

# Examples of a first, cheap round.
_FEW = 16
#: Examples of a second one, which sees couplings between examples further apart, where the network runs on so few.
MOST_EXAMPLES = 64
# Sets of examples that are exchanged where many meet if any do.
_HALVES = 4


@torch.no_grad()
def examples_meet(net: nn.Module, x: tuple[Any, ...], in_dims: InDims = 0, reading: Reading | None = None) -> bool:
    """Whether a batch must stay whole: outputs depend on other examples, or the network runs on the whole batch only.

    The network is in evaluation mode, so that batch normalization with running statistics keeps examples apart. Outputs
    without an axis of examples, such as an auxiliary loss, are ignored. Couplings are looked for among 16 examples, and
    then among up to 64; with inputs that belong to all examples, among all.

    Args:
        net: The network; it, its buffers and all random generators are left as they were.
        x: Its inputs.
        in_dims: The axis of each that counts the examples.
        reading: What is computed from the output; examples may meet there, too.

    Returns:
        Whether examples meet; `False` also where the network cannot run on these inputs, as its next call will show.

    Example:
        >>> x = torch.randn(20, 3)
        >>> examples_meet(nn.Softmax(dim=1), (x,)), examples_meet(nn.Softmax(dim=0), (x,))
        (False, True)
    """
    count = count_examples(x, in_dims)
    if count is None or count < 2:
        return False
    net, device = plain(net)
    axes = example_axes(x, in_dims)
    # For each example another one from anywhere in the data: the next one of a random cycle.
    order, anywhere = torch.randperm(count, generator=torch.Generator().manual_seed(SEED)), torch.empty(count).long()
    anywhere[order] = order.roll(1)
    with quiet_evaluation(net):
        if have_common_part(x, in_dims):
            sets = separating_sets(count) if count <= MOST_EXAMPLES else _random_halves(count)
            others = take_examples(x, anywhere, in_dims)
            try:
                return _moves_others(net, x, others, axes, sets, reading, device)
            except Exception:
                return False
        for size in (_FEW, MOST_EXAMPLES) if count > _FEW else (count,):
            size = min(size, count)
            some, others = take_examples(x, slice(size), in_dims), take_examples(x, anywhere[:size], in_dims)
            # An index out of range is an error on a CPU, but ends the whole process's use of a GPU.
            at = device if cut_is_safe(net, x, count) else torch.device("cpu")
            try:
                if _moves_others(net, some, others, axes, separating_sets(size), reading, at):
                    return True
            except Exception:  # a network may need the whole batch: the nodes of one graph
                return count > size and _runs(net, x, device)
    return scrambled_examples_meet(net, x, in_dims, reading)


@torch.no_grad()
def scrambled_examples_meet(
    net: nn.Module, x: tuple[Any, ...], in_dims: InDims = 0, reading: Reading | None = None
) -> bool:
    """Whether examples meet for other real inputs of the same entries, of which some are equal and some close.

    Inputs may tell which examples meet, by a distance between positions, a group in a column, a row of a matrix of
    neighbors; those at hand may happen to keep them apart.

    Args:
        net: The network; it, its buffers and all random generators are left as they were.
        x: Its inputs.
        in_dims: The axis of each that counts the examples.
        reading: What is computed from the output; examples may meet there, too.

    Returns:
        Whether examples meet; `False` where the network cannot run on such inputs.

    Example:
        >>> class Near(nn.Module):
        ...     def forward(self, x):
        ...         return (torch.cdist(x, x) < 0.1).double() @ x.double()
        >>> x = 10.0 * torch.arange(8.0)[:, None]
        >>> examples_meet(Near(), (x,)), scrambled_examples_meet(Near(), (x,))
        (True, True)
    """
    count = count_examples(x, in_dims)
    axes = example_axes(x, in_dims)
    real = any(isinstance(part, Tensor) and part.is_floating_point() for part in x)
    if count is None or count < 2 or not real or have_common_part(x, in_dims):
        return False
    net, device = plain(net)
    with quiet_evaluation(net):
        for size in (_FEW, count):
            if size > count or (size < count and not cut_is_safe(net, x, count)):
                continue
            generator = torch.Generator().manual_seed(SEED)
            base, others = (
                tuple(
                    _scrambled(part, axis or 0, generator)
                    for part, axis in zip(take_examples(x, slice(size), in_dims), axes, strict=True)
                )
                for _ in range(2)
            )
            sets = separating_sets(size) if size < _HALVES else _random_halves(size)
            try:
                return _moves_others(net, base, others, axes, sets, reading, device, noise=False)
            except Exception:  # a network may need the whole batch, or refuse such inputs
                continue
    return False


@torch.no_grad()
def depends_on_place(net: nn.Module, x: tuple[Any, ...], in_dims: InDims = 0) -> bool:
    """Whether the output for an example depends on its number in the batch, or on the batch's size.

    Args:
        net: The network; it, its buffers and all random generators are left as they were.
        x: Its inputs.
        in_dims: The axis of each that counts the examples.

    Returns:
        Whether it does; `False` for networks that draw random numbers, and for those that cannot run on a part.

    Example:
        >>> class Numbered(nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.arange(len(x))[:, None]
        >>> x = torch.randn(20, 3)
        >>> depends_on_place(Numbered(), (x,)), depends_on_place(nn.Linear(3, 1), (x,))
        (True, False)
    """
    count = count_examples(x, in_dims)
    if count is None or count < 2 or have_common_part(x, in_dims):
        return False
    net, device = plain(net)
    size = min(count, _FEW)
    if HeldState(net.modules()).has_own_randomness or (size < count and not cut_is_safe(net, x, count)):
        return False
    some = take_examples(x, slice(size), in_dims)

    def run(double: bool, move_buffers: bool) -> bool:
        moved = PerturbedNetwork(net, (), some, {}, double=double, move_buffers=move_buffers, device=device)
        whole = moved.call({})
        for rows in (torch.arange(size).flip(0), torch.arange(size // 2, size)):
            output = moved.call({}, inputs=(take_examples(moved.args, rows, in_dims), {}))
            if moved.draws:
                return False
            for before, after in zip(whole, output, strict=False):
                if not before.dim() or len(before) != size or size in before.shape[1:]:
                    continue  # no example's own, or a matrix of pairs
                if after.shape == (len(rows), *before.shape[1:]):
                    expected = before[rows.to(before.device)]
                    if not same([expected], [after], None, len(rows)):
                        return True
        return False

    with quiet_evaluation(net):
        try:
            return on_first_terms(run)
        except Exception:
            return False


def plain(net: nn.Module) -> tuple[nn.Module, torch.device | None]:
    """The network without torch.compile, which would compile anew for every shape and dtype, and its device.

    Args:
        net: The network.
    """
    net = getattr(net, "_orig_mod", net)
    return net, next((parameter.device for parameter in net.parameters()), None)


@contextlib.contextmanager
def quiet_evaluation(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without warnings; the network's state is restored.

    Args:
        net: The network.
    """
    with torch.inference_mode(False), attributes_restored(net), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network runs again afterwards, and warns then
        for part in net.modules():
            part.training = False  # not by eval(), with which some networks change their weights
        yield


def _scrambled(part: Any, axis: int, generator: torch.Generator) -> Any:
    """Real inputs with their entries in another order; of four examples, one is close to another, two share entries."""
    if not isinstance(part, Tensor) or not part.is_floating_point() or part.layout is not torch.strided:
        return part
    order = torch.randperm(part.numel(), generator=generator)
    mixed = part.detach().reshape(-1)[order.to(part.device)].reshape(part.shape).movedim(axis, 0)
    rows = mixed.reshape(len(mixed), -1).clone()
    first, half = rows[::4], (rows.shape[1] + 1) // 2
    rows[1::4, :half] = first[: len(rows[1::4]), :half]
    close = first[: len(rows[2::4])]
    rows[2::4] = close + 1e-3 * size_of(part) * torch.randn(close.shape, generator=generator).to(close)
    rows[3::4, half:] = first[: len(rows[3::4]), half:]
    return rows.reshape(mixed.shape).movedim(0, axis)


def cut_is_safe(net: nn.Module, x: tuple[Any, ...], count: int) -> bool:
    """Whether a network on a GPU may run on some of the examples: nothing looks like indices of the others.

    Args:
        net: The network.
        x: Its inputs.
        count: Number of examples.
    """
    tensors = [tensor for tensor in (*net.buffers(), *tensors_in(x)) if tensor.device.type == "cuda"]
    whole = [t for t in tensors if not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool]
    return not any(t.numel() > 1 and bool(t.max() < count) for t in whole)


def _random_halves(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return [torch.rand(count, generator=generator) < 0.5 for _ in range(_HALVES)]


def _runs(net: nn.Module, x: tuple[Any, ...], device: torch.device | None) -> bool:
    def run(double: bool, move_buffers: bool) -> bool:
        PerturbedNetwork(net, (), x, {}, double=double, move_buffers=move_buffers, device=device).call({})
        return True

    try:
        return on_first_terms(run)
    except Exception:
        return False


def _moves_others(
    net: nn.Module,
    x: tuple[Any, ...],
    others: tuple[Any, ...],
    axes: tuple[int | None, ...],
    sets: list[Tensor],
    reading: Reading | None,
    device: torch.device | None,
    *,
    noise: bool = True,
) -> bool:
    """Whether other inputs for some examples move the output for the rest of them."""
    count = len(sets[0])

    def run(double: bool, move_buffers: bool) -> bool:
        terms = {"double": double, "move_buffers": move_buffers}
        moved = PerturbedNetwork(net, (), x, {}, reading=reading, device=device, **terms)
        references = {SEED: moved.call({})}
        counting = [number for number, tensor in enumerate(references[SEED]) if tensor.dim() and len(tensor) == count]
        if not counting:
            return True
        exchanged = moved.cast(others)
        # Large inputs, too, since a branch may look at the largest of a batch.
        second = (lambda part: _noisy(part, moved)) if noise else _enlarged
        changes = [exchanged, tuple(map(second, exchanged))]
        for number, rows in enumerate(sets):
            # A network that draws may bring examples together in some passes only.
            seed = SEED + number * moved.draws
            if seed not in references:
                references[seed] = moved.call({}, seed=seed)
            for change in changes if noise and count <= _FEW else changes[number % 2 :][:1]:
                changed = tuple(
                    part if axis is None else _mixed(part, other, rows, axis)
                    for part, other, axis in zip(moved.args, change, axes, strict=True)
                )
                try:
                    output = moved.call({}, seed=seed, inputs=(changed, {}))
                except Exception:
                    if change is exchanged:  # these are users' values; noise may be invalid input
                        raise
                    continue
                before = [references[seed][at] for at in counting]
                if len(output) != len(references[seed]) or not same(
                    before, [output[at] for at in counting], ~rows, count
                ):
                    return True
        return False

    return on_first_terms(run)


def _noisy(part: Any, moved: PerturbedNetwork) -> Any:
    """Inputs with noise, since those of other examples may be equal."""
    if not isinstance(part, Tensor) or not part.is_floating_point() or part.layout is not torch.strided:
        return part
    return part + 0.1 * size_of(part) * moved.noise(part)


def _enlarged(part: Any) -> Any:
    return 10.0 * part if isinstance(part, Tensor) and part.is_floating_point() else part


def _mixed(part: Tensor, other: Tensor, rows: Tensor, axis: int) -> Tensor:
    """The tensor with the examples of a mask taken from another one."""
    if part.layout is not torch.strided:
        return _mixed(part.to_dense(), other.to_dense(), rows, axis).to_sparse()
    shape = [1] * part.dim()
    shape[axis] = len(rows)
    return torch.where(rows.to(part.device).reshape(shape), other, part)

"""Whether a network's output for one example depends on other examples of its batch, found by experiment.

In a graph network, in attention over the batch, or in a mean over it, examples meet: part of a data set is then another
network's input, so such a batch must stay whole. The inputs of some examples are exchanged, and the outputs for the
others must not move.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._inputs import count_examples, example_axes, take_examples
from pyrostoch.effects.perturbed import PerturbedNetwork, Reading, on_first_terms
from pyrostoch.effects.repeatable import attributes_restored, same, separating_sets, size_of
from pyrostoch.protocols import InDims

__all__ = ["examples_meet"]

# Examples of the first experiment; the whole batch is used only where a network cannot run on so few.
_FEW = 16


@torch.no_grad()
def examples_meet(net: nn.Module, x: tuple[Any, ...], in_dims: InDims = 0, reading: Reading | None = None) -> bool:
    """Whether a batch must stay whole: outputs depend on other examples, or the network runs on the whole batch only.

    The network is in evaluation mode, so that batch normalization with running statistics keeps examples apart. Outputs
    without an axis of examples, such as an auxiliary loss, are ignored.

    Args:
        net: The network; it, its buffers and all random generators are left as they were.
        x: Its inputs.
        in_dims: The axis of each that counts the examples.
        reading: What else is computed from the output.

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
    net = getattr(net, "_orig_mod", net)  # without torch.compile, which would compile anew for every shape and dtype
    device = next((parameter.device for parameter in net.parameters()), None)
    with attributes_restored(net), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network runs again afterwards, and warns then
        net.eval()
        try:
            few = _moved(take_examples(x, slice(_FEW), in_dims), device)
            return _moves_others(net, few, in_dims, min(count, _FEW), reading)
        except Exception:  # a network may need the whole batch: the nodes of one graph
            return count > _FEW and _runs(net, _moved(x, device))


def _moved(x: tuple[Any, ...], device: torch.device | None) -> tuple[Any, ...]:
    return tuple(part.to(device) if isinstance(part, Tensor) else part for part in x)


def _runs(net: nn.Module, x: tuple[Any, ...]) -> bool:
    try:
        on_first_terms(lambda double, move: PerturbedNetwork(net, (), x, {}, double=double, move_buffers=move).call({}))
    except Exception:
        return False
    return True


def _moves_others(net: nn.Module, x: tuple[Any, ...], in_dims: InDims, count: int, reading: Reading | None) -> bool:
    """Whether other inputs for some examples move the output for the others."""

    def run(double: bool, move_buffers: bool) -> bool:
        moved = PerturbedNetwork(net, (), x, {}, double=double, move_buffers=move_buffers, reading=reading)
        reference = moved.call({})
        counting = [number for number, tensor in enumerate(reference) if tensor.dim() and len(tensor) == count]
        if not counting:
            return True
        axes = example_axes(moved.args, in_dims)
        changes = [tuple(_exchanged(part, axis) for part, axis in zip(moved.args, axes, strict=True))]
        changes.append(tuple(_noisy(part, moved) for part in changes[0]))
        for rows in separating_sets(count):
            for change in changes:
                changed = tuple(
                    part if axis is None else _mixed(part, other, rows, axis)
                    for part, other, axis in zip(moved.args, change, axes, strict=True)
                )
                try:
                    output = moved.call({}, inputs=(changed, {}))
                except Exception:
                    if change is changes[0]:  # these are users' values; noise may be invalid input
                        raise
                    continue
                if len(output) != len(reference) or not same(
                    [reference[number] for number in counting], [output[number] for number in counting], ~rows, count
                ):
                    return True
        return False

    return on_first_terms(run)


def _exchanged(part: Any, axis: int | None) -> Any:
    """The inputs of other examples: valid values, whatever they mean."""
    return part if axis is None else part.roll(1, axis)


def _noisy(part: Any, moved: PerturbedNetwork) -> Any:
    """Inputs with noise, since those of other examples may be equal."""
    if not isinstance(part, Tensor) or not part.is_floating_point():
        return part
    return part + 0.1 * size_of(part) * moved.noise(part)


def _mixed(part: Tensor, other: Tensor, rows: Tensor, axis: int) -> Tensor:
    """The tensor with the examples of a mask taken from another one."""
    shape = [1] * part.dim()
    shape[axis] = len(rows)
    return torch.where(rows.to(part.device).reshape(shape), other, part)

"""Whether the rows of random activations are the examples of the batch, found by experiment."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrostoch._inputs import count_examples, example_axes
from pyrostoch.effects.meeting import plain, quiet_evaluation
from pyrostoch.effects.perturbed import PerturbedNetwork
from pyrostoch.effects.repeatable import same
from pyrostoch.protocols import InDims

__all__ = ["activations_are_by_example", "uses_batch_statistics"]


class _Inputs(Messenger):
    """Records what random activations depend on, and puts their means in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def _pyro_activation(self, msg: Any) -> None:
        x = msg["args"][0]
        self.found += [part.detach() for part in (x if isinstance(x, tuple) else (x,))]
        msg["value"] = msg["kwargs"]["layer"].expected(x)
        msg["done"] = True


def uses_batch_statistics(net: nn.Module) -> bool:
    """Whether a batch normalization is in training mode, so that examples meet in it.

    Args:
        net: The network.
    """
    return any(isinstance(part, _BatchNorm) and part.training for part in net.modules())


@torch.no_grad()
def activations_are_by_example(net: nn.Module, x: tuple[Any, ...], in_dims: InDims = 0) -> bool:
    """Whether another input for one example moves only its own row of what random activations depend on.

    An activation with another number of rows than examples is left out. One with as many may have other rows all the
    same: time steps, if there are as many of them.

    Args:
        net: The network; it, its buffers and all random generators are left as they were.
        x: Its inputs.
        in_dims: The axis of each that counts the examples.

    Returns:
        Whether it does; `False` where this cannot be tried.

    Example:
        >>> from pyrostoch.layers import StochasticLinear
        >>> activations_are_by_example(StochasticLinear(3, 2), (torch.randn(4, 3),))
        True
        >>> activations_are_by_example(StochasticLinear(3, 2), (torch.randn(4, 4, 3),), in_dims=1)
        False
    """
    count, axes = count_examples(x, in_dims), example_axes(x, in_dims)
    if count is None:
        return False
    if count < 2:
        return True
    net, device = plain(net)
    with quiet_evaluation(net):
        moved = PerturbedNetwork(net, (), x, {}, device=device)

        def run(inputs: tuple[Any, ...]) -> list[Tensor]:
            recorder = _Inputs()
            moved.call({}, recorder, inputs=(inputs, {}))
            return recorder.found

        try:
            before = run(moved.args)
            for row in {0, count - 1}:
                changed = tuple(
                    part if axis is None else _with_row(part, axis, row, (row + 1) % count)
                    for part, axis in zip(moved.args, axes, strict=True)
                )
                after = run(changed)
                others = torch.arange(count) != row
                for one, other in zip(before, after, strict=True):
                    if one.dim() and len(one) == count and not same([one], [other], others, count):
                        return False
        except Exception:  # a network may do anything with inputs that it has not seen
            return False
    return True


def _with_row(part: Any, axis: int, row: int, source: int) -> Any:
    """The tensor with the inputs of one example taken from another one, and moved where they are real."""
    if not isinstance(part, Tensor):
        return part
    if part.layout is not torch.strided:
        return _with_row(part.to_dense(), axis, row, source).to_sparse()
    changed = part.clone()
    changed.select(axis, row).copy_(part.select(axis, source))
    if part.is_floating_point():
        changed.select(axis, row).add_(part.std(correction=0) + 1.0)
    return changed

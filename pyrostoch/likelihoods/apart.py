"""Whether log densities of a part of a batch are those of the whole: a loss may bring examples together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrostoch._inputs import device_of_inputs, take_examples
from pyrostoch._seeds import forked
from pyrostoch._targets import Target
from pyrostoch.effects.meeting import quiet_evaluation
from pyrostoch.effects.swap import call_with
from pyrostoch.effects.trees import map_tensors
from pyrostoch.likelihoods.base import Likelihood
from pyrostoch.likelihoods.parts import reads_in_its_own_way
from pyrostoch.likelihoods.reading import full_precision
from pyrostoch.protocols import InDims

__all__ = ["densities_meet"]

_FEW = 16
# Relative difference of log densities that counts as rounding.
_ROUNDING = 1e-3


@torch.no_grad()
def densities_meet(
    net: nn.Module, likelihood: Likelihood, inputs: tuple[Any, ...], in_dims: InDims, y: Target | None
) -> bool:
    """Whether the log density of an example's targets depends on the outputs or targets of other examples.

    It is tried on the first ones, in evaluation mode; random generators are left as they were.

    Args:
        net: The network.
        likelihood: The likelihood.
        inputs: The network's inputs.
        in_dims: The axis of each that counts the examples.
        y: The targets of all examples; without them nothing is known, and `False` returned.

    Returns:
        Whether it does, or the likelihood takes the whole batch only; `False` where the network does not run.

    Raises:
        Exception: The likelihood fails on the whole batch; its own error.

    Example:
        >>> from pyrostoch.likelihoods import Loss
        >>> centered = Loss(lambda output, y: (output - output.mean(0) - y).square().sum(1))
        >>> densities_meet(nn.Identity(), centered, (torch.eye(6),), 0, torch.ones(6, 1))
        True
    """
    if y is None or not reads_in_its_own_way(likelihood):
        return False  # those of this library keep examples apart
    count = len(y)
    size = min(count, _FEW)
    with poutine.block(), forked(device_of_inputs(inputs)), quiet_evaluation(net):
        quantities = likelihood.draw()

        def run(size: int) -> Any:
            return call_with(net, {}, take_examples(inputs, slice(size), in_dims), {})

        def density(output: Any, targets: Target) -> Tensor:
            distribution: Any = likelihood(full_precision(output), quantities)
            likelihood.check_shape(distribution, targets)
            likelihood.check_target(distribution, targets)  # names what the density itself may stumble over
            found: Tensor = distribution.log_prob(targets)
            return found

        try:
            output = run(size)
        except Exception:  # it may need the whole batch, or fail at its next call
            return False
        try:
            few = density(output, y[:size])
        except Exception:
            if size == count:
                raise
            density(run(count), y)
            return True
        return not _parts_agree(output, y, few, density)


def _parts_agree(output: Any, y: Target, few: Tensor, density: Callable[[Any, Target], Tensor]) -> bool:
    """Whether parts of a few examples have the log densities that they have together."""
    size = len(few)
    for rows in (slice(size // 2), slice(size // 2, size), slice(1)):
        part = map_tensors(lambda p, rows=rows: p[rows] if p.dim() and len(p) == size else p, output)  # type: ignore[misc]
        try:
            found = density(part, y[rows])
        except Exception:  # it takes no part
            return False
        atol = _ROUNDING * float(few.nan_to_num(0.0, 0.0, 0.0).abs().mean())
        if not torch.allclose(found, few[rows], rtol=_ROUNDING, atol=atol, equal_nan=True):
            return False
    return True

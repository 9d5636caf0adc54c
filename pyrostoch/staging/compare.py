"""Comparison of a staged step with the eager step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrostoch.staging.graph import StagingError

__all__ = ["compare", "compare_updates"]


def compare(
    actual: Sequence[Tensor | None], expected: Sequence[Tensor | None], values: int, tolerance: float, stage: str
) -> None:
    """Raise an error if a staged step gives other results than the eager step on the same batch and noise.

    Values are compared one by one. Gradients and buffers are compared by the norm of all together, since a gradient
    that is zero up to rounding has no meaningful relative error. The state of the random generator is compared
    separately.

    Args:
        actual: Results of the staged step: values, gradients, buffers, and the state of the random generator.
        expected: Results of the eager step.
        values: The number of values among the results; they come first.
        tolerance: Largest relative difference.
        stage: How the step was run ("traced" or "compiled"), for the message.

    Raises:
        StagingError: They differ.

    Example:
        >>> compare([torch.ones(2)], [torch.ones(2) + 1e-9], 1, 1e-5, "compiled")
    """
    pairs = list(zip(actual, expected, strict=True))
    if any((one is None) != (other is None) for one, other in pairs):
        raise StagingError(f"the {stage} step has gradients for other parameters than the eager one")
    results = [(one.double(), other.double()) for one, other in pairs if one is not None and other is not None]
    if not all(bool(torch.isfinite(other).all()) for _, other in results):
        return  # a check for the training loop, not for this comparison
    errors = [_relative_error([pair]) for pair in results[:values]]
    # The generator's state consists of bytes, far larger than gradients, and would dominate the norm.
    if actual and expected and pairs[-1][1] is not None and pairs[-1][1].dtype == torch.uint8:
        errors.append(_relative_error([results[-1]]))
        results = results[:-1]
    errors += [_relative_error(results[values:])] if results[values:] else []
    if max(errors) > tolerance:
        raise StagingError(
            f"the {stage} step differs from the eager one by {max(errors):.1e} (relative) on the same batch and noise: "
            "it depends on something that is not part of a graph, such as a Python number that changes, a value read "
            "from a tensor, or a random generator of its own"
        )


def compare_updates(
    actual: Sequence[Tensor | None],
    expected: Sequence[Tensor | None],
    before: Sequence[Tensor | None],
    tolerance: float,
) -> None:
    """Raise an error if a compiled step updates parameters, buffers or the optimizer's state in another way.

    Args:
        actual: The tensors after the compiled step.
        expected: The tensors after the traced step.
        before: The tensors before the step.
        tolerance: Largest norm of the difference, relative to the norm of the update.

    Raises:
        StagingError: They differ.

    Example:
        >>> compare_updates([torch.ones(2)], [torch.ones(2)], [torch.zeros(2)], 0.1)
    """
    triples = [
        (a.double(), e.double(), b.double())
        for a, e, b in zip(actual, expected, before, strict=True)
        if a is not None and e is not None and b is not None and a.is_floating_point()
    ]
    error = _norm([a - e for a, e, _ in triples])
    size = _norm([e - b for _, e, b in triples])
    if error > tolerance * size and not math.isnan(error):
        raise StagingError(f"the update of the compiled step differs by {error / (size + 1e-300):.1e} (relative)")


def _relative_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    return _norm([one - other for one, other in pairs]) / (_norm([other for _, other in pairs]) + 1e-12)


def _norm(tensors: Sequence[Tensor]) -> float:
    if not tensors:
        return 0.0
    return float(torch.stack([torch.linalg.vector_norm(tensor).cpu() for tensor in tensors]).norm())

"""Whether a staged step does what the eager one does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrostoch.staging.graph import StagingError

__all__ = ["compare", "compare_updates"]


def compare(
    found: Sequence[Tensor | None], expected: Sequence[Tensor | None], values: int, most: float, how: str
) -> None:
    """Refuse a staged step that does not do what the eager step does on the same batch and noise.

    Values are compared one by one; gradients, buffers and the state of the random generator by the norm of them all,
    since a gradient that is zero but for rounding has no relative error.

    Args:
        found: Results of the staged step.
        expected: Those of the eager one.
        values: How many of them are values, the first ones.
        most: Largest relative difference.
        how: What has been done to the step, for the message.

    Raises:
        StagingError: They differ.

    Example:
        >>> compare([torch.ones(2)], [torch.ones(2) + 1e-9], 1, 1e-5, "compiled")
    """
    pairs = list(zip(found, expected, strict=True))
    if any((one is None) != (other is None) for one, other in pairs):
        raise StagingError(f"the step as {how} has gradients for other parameters than the eager one")
    whole = [(one.double(), other.double()) for one, other in pairs if one is not None and other is not None]
    if not all(bool(torch.isfinite(other).all()) for _, other in whole):
        return  # whoever trains will find it
    errors = [_relative([pair]) for pair in whole[:values]]
    # The generator's state is bytes, far larger than gradients: on its own.
    if found and expected and pairs[-1][1] is not None and pairs[-1][1].dtype == torch.uint8:
        errors.append(_relative([whole[-1]]))
        whole = whole[:-1]
    errors += [_relative(whole[values:])] if whole[values:] else []
    if max(errors) > most:
        raise StagingError(
            f"the step as {how} differs from the eager one by {max(errors):.1e} (relative) on the same batch and "
            "noise: it depends on something that a graph does not see, such as a Python number that changes, a value "
            "read out of a tensor, or a random generator of its own"
        )


def compare_updates(
    done: Sequence[Tensor | None], expected: Sequence[Tensor | None], before: Sequence[Tensor | None], most: float
) -> None:
    """Refuse a compiled step that moves parameters, buffers or the optimizer's memory elsewhere.

    Args:
        done: What the compiled step has left.
        expected: What the step as written down has left.
        before: What was there before.
        most: Largest difference, relative to the whole movement.

    Raises:
        StagingError: It does.

    Example:
        >>> compare_updates([torch.ones(2)], [torch.ones(2)], [torch.zeros(2)], 0.1)
    """
    triples = [
        (here.double(), there.double(), then.double())
        for here, there, then in zip(done, expected, before, strict=True)
        if here is not None and there is not None and then is not None and here.is_floating_point()
    ]
    error = _norm([here - there for here, there, _ in triples])
    moved = _norm([there - then for _, there, then in triples])
    if error > most * moved and error == error:
        raise StagingError(f"the step as compiled moves parameters by {error / (moved + 1e-300):.1e} elsewhere")


def _relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    return _norm([one - other for one, other in pairs]) / (_norm([other for _, other in pairs]) + 1e-12)


def _norm(tensors: Sequence[Tensor]) -> float:
    if not tensors:
        return 0.0
    return float(torch.stack([torch.linalg.vector_norm(tensor).cpu() for tensor in tensors]).norm())

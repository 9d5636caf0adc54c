"""A batch computed in parts, whose gradients are summed before the optimizer's step, so that it takes less memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._inputs import take_examples
from pyrostoch.infer.batches import Share
from pyrostoch.protocols import InDims

__all__ = ["Accumulation", "parts_of_batch"]


class Accumulation(torch.optim.Optimizer):
    """An optimizer that makes a step after a number of gradients, with their mean.

    It shares parameter groups and state with the optimizer that makes the steps, which a run keeps and saves.

    Args:
        optimizer: The optimizer.
        clip: Largest norm of the mean gradient.

    Attributes:
        expected: Number of gradients of the present step, to be set before the first.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> sgd = torch.optim.SGD([weight], lr=1.0)
        >>> twice = Accumulation(sgd)
        >>> twice.expected = 2
        >>> for gradient in (1.0, 3.0):
        ...     weight.grad = torch.full((1,), gradient)
        ...     twice.step()
        >>> weight.item()
        -2.0
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        super().__init__(optimizer.param_groups, {})
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self._optimizer, self._clip = optimizer, clip
        self.expected, self._seen = 1, 0
        self._sums: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Add the present gradients to the sum; after the last of them, make the optimizer's step.

        Args:
            closure: As torch's optimizers have it, which is not used.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                continue
            if parameter in self._sums:
                self._sums[parameter] += parameter.grad
            else:
                self._sums[parameter] = parameter.grad
            parameter.grad = None
        self._seen += 1
        if self._seen < self.expected:
            return
        for parameter, total in self._sums.items():
            parameter.grad = total.div_(self._seen)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(parameters, self._clip)
        self.discard()
        self._optimizer.step()

    def discard(self) -> None:
        """Forget the gradients of a step that was not finished."""
        self._sums, self._seen = {}, 0


def parts_of_batch(share: Share, count: int, in_dims: InDims = 0) -> list[Share]:
    r"""Cut a batch into parts of almost equal size.

    A part of $B_k$ of B examples estimates the data term by $\frac{N}{B_k} \sum \log p$. With the weight $K B_k / B$
    the mean over the K parts is the estimate from the whole batch, as for several processes.

    Args:
        share: The batch, or this process's part of it.
        count: Number of parts; fewer where there are fewer examples.
        in_dims: The axis of each input that counts the examples.

    Example:
        >>> parts = parts_of_batch(Share(torch.zeros(5, 2), torch.arange(5), None, 5), 2)
        >>> [part.y.tolist() for part in parts], [part.weight for part in parts]
        ([[0, 1, 2], [3, 4]], [1.2, 0.8])
    """
    size = len(share.y)
    count = min(count, size)
    if count < 2:
        return [share]
    ends = [size * k // count for k in range(count, -1, -1)]
    parts = []
    for end, start in zip(ends, ends[1:], strict=False):
        rows, weight = slice(size - end, size - start), count * (end - start) / size
        weight *= 1.0 if share.weight is None else share.weight
        parts.append(Share(take_examples(share.x, rows, in_dims), share.y[rows], weight, share.count))
    return parts

"""Several processes that train one model, as torchrun starts them: their ranks and their communication.

Each process takes its part of every batch and draws its own noise; torch's DistributedDataParallel averages the
gradients. The order of the examples and the loss do not depend on the number of processes, so a run may be resumed on
another number of them.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "join_process_group", "local_device"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Args:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        device: The device of this process.

    Example:
        >>> alone = Ranks()
        >>> alone.is_first, alone.share(torch.arange(5)), alone.mean(torch.ones(2))
        (True, (tensor([0, 1, 2, 3, 4]), 1.0), tensor([1., 1.]))
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, shows progress and calls callbacks."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.world_size > 1

    def share(self, index: Tensor) -> tuple[Tensor, float]:
        r"""This process's part of a batch, and the weight of its data term.

        A rank estimates the data term by $\frac{N}{B_r} \sum_{i \in B_r} \log p$. Multiplied by $R B_r / B$, the mean
        over the R ranks equals the estimate from the whole batch, whatever the sizes of the parts. A rank for which no
        example is left takes one with weight 0, so that all ranks make the step.

        Args:
            index: Indices of the batch's examples.

        Returns:
            The indices of this process's examples, and the weight.
        """
        local = index[self.rank :: self.world_size]
        weight = self.world_size * len(local) / max(len(index), 1)
        return (local, weight) if len(local) else (index[:1], 0.0)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, the same on all of them.

        Args:
            values: The values of this rank.
        """
        if not self.is_distributed:
            return values
        total = values.detach().clone().to(self.device)
        dist.all_reduce(total)
        return (total / self.world_size).to(values.device)

    def broadcast_from_first(self, value: T) -> T:
        """The value of the first rank, on all ranks.

        Args:
            value: The value of this rank, which is used on the first rank only.
        """
        if not self.is_distributed:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def run_on_first(self, action: Callable[[], object]) -> None:
        """Call a function on the first rank only; if it fails there, raise on all ranks, so that none waits for ever.

        Args:
            action: The function.

        Raises:
            RuntimeError: It failed on the first rank, and this is another one.
        """
        failure: BaseException | None = None
        if self.is_first:
            try:
                action()
            except BaseException as error:  # the other ranks must hear of an interrupt, too
                failure = error
        text = self.broadcast_from_first(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        if text is not None:
            raise RuntimeError(f"rank {self.rank} of {self.world_size} stops, since rank 0 has failed: {text}")


def local_device(device: str | torch.device | None) -> str | torch.device | None:
    """The device of this process: under torchrun, `"cuda"` means the GPU of the local rank.

    Args:
        device: The device asked for.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    if str(device) != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def join_process_group(device: torch.device) -> Ranks:
    """Join the other processes, if torchrun has started some or the caller has initialized a process group.

    A process group made here stays until the process ends: torch cannot make a second one on torchrun's store.

    Args:
        device: The device of this process. The backend is NCCL for GPUs, gloo for everything else.

    Example:
        >>> join_process_group(torch.device("cpu")).world_size
        1
    """
    if not (dist.is_available() and (dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1)):
        return Ranks(device=device)
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _leave_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

"""Several processes that train one model, as torchrun starts them: who they are, and what they have to agree on.

Each process takes its share of every batch and draws noise of its own; torch's DistributedDataParallel averages the
gradients. A run means the same on any number of processes, so it may be resumed on another number.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "joined", "local_device"]


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Args:
        rank: The number of this one, from 0.
        size: How many there are.
        device: Where this one computes.

    Example:
        >>> alone = Ranks()
        >>> alone.first, alone.share(torch.arange(5)), alone.mean(torch.ones(2))
        (True, (tensor([0, 1, 2, 3, 4]), 1.0), tensor([1., 1.]))
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, shows and calls back."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def share(self, index: Tensor) -> tuple[Tensor, float]:
        r"""This process's part of a batch, and the weight of its data term.

        A rank's estimate is $\frac{N}{B_r} \sum_{i \in B_r} \log p$; times $R B_r / B$, the mean over the R ranks is
        that of the whole batch, whatever the parts' sizes. A rank for which nothing is left takes an example with
        weight 0, so that all ranks make the step.

        Args:
            index: The batch's examples.

        Returns:
            Its examples, and the weight.
        """
        mine = index[self.rank :: self.size]
        weight = self.size * len(mine) / max(len(index), 1)
        return (mine, weight) if len(mine) else (index[:1], 0.0)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, the same on all of them.

        Args:
            values: This rank's.
        """
        if not self.many:
            return values
        total = values.detach().clone().to(self.device)
        dist.all_reduce(total)
        return (total / self.size).to(values.device)

    def broadcast_from_first(self, value: Any) -> Any:
        """What the first rank has, on all of them.

        Args:
            value: This rank's; the others' is not looked at.
        """
        if not self.many:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]

    def run_on_first(self, action: Callable[[], Any]) -> None:
        """Do something on the first rank only; where it fails, fail on all of them, so that none waits for ever.

        Args:
            action: What to do.

        Raises:
            RuntimeError: It failed on the first rank, and this is another one.
        """
        failure: BaseException | None = None
        if self.first:
            try:
                action()
            except BaseException as error:  # an interrupt, too, must reach the others
                failure = error
        text = self.broadcast_from_first(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        if text is not None:
            raise RuntimeError(f"rank {self.rank} of {self.size} stops, since rank 0 has failed: {text}")


def local_device(device: str | torch.device | None) -> str | torch.device | None:
    """The device meant on this process: under torchrun, `"cuda"` is the GPU of the local rank.

    Args:
        device: The device asked for.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    if str(device) != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def joined(device: torch.device) -> Ranks:
    """Join the other processes, if torchrun has started some or the caller has a process group.

    A group made here stays until the process ends: torch cannot make a second one on torchrun's store.

    Args:
        device: Where this process computes: NCCL serves GPUs, gloo everything else.

    Example:
        >>> joined(torch.device("cpu")).size
        1
    """
    if not (dist.is_available() and (dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1)):
        return Ranks(device=device)
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

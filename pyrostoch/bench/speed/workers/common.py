"""What the implementations with torch share: networks, batches, and a step of Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .task import LR, NUM_DATA, Task, TimedStep

__all__ = ["arrays", "batches", "data_term", "network", "training", "waiter"]

# Number of different batches, which are used in turn.
_BATCHES = 8


def arrays(task: Task) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Batches of random images and labels, as NumPy arrays; only one batch if it has more than 1,000 examples."""
    generator = np.random.default_rng(task.seed)
    shape, classes = ((task.widths[0],), task.widths[-1]) if task.widths else ((1, 28, 28), 10)
    return [
        (
            generator.standard_normal((task.examples, *shape), dtype=np.float32),
            generator.integers(0, classes, task.examples),
        )
        for _ in range(_BATCHES if task.examples <= 1000 else 1)
    ]


def batches(task: Task) -> list[tuple[Tensor, Tensor]]:
    """The same batches as tensors on the task's device."""
    return [(torch.from_numpy(x).to(task.device), torch.from_numpy(y).to(task.device)) for x, y in arrays(task)]


def network(
    task: Task, linear: Callable[..., nn.Module] = nn.Linear, conv: Callable[..., nn.Module] = nn.Conv2d
) -> nn.Sequential:
    """The task's network, with a given kind of layers.

    Args:
        task: The task.
        linear: Makes a dense layer, called with the two widths and the keyword `bias`.
        conv: Makes a convolution, called with the two numbers of channels, the kernel's size and the keyword `bias`.
    """
    torch.manual_seed(task.seed)
    layers: list[nn.Module] = []
    if task.widths:
        for before, width in zip(task.widths, task.widths[1:], strict=False):
            layers += [linear(before, width, bias=True), nn.ReLU()]
        del layers[-1]
    else:
        for before, width in ((1, 20), (20, 50)):
            layers += [conv(before, width, 5, bias=False), nn.BatchNorm2d(width), nn.MaxPool2d(2), nn.ReLU()]
        layers += [nn.Flatten(), linear(800, 500, bias=False), nn.BatchNorm1d(500), nn.ReLU()]
        layers += [linear(500, 10, bias=False)]
    return nn.Sequential(*layers).to(task.device)


def data_term(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the whole data set, nats."""
    return NUM_DATA * nn.functional.cross_entropy(logits, y)


def waiter(device: str) -> Callable[[Any], None]:
    """A function that waits until a device has finished its work; a CPU needs no waiting."""
    return (lambda last: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda last: None)


def training(task: Task, loss: Callable[[Tensor, Tensor], Tensor], parameters: Iterable[Tensor]) -> TimedStep:
    """Steps of Adam on a loss.

    Args:
        task: The task.
        loss: The loss of a batch.
        parameters: The parameters that it is minimized over.
    """
    optimizer, data = torch.optim.Adam(list(parameters), lr=LR), batches(task)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        value = loss(*data[number % len(data)])
        value.backward()
        optimizer.step()
        return value

    return TimedStep(step, waiter(task.device))

"""What the routes through torch share: networks, batches, and a step of Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .task import LR, NUM_DATA, Route, Task

__all__ = ["arrays", "batches", "data_term", "network", "training", "waiter"]

# Different batches, taken in turn.
_BATCHES = 8


def arrays(task: Task) -> list[tuple[Any, Any]]:
    """Batches of random images and labels, as arrays of NumPy; one where a batch is large."""
    source = np.random.default_rng(task.seed)
    shape, classes = ((task.widths[0],), task.widths[-1]) if task.widths else ((1, 28, 28), 10)
    return [
        (
            source.standard_normal((task.examples, *shape), dtype=np.float32),
            source.integers(0, classes, task.examples),
        )
        for _ in range(_BATCHES if task.examples <= 1000 else 1)
    ]


def batches(task: Task) -> list[tuple[Tensor, Tensor]]:
    """The same batches as tensors on the task's device."""
    return [(torch.from_numpy(x).to(task.device), torch.from_numpy(y).to(task.device)) for x, y in arrays(task)]


def network(
    task: Task, linear: Callable[..., nn.Module] = nn.Linear, conv: Callable[..., nn.Module] = nn.Conv2d
) -> nn.Sequential:
    """The task's network, made of layers of some kind.

    Args:
        task: The task.
        linear: Makes a dense layer from its widths and `bias`.
        conv: Makes a convolution from its channels, its kernel's size and `bias`.
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
    """Waits until a device has done all it was given."""
    return (lambda last: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda last: None)


def training(task: Task, loss: Callable[[Tensor, Tensor], Tensor], parameters: Iterable[Tensor]) -> Route:
    """Steps of Adam on a loss.

    Args:
        task: The task.
        loss: The loss of a batch.
        parameters: What it is minimized over.
    """
    optimizer, data = torch.optim.Adam(list(parameters), lr=LR), batches(task)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        value = loss(*data[number % len(data)])
        value.backward()
        optimizer.step()
        return value

    return Route(step, waiter(task.device))

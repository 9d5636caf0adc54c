"""Torch alone: without randomness, and local reparameterization as one writes it by hand."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .task import SCALE, Route, Task
from .torches import data_term, network, training

__all__ = ["Local", "build", "by_hand"]


class Local(nn.Module):
    """A layer whose outputs are drawn: N(op(x, mean) + bias, op(x^2, variance)); prior N(0, 1).

    Args:
        layer: The plain layer, whose tensors are the means.
        op: What it does, with input, weight and bias.
        random_bias: Whether its bias is random too.
    """

    def __init__(self, layer: Any, op: Any, random_bias: bool) -> None:
        super().__init__()
        self.op, self.loc, self.bias = op, layer.weight, layer.bias
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(SCALE)))
        random_bias = random_bias and self.bias is not None
        self.bias_log_scale = nn.Parameter(torch.full_like(self.bias, math.log(SCALE))) if random_bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs, and the divergence of the layer's tensors from the prior."""
        variance = (2 * self.log_scale).exp()
        kl, bias_variance = _kl(self.loc, variance, self.log_scale), None
        if self.bias_log_scale is not None:
            bias_variance = (2 * self.bias_log_scale).exp()
            kl = kl + _kl(self.bias, bias_variance, self.bias_log_scale)
        mean, spread = self.op(x, self.loc, self.bias), self.op(x * x, variance, bias_variance)
        # An input of zeros has no spread, whose root has no gradient.
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        return mean + spread.clamp_min(1e-16).sqrt() * noise, kl


def _kl(loc: Tensor, variance: Tensor, log_scale: Tensor) -> Tensor:
    return ((variance + loc * loc - 1) / 2 - log_scale).sum()


def _linear(before: int, width: int, bias: bool, random_bias: bool) -> Local:
    return Local(nn.Linear(before, width, bias=bias), F.linear, random_bias)


def _conv(before: int, width: int, kernel: int, bias: bool, random_bias: bool) -> Local:
    return Local(nn.Conv2d(before, width, kernel, bias=bias), F.conv2d, random_bias)


class _Loss(nn.Module):
    """-ELBO of a network with drawn outputs, nats."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        kl: Any = 0.0
        for layer in self.net:
            if isinstance(layer, Local):
                x, part = layer(x)
                kl = kl + part
            else:
                x = layer(x)
        return data_term(x, y) + kl


def by_hand(task: Task) -> nn.Module:
    """The loss of a task's network with local reparameterization: a module called with images and labels."""
    layer = {"random_bias": task.random == "all"}
    return _Loss(network(task, functools.partial(_linear, **layer), functools.partial(_conv, **layer)))


def build(task: Task) -> Route:
    """The routes `torch`, `hand` and `hand-compiled`."""
    if task.route == "torch":
        net = network(task)
        return training(task, lambda x, y: data_term(net(x), y), net.parameters())
    loss = by_hand(task)
    compiled = torch.compile(loss) if task.route == "hand-compiled" else loss
    return training(task, compiled, loss.parameters())

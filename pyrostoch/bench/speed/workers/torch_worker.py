"""Torch alone: without randomness, and with local reparameterization written by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import data_term, network, training
from .task import SCALE, Task, TimedStep

__all__ = ["Local", "build", "by_hand"]


class Local(nn.Module):
    """A layer whose outputs are drawn from N(op(x, mean) + bias, op(x^2, variance)); the weights' prior is N(0, 1).

    Args:
        layer: A plain layer, whose tensors become the means.
        op: The layer's function of input, weight and bias.
        random_bias: Whether its bias is random too.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, op: Callable[..., Tensor], random_bias: bool) -> None:
        super().__init__()
        self.op, self.loc, self.bias = op, layer.weight, layer.bias
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(SCALE)))
        self.bias_log_scale: nn.Parameter | None = None
        if random_bias and self.bias is not None:
            self.bias_log_scale = nn.Parameter(torch.full_like(self.bias, math.log(SCALE)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs, and the KL divergence of the layer's tensors from the prior."""
        variance = (2 * self.log_scale).exp()
        kl, bias_variance = _kl(self.loc, variance, self.log_scale), None
        if self.bias is not None and self.bias_log_scale is not None:
            bias_variance = (2 * self.bias_log_scale).exp()
            kl = kl + _kl(self.bias, bias_variance, self.bias_log_scale)
        mean, output_variance = self.op(x, self.loc, self.bias), self.op(x * x, variance, bias_variance)
        # Inputs of zero give a variance of zero, at which the square root has no gradient.
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        return mean + output_variance.clamp_min(1e-16).sqrt() * noise, kl


def _kl(loc: Tensor, variance: Tensor, log_scale: Tensor) -> Tensor:
    return ((variance + loc * loc - 1) / 2 - log_scale).sum()


def _linear(before: int, width: int, bias: bool, random_bias: bool) -> Local:
    return Local(nn.Linear(before, width, bias=bias), F.linear, random_bias)


def _conv(before: int, width: int, kernel: int, bias: bool, random_bias: bool) -> Local:
    return Local(nn.Conv2d(before, width, kernel, bias=bias), F.conv2d, random_bias)


class _Loss(nn.Module):
    """The negative ELBO of a network of such layers, nats."""

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
    """The loss of a task's network with local reparameterization, as a module called with images and labels."""
    random_bias = task.random == "all"
    linear, conv = (functools.partial(layer, random_bias=random_bias) for layer in (_linear, _conv))
    return _Loss(network(task, linear, conv))


def build(task: Task) -> TimedStep:
    """The implementations `torch`, `hand` and `hand-compiled`."""
    if task.implementation == "torch":
        net = network(task)
        return training(task, lambda x, y: data_term(net(x), y), net.parameters())
    loss = by_hand(task)
    compiled = torch.compile(loss) if task.implementation == "hand-compiled" else loss
    return training(task, compiled, loss.parameters())

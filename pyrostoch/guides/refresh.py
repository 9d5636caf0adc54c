"""Batch normalization's statistics, estimated again for a network that is no longer noisy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count

__all__ = ["refresh_batch_norm"]


def refresh_batch_norm(net: nn.Module, x: Tensor, *, batch_size: int = 500) -> int:
    """Estimate the running statistics of batch normalization again, from a network as it is now.

    Statistics gathered while weights were drawn hold the variance that the draws added. A network that draws nothing,
    because it was pruned or reads its mean weights, is normalized wrongly by them, and may lose most of its accuracy by
    that alone. No labels are needed, and no weight changes.

    Args:
        net: A plain network, such as `Pruning.export` returns; its mode is left as it was.
        x: Training inputs; some thousands are plenty.
        batch_size: Examples a batch; statistics are means over batches, a short last one left out.

    Returns:
        The number of layers whose statistics are new.

    Raises:
        ValueError: There are fewer inputs than two, or the batch size is no whole number from 1 up.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> refresh_batch_norm(net, torch.full((10, 1), 3.0) + torch.arange(10.0)[:, None], batch_size=10)
        1
        >>> net[0].running_mean
        tensor([7.5000])

    References:
        Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018, for the same step.
    """
    check_count("refresh_batch_norm batch_size", batch_size)
    if len(x) < 2:
        raise ValueError(f"refresh_batch_norm: expected at least 2 inputs, got {len(x)}")
    layers = [
        part
        for part in net.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None
    ]
    before = [(part, part.training) for part in net.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        net.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
            layer.train()
        with torch.no_grad():
            for part in x.split(batch_size):
                if len(part) == min(batch_size, len(x)):
                    net(part)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in before:
            module.training = training
    return len(layers)

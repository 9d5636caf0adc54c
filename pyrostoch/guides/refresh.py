"""Running statistics of batch normalization, estimated again for a network without noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count

__all__ = ["refresh_batch_norm"]


def refresh_batch_norm(net: nn.Module, x: Tensor, *, batch_size: int = 500) -> int:
    """Estimate the running statistics of batch normalization again, with the network's present weights.

    Statistics gathered while weights were drawn include the variance that the draws added. They normalize wrongly a
    network that draws nothing, because it was pruned or uses its mean weights; such a network may lose most of its
    accuracy for this reason alone. No labels are needed, and no weight changes.

    Args:
        net: A plain network, such as `Pruning.export` returns; its training or evaluation mode is left as it was.
        x: Training inputs, a tensor; a few thousand suffice.
        batch_size: Examples per batch. Statistics are means over batches, without a shorter last batch.

    Returns:
        The number of layers whose statistics were estimated.

    Raises:
        ValueError: There are fewer than two inputs, or the batch size is not a positive whole number.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> refresh_batch_norm(net, torch.full((10, 1), 3.0) + torch.arange(10.0)[:, None], batch_size=10)
        1
        >>> net[0].running_mean
        tensor([7.5000])

    References:
        Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018, which does the same
        for averaged weights.
    """
    check_count("refresh_batch_norm batch_size", batch_size)
    if len(x) < 2:
        raise ValueError(f"refresh_batch_norm: expected at least 2 inputs, got {len(x)}")
    layers = [
        module
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    modes = [(module, module.training) for module in net.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        net.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
            layer.train()
        with torch.no_grad():
            for batch in x.split(batch_size):
                if len(batch) == min(batch_size, len(x)):
                    net(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
    return len(layers)

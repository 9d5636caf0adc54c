"""The exact expected loss of a small network: a sum over every configuration of all neurons."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch._manual import see
from pyrostoch.estimators.states import (
    Loss,
    States,
    check_examples_independent,
    checked_loss,
    log_probabilities,
    values_of,
)
from pyrostoch.layers import KState

__all__ = ["enumerated"]

# Configurations of all neurons of a network.
_MAX_CONFIGURATIONS = 2**15


class _AllConfigurations(States):
    """Runs the network on all configurations of its neurons, stacked in front of the examples.

    Attributes:
        log_prob: The log probability of each configuration for each example, (C, B); C grows with every layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_prob: Tensor | None = None

    def states(self, layer: KState, x: Tensor) -> Tensor:
        count, choices = x[0].numel(), len(layer.states)
        before = 1 if self.log_prob is None else len(self.log_prob)
        if before * choices**count > _MAX_CONFIGURATIONS:
            raise ValueError(
                f"estimator 'enumeration': layer {self.depth + 1} of neurons makes {before} * {choices}^{count} "
                f"configurations, more than {_MAX_CONFIGURATIONS}; use fewer neurons"
            )
        indices = torch.arange(choices, device=x.device)
        configurations = torch.cartesian_prod(*[indices] * count).reshape(-1, count)  # (K, n)
        logs = log_probabilities(layer, x).unflatten(0, (before, -1))  # (C, B, n, k)
        log_prob = sum(logs[:, :, neuron, configurations[:, neuron]] for neuron in range(count))  # (C, B, K)
        earlier = 0.0 if self.log_prob is None else self.log_prob.unsqueeze(-1)
        self.log_prob = (log_prob + earlier).movedim(-1, 0).flatten(0, 1)  # (K C, B)
        return values_of(layer, configurations.unsqueeze(1).expand(-1, len(x), -1), x)


def enumerated(net: nn.Module, x: Tensor, loss: Loss, *, log_mean_exp: bool = False) -> Tensor:
    r"""The exact mean over examples of $E\,L$, or of $-\log E\,e^{-L}$, with its exact gradient.

    Args:
        net: A network whose neurons have at most 32,768 configurations together (15 binary neurons).
        x: Inputs, (B, ...).
        loss: Loss of each example, (B,), from the network's output, (B, ...).
        log_mean_exp: Whether to average the likelihood $e^{-L}$ instead of the loss.

    Returns:
        The mean, a differentiable scalar.

    Raises:
        ValueError: There are too many configurations or no neurons with states, or a layer in training mode is random
            or makes an example's output depend on other examples.

    Example:
        >>> from pyrostoch.layers import Binary
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), Binary(noise=1.0))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(0.5)
        >>> expected = enumerated(net, torch.ones(1, 1), lambda out: out.sum(1))
        >>> round(expected.item(), 4)  # 2 Phi(0.5) - 1
        0.3829
    """
    check_examples_independent(net, "enumeration")
    with _AllConfigurations() as configurations:
        out = net(x)
    log_prob = configurations.log_prob
    if log_prob is None:
        raise ValueError(
            f"estimator 'enumeration': {type(net).__name__} has no neurons with states{see('how-to/discrete_networks')}"
        )
    losses = torch.vmap(checked_loss(loss, len(x)))(out.unflatten(0, log_prob.shape))  # (C, B)
    if log_mean_exp:
        return -torch.logsumexp(log_prob - losses, 0).mean()
    return (log_prob.exp() * losses).sum(0).mean()

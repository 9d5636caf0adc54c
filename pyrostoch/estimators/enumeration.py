"""The oracle for small networks: every configuration of all neurons, with its probability."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch.estimators.states import Loss, States, check_apart, each_example, log_probabilities, values_of
from pyrostoch.layers import KState

__all__ = ["enumerated"]

_MOST = 2**15


class _Every(States):
    """All configurations, in front of the examples; layers multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.log_prob: Tensor | None = None

    def states(self, layer: KState, x: Tensor) -> Tensor:
        count, choices = x[0].numel(), len(layer.states)
        before = 1 if self.log_prob is None else len(self.log_prob)
        if before * choices**count > _MOST:
            raise ValueError(
                f"estimator 'enumeration': layer {self.depth + 1} brings the configurations to "
                f"{before} * {choices}^{count}, more than {_MOST}; use fewer neurons"
            )
        numbers = torch.arange(choices, device=x.device)
        every = torch.cartesian_prod(*[numbers] * count).reshape(-1, count)  # (K, n)
        logs = log_probabilities(layer, x).unflatten(0, (before, -1))  # (C, B, n, k)
        each = sum(logs[:, :, neuron, every[:, neuron]] for neuron in range(count))  # (C, B, K)
        past = 0.0 if self.log_prob is None else self.log_prob.unsqueeze(-1)
        self.log_prob = (each + past).movedim(-1, 0).flatten(0, 1)  # (K C, B)
        return values_of(layer, every.unsqueeze(1).expand(-1, len(x), -1), x)


def enumerated(net: nn.Module, x: Tensor, loss: Loss, *, log_mean_exp: bool = False) -> Tensor:
    r"""The exact mean over examples of $E\,L$, or of $-\log E\,e^{-L}$, with its exact gradient.

    Args:
        net: A network of at most 15 binary neurons, or as many configurations of others; 32,768.
        x: Inputs, (B, ...).
        loss: Loss of each example.
        log_mean_exp: Whether the probability is averaged, and not the loss.

    Returns:
        The mean, differentiable.

    Raises:
        ValueError: There are too many configurations, or examples see each other.

    Example:
        >>> from pyrostoch.layers import Binary
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), Binary(noise=1.0))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(0.5)
        >>> found = enumerated(net, torch.ones(1, 1), lambda out: out.sum(1))
        >>> round(found.item(), 4)  # 2 Phi(0.5) - 1
        0.3829
    """
    check_apart(net, "enumeration")
    with _Every() as every:
        out = net(x)
    if every.log_prob is None:
        raise ValueError(f"estimator 'enumeration': {type(net).__name__} has no neurons with states")
    losses = torch.vmap(each_example(loss, len(x)))(out.unflatten(0, every.log_prob.shape))  # (C, B)
    if log_mean_exp:
        return -torch.logsumexp(every.log_prob - losses, 0).mean()
    return (every.log_prob.exp() * losses).sum(0).mean()

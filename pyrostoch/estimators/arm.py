"""ARM and its form for more than two states: the network is run again with states swapped in one layer at a time."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from pyrostoch.estimators.states import Loss, States, check_apart, log_probabilities, values_of
from pyrostoch.layers import KState

__all__ = ["arm"]


class _Swapped(States):
    """The state of the least difference of a Dirichlet draw's logarithm and the logit; two swapped in one layer."""

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self.kept, self.logs = kept, list[Tensor]()
        self.swap: tuple[int, int, int] | None = None

    def states(self, layer: KState, x: Tensor) -> Tensor:
        logs = log_probabilities(layer, x)
        self.logs.append(logs)
        if self.depth == len(self.kept):
            self.kept.append(torch.distributions.Exponential(torch.ones_like(logs)).sample())
            self.kept[-1] /= self.kept[-1].sum(-1, keepdim=True)
        drawn = self.kept[self.depth]
        if self.swap is not None and self.swap[0] == self.depth:
            order = list(range(len(layer.states)))
            one, other = self.swap[1:]
            order[one], order[other] = other, one
            drawn = drawn[..., order]
        return values_of(layer, (drawn.log() - logs.detach()).argmin(-1), x)


def arm(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    r"""A surrogate with the gradient of ARM (two states) and ARSM (more), by the logits of each neuron's states.

    With $\pi$ from a flat Dirichlet distribution a neuron is in the state of the least $\log \pi_c - \varphi_c$. With
    $L^{c \leftrightarrow m}$ the loss where the entries c and m of every neuron's $\pi$ in a layer are swapped,

    $$ \nabla_{\varphi_c} = \sum_m \Bigl(L^{c \leftrightarrow m} - \tfrac1k \sum_j L^{j \leftrightarrow m}\Bigr)
    \Bigl(\tfrac1k - \pi_m\Bigr), $$

    unbiased; layers behind are drawn with the same $\pi$. It takes k (k - 1) / 2 runs a layer and one more.

    Args:
        net: The network.
        x: Inputs, (B, ...).
        loss: Loss of each example.
        samples: Draws that are averaged.

    Returns:
        The mean loss, with this gradient.

    References:
        Yin, Zhou, "ARM: augment-REINFORCE-merge gradient for stochastic binary networks", 2019; Yin, Yue, Zhou,
        "ARSM", 2019.
    """
    check_apart(net, "arm")
    total: Tensor | float = 0.0
    for _ in range(samples):
        kept: list[Tensor] = []
        with _Swapped(kept) as first:
            plain = loss(net(x))
        whole = plain.mean()
        for depth, logs in enumerate(first.logs):
            slope = _slope(net, x, loss, kept, depth, plain.detach())
            part = (slope * logs).sum((1, 2)).mean()
            whole = whole + part - part.detach()
        total = total + whole / samples
    return torch.as_tensor(total)


def _slope(net: nn.Module, x: Tensor, loss: Loss, kept: list[Tensor], depth: int, plain: Tensor) -> Tensor:
    """The estimate of the derivative by one layer's logits, (B, n, k)."""
    choices = kept[depth].shape[-1]
    losses = plain.reshape(1, 1, -1).repeat(choices, choices, 1)
    for one, other in itertools.combinations(range(choices), 2):
        again = _Swapped(kept)
        again.swap = (depth, one, other)
        with torch.no_grad(), again:
            losses[one, other] = losses[other, one] = loss(net(x))
    apart = losses - losses.mean(0, keepdim=True)  # (c, m, B)
    return torch.einsum("cmb,bnm->bnc", apart, 1.0 / choices - kept[depth])

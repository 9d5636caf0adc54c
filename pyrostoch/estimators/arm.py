"""ARM, and ARSM for more than two states: the network is run again with the noise swapped in one layer at a time."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from pyrostoch.estimators.states import Loss, States, check_examples_independent, log_probabilities, values_of
from pyrostoch.layers import KState

__all__ = ["arm"]


class _Swapped(States):
    """Each neuron takes the state c of the least log pi_c - phi_c, pi a Dirichlet draw and phi the logits.

    Attributes:
        draws: pi for each layer, (B, n, k); drawn in the first run and used again in later ones.
        logits: The log probabilities of the states in this run, by layer.
        swap: The layer and the two states whose entries of pi are swapped, or `None`.
    """

    def __init__(self, draws: list[Tensor]) -> None:
        super().__init__()
        self.draws, self.logits = draws, list[Tensor]()
        self.swap: tuple[int, int, int] | None = None

    def states(self, layer: KState, x: Tensor) -> Tensor:
        logits = log_probabilities(layer, x)
        self.logits.append(logits)
        if self.depth == len(self.draws):
            self.draws.append(torch.distributions.Exponential(torch.ones_like(logits)).sample())
            self.draws[-1] /= self.draws[-1].sum(-1, keepdim=True)
        draw = self.draws[self.depth]
        if self.swap is not None and self.swap[0] == self.depth:
            order = list(range(len(layer.states)))
            one, other = self.swap[1:]
            order[one], order[other] = other, one
            draw = draw[..., order]
        return values_of(layer, (draw.log() - logits.detach()).argmin(-1), x)


def arm(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    r"""A surrogate loss with the gradient estimate of ARM (two states) or ARSM (more than two).

    Let $\varphi$ be the logits of a neuron's k states and $\pi$ a draw from a flat Dirichlet distribution. The neuron
    is in the state c of the least $\log \pi_c - \varphi_c$. Let $L^{c \leftrightarrow m}$ be the loss if the entries c
    and m of every neuron's $\pi$ in one layer are swapped, while later layers use the same $\pi$ as before. Then

    $$ \nabla_{\varphi_c} = \sum_m \Bigl(L^{c \leftrightarrow m} - \tfrac1k \sum_j L^{j \leftrightarrow m}\Bigr)
    \Bigl(\tfrac1k - \pi_m\Bigr) $$

    is an unbiased estimate. A draw takes k (k - 1) / 2 runs of the network for each layer of neurons, and one more.

    Args:
        net: The network.
        x: Inputs, (B, ...).
        loss: Loss of each example.
        samples: Number of draws that are averaged.

    Returns:
        The mean loss, a scalar whose backward pass gives this gradient.

    References:
        Yin, Zhou, "ARM: augment-REINFORCE-merge gradient for stochastic binary networks", 2019; Yin, Yue, Zhou, "ARSM:
        augment-REINFORCE-swap-merge estimator for gradient backpropagation through categorical variables", 2019.
    """
    check_examples_independent(net, "arm")
    total: Tensor | float = 0.0
    for _ in range(samples):
        draws: list[Tensor] = []
        with _Swapped(draws) as first:
            unswapped = loss(net(x))
        value = unswapped.mean()
        for depth, logits in enumerate(first.logits):
            derivative = _derivative(net, x, loss, draws, depth, unswapped.detach())
            term = (derivative * logits).sum((1, 2)).mean()
            value = value + term - term.detach()
        total = total + value / samples
    return torch.as_tensor(total)


def _derivative(net: nn.Module, x: Tensor, loss: Loss, draws: list[Tensor], depth: int, unswapped: Tensor) -> Tensor:
    """The estimated derivative of the loss with respect to one layer's logits, (B, n, k)."""
    choices = draws[depth].shape[-1]
    losses = unswapped.reshape(1, 1, -1).repeat(choices, choices, 1)
    for one, other in itertools.combinations(range(choices), 2):
        swapped = _Swapped(draws)
        swapped.swap = (depth, one, other)
        with torch.no_grad(), swapped:
            losses[one, other] = losses[other, one] = loss(net(x))
    centered = losses - losses.mean(0, keepdim=True)  # (c, m, B)
    return torch.einsum("cmb,bnm->bnc", centered, 1.0 / choices - draws[depth])

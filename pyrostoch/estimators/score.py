"""The score function estimator (REINFORCE) with a baseline; it needs losses, but no derivative after a neuron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch.estimators.states import Loss, States, log_probabilities, values_of
from pyrostoch.layers import KState

__all__ = ["score"]


class _Drawn(States):
    """Draws the states and sums their log probabilities, (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_prob: Tensor | float = 0.0

    def states(self, layer: KState, x: Tensor) -> Tensor:
        logs = log_probabilities(layer, x)
        index = torch.distributions.Categorical(logits=logs.detach()).sample()
        self.log_prob = self.log_prob + logs.gather(-1, index.unsqueeze(-1)).squeeze(-1).sum(-1)
        return values_of(layer, index, x)


def score(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    r"""A surrogate loss with the gradient $(L - b)\,\nabla \log p(s)$, b the mean loss of the other draws.

    It is unbiased; its variance grows with the number of neurons.

    Args:
        net: The network.
        x: Inputs, (B, ...).
        loss: Loss of each example.
        samples: Number of draws, at least two.

    Returns:
        The mean loss, a scalar whose backward pass gives this gradient.

    Raises:
        ValueError: `samples` is 1.

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992;
        Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
    """
    if samples < 2:
        raise ValueError(
            f"estimator 'score': the baseline is the mean loss of the other draws, got samples={samples}; give "
            "samples=2 or more"
        )
    runs, log_probs = [], []
    for _ in range(samples):
        with _Drawn() as drawn:
            runs.append(loss(net(x)))
        log_probs.append(torch.as_tensor(drawn.log_prob))
    losses, log_prob = torch.stack(runs), torch.stack(log_probs)  # (samples, B)
    fixed = losses.detach()
    # The loss minus the mean loss of the other draws.
    advantage = (fixed - fixed.mean(0)) * (samples / (samples - 1.0))
    weighted = (advantage * log_prob).mean(0)
    return (losses.mean(0) + weighted - weighted.detach()).mean()

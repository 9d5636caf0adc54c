"""The score function with a baseline: no derivative of the network behind a neuron, only what its loss came to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch.estimators.states import Loss, States, log_probabilities, values_of
from pyrostoch.layers import KState

__all__ = ["score"]


class _Drawn(States):
    """States drawn with their log probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.log_prob: Tensor | float = 0.0

    def states(self, layer: KState, x: Tensor) -> Tensor:
        logs = log_probabilities(layer, x)
        index = torch.distributions.Categorical(logits=logs.detach()).sample()
        self.log_prob = self.log_prob + logs.gather(-1, index.unsqueeze(-1)).squeeze(-1).sum(-1)
        return values_of(layer, index, x)


def score(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    r"""A surrogate whose gradient is $(L - b)\,\nabla \log p(s)$, b the mean loss of the other draws.

    Unbiased; the variance grows with the number of neurons.

    Args:
        net: The network.
        x: Inputs, (B, ...).
        loss: Loss of each example.
        samples: Draws, two at least.

    Returns:
        The mean loss, with this gradient.

    Raises:
        ValueError: There is one draw only.

    References:
        Williams 1992; Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
    """
    if samples < 2:
        raise ValueError(
            f"estimator 'score': the baseline is the other draws' mean loss, got samples={samples}; give samples=2 or "
            "more"
        )
    losses, logs = [], []
    for _ in range(samples):
        with _Drawn() as drawn:
            losses.append(loss(net(x)))
        logs.append(drawn.log_prob)
    found, scores = torch.stack(losses), torch.stack([torch.as_tensor(log) for log in logs])
    fixed = found.detach()
    apart = (fixed - fixed.mean(0)) * (samples / (samples - 1.0))
    weighted = (apart * scores).mean(0)
    return (found.mean(0) + weighted - weighted.detach()).mean()

"""A bound of mutual information from below, by a network that tells which input a message belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.obfuscate.attackers import Encoder, Sent, read_by, train_attacker

__all__ = ["Contrast", "contrast_bound"]

#: Number of inputs among which the right one is told; the bound is at most its logarithm.
CHOICES = 100
_SIZE = 64


class _Pair(nn.Module):
    """Embeddings of messages, and the network that embeds inputs."""

    def __init__(self, sent: Sent, x: Tensor) -> None:
        super().__init__()
        self.message = nn.Sequential(Encoder(sent), nn.Linear(Encoder.size, _SIZE))
        self.input = nn.Sequential(Encoder((x,)), nn.Linear(Encoder.size, _SIZE))

    def forward(self, sent: Sent) -> Tensor:
        embedded: Tensor = self.message(sent)
        return embedded


class Contrast:
    r"""Tells which of several inputs a message was made from; of B of them, $I(x; z) \ge \log B - L$.

    Args:
        x: Inputs, of which the networks' sizes are taken.

    Example:
        >>> attack, x = Contrast(torch.randn(8, 5)), torch.randn(8, 5)
        >>> attack.loss(attack.network((x,))((x,)), x).shape
        torch.Size([8])
    """

    def __init__(self, x: Tensor) -> None:
        self._x, self._pair = x, nn.Module()

    def network(self, sent: Sent) -> nn.Module:
        """A network for messages like these.

        Args:
            sent: What was sent for some examples.
        """
        self._pair = _Pair(sent, self._x)
        return self._pair

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The negative log probability of each message's own input, among those of up to 100 examples in a row.

        Args:
            output: Embeddings of messages.
            target: The inputs.
        """
        pair: _Pair = self._pair  # type: ignore[assignment]
        found = []
        for z, x in zip(output.split(CHOICES), target.split(CHOICES), strict=True):
            scores = z @ pair.input((x,)).T / _SIZE**0.5
            found.append(F.cross_entropy(scores, torch.arange(len(x), device=x.device), reduction="none"))
        return torch.cat(found)


def contrast_bound(
    send: Callable[[str, int], Sent], inputs: dict[str, Tensor], *, epochs: int, seed: int = 0
) -> Estimate:
    r"""A bound of $I(x; z)$ from below, InfoNCE: $\log B - L$ with B = 100 inputs to choose from.

    It is never more than log B = 4.6 nats, whatever is told.

    Args:
        send: Sends the examples of a part, `"train"`, `"validation"` or `"test"`, with the draws of a seed.
        inputs: The examples of each part; those of `"test"` at least 200.
        epochs: The largest number of epochs.
        seed: Seed of the training.

    Returns:
        Nats, with the standard error over groups of test examples.

    Raises:
        ValueError: There are too few test examples for two groups.

    References:
        van den Oord, Li, Vinyals, "Representation learning with contrastive predictive coding", 2018; Poole et al., "On
        variational bounds of mutual information", 2019.
    """
    groups = len(inputs["test"]) // CHOICES
    if groups < 2:
        raise ValueError(f"contrast_bound: expected at least {2 * CHOICES} test examples, got {len(inputs['test'])}")
    attack = Contrast(inputs["train"])
    parts = {part: inputs[part] for part in ("train", "validation")}
    found = train_attacker(attack, send, parts, epochs=epochs, until_it_stops=True, seed=seed)
    count = groups * CHOICES
    with torch.no_grad():
        output = read_by(found.network, send("test", seed))[:count]
        losses = attack.loss(output, inputs["test"][:count].to(output.device))
    mean = RunningMean()
    mean.update(math.log(CHOICES) - losses.double().cpu().reshape(groups, CHOICES).mean(1))
    return mean.compute()

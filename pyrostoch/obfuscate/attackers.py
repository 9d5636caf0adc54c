"""Attackers that learn from what a client sends: the networks, and how they are trained until they learn no more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch._seeds import mixed_seed
from pyrostoch.prediction.readouts import seeded

__all__ = ["Attribute", "Encoder", "Reconstruction", "Sent", "Trained", "read_by", "train_attacker"]

#: What an attacker sees of some examples: the tensors that were sent.
Sent = tuple[Tensor, ...]

_BATCH, _RATE = 100, 1e-3
# The rate of learning is lowered after so many epochs without a better loss, and training ends after some more.
_PATIENCE, _LOWER, _LEAST_RATE = 3, 0.3, 2e-5
# A loss that falls by less than this share has stopped falling.
_LEAST_GAIN = 1e-3
_WIDTH, _HIDDEN = 32, 256


class Encoder(nn.Module):
    """Reads tensors of any shapes: images by convolutions, all others flat.

    Args:
        sent: What was sent for some examples, whose mean and size are those that it expects.
    """

    #: Number of features that it returns.
    size = _HIDDEN

    def __init__(self, sent: Sent) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        size = 0
        for index, tensor in enumerate(sent):
            tensor = tensor.cpu().to(torch.get_default_dtype())  # what is sent may be double
            # Entries of images have one size in each channel; others each their own, however different these are.
            variance = tensor.var(0)
            if tensor.dim() == 4:
                variance = variance.mean((1, 2), keepdim=True)
            scale = variance.sqrt()
            self.register_buffer(f"mean{index}", tensor.mean(0))
            self.register_buffer(f"scale{index}", torch.where(scale > 0, scale, 1.0))
            if tensor.dim() == 4 and min(tensor.shape[2:]) >= 4:
                part = nn.Sequential(
                    nn.Conv2d(tensor.shape[1], _WIDTH, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(_WIDTH, 2 * _WIDTH, 3, stride=2, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(2 * _WIDTH, 2 * _WIDTH, 3, stride=2, padding=1),
                    nn.ReLU(),
                    nn.Flatten(),
                )
            else:
                part = nn.Sequential(nn.Flatten(), nn.Linear(tensor[0].numel(), _HIDDEN), nn.ReLU())
            self.parts.append(part)
            size += part(tensor[:1]).shape[1]
        self.last = nn.Sequential(nn.Linear(size, _HIDDEN), nn.ReLU())

    def forward(self, sent: Sent) -> Tensor:
        """Features, (batch, features).

        Args:
            sent: What was sent.
        """
        found = []
        for index, (part, tensor) in enumerate(zip(self.parts, sent, strict=True)):
            mean, scale = self.get_buffer(f"mean{index}"), self.get_buffer(f"scale{index}")
            found.append(part((tensor.to(mean.dtype) - mean) / scale))
        result: Tensor = self.last(torch.cat(found, 1))
        return result


class Attribute:
    """Reads a private attribute of each example: one of several classes.

    Args:
        num_classes: Number of classes.

    Example:
        >>> attack, sent = Attribute(3), (torch.randn(8, 5),)
        >>> attack.network(sent)(sent).shape
        torch.Size([8, 3])
    """

    name, unit = "attribute", "right %"

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def network(self, sent: Sent) -> nn.Module:
        """A network for tensors like these, which returns logits.

        Args:
            sent: What was sent for some examples.
        """
        return nn.Sequential(Encoder(sent), nn.Linear(_HIDDEN, self.num_classes))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The negative log probability of each attribute, in nats, (batch,)."""
        return F.cross_entropy(output, target, reduction="none")

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """100 where the attribute is the most probable one, else 0, (batch,)."""
        return 100.0 * (output.argmax(1) == target).double()


class Reconstruction:
    """Reconstructs inputs, by the mean squared error.

    Args:
        shape: Shape of an input.

    Example:
        >>> attack, sent = Reconstruction((1, 8, 8)), (torch.randn(4, 1, 8, 8),)
        >>> attack.network(sent)(sent).shape
        torch.Size([4, 1, 8, 8])
    """

    name, unit = "reconstruction", "mean squared error"

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def network(self, sent: Sent) -> nn.Module:
        """A network for tensors like these, which returns inputs.

        Args:
            sent: What was sent for some examples.
        """
        size = torch.Size(self.shape).numel()
        return nn.Sequential(Encoder(sent), nn.Linear(_HIDDEN, 2 * _HIDDEN), nn.ReLU(), _Out(size, self.shape))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean squared error of each input, (batch,)."""
        return (output - target).square().flatten(1).mean(1)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean squared error of each input, (batch,)."""
        return self.loss(output.double(), target.double())


class _Out(nn.Sequential):
    """A linear map onto inputs of some shape."""

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(2 * _HIDDEN, size), nn.Unflatten(1, shape))


@dataclass(frozen=True)
class Trained:
    """An attacker after its training.

    Args:
        network: Its network, with the parameters of the best validation loss.
        epochs: Number of epochs that it was trained.
        stopped: Whether its validation loss had stopped falling.
        loss: Its validation loss.
    """

    network: nn.Module
    epochs: int
    stopped: bool
    loss: float


def train_attacker(
    attack: Any,
    send: Callable[[str, int], Sent],
    targets: dict[str, Tensor],
    *,
    epochs: int,
    until_it_stops: bool,
    start: nn.Module | None = None,
    seed: int = 0,
) -> Trained:
    """Train an attacker on what is sent, with fresh draws in every epoch.

    The rate of learning is lowered where the validation loss no longer falls; at its lowest the training has ended. So
    an attacker is as good as it becomes, or `stopped` is false.

    Args:
        attack: `Attribute` or `Reconstruction`.
        send: Sends the examples of a part, `"train"` or `"validation"`, with the draws of a seed.
        targets: What the attacker wants to know of each example of a part.
        epochs: The largest number of epochs; with `until_it_stops=False`, their number.
        until_it_stops: Whether training ends when the validation loss no longer falls.
        start: A network to go on with.
        seed: Seed of parameters, order and draws.

    Returns:
        The attacker with the best validation loss.

    Example:
        >>> x = torch.randn(300, 2); y = (x[:, 0] > 0).long()
        >>> parts = {"train": slice(200), "validation": slice(200, 300)}
        >>> wanted = {part: y[rows] for part, rows in parts.items()}
        >>> found = train_attacker(Attribute(2), lambda part, seed: (x[parts[part]],), wanted,
        ...                        epochs=20, until_it_stops=False)
        >>> found.loss < 0.3, found.epochs
        (True, 20)
    """
    with torch.enable_grad(), seeded(mixed_seed(seed, 0), None):
        held_out = send("validation", mixed_seed(seed, 1))
        device = held_out[0].device
        targets = {part: target.to(device) for part, target in targets.items()}
        network = copy.deepcopy(start) if start is not None else attack.network(send("train", mixed_seed(seed, 2)))
        network.to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        best, state, waited, epoch, rate = 1e30, copy.deepcopy(network.state_dict()), 0, 0, _RATE
        while epoch < epochs and not (until_it_stops and rate < _LEAST_RATE):
            sent = send("train", mixed_seed(seed, 3, epoch))
            network.train()
            for rows in torch.randperm(len(targets["train"])).to(device).split(_BATCH):
                optimizer.zero_grad()
                loss = attack.loss(network(tuple(part[rows] for part in sent)), targets["train"][rows]).mean()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                now = float(attack.loss(read_by(network, held_out), targets["validation"]).mean())
            epoch += 1
            waited = 0 if now < best - _LEAST_GAIN * abs(best) else waited + 1
            if now < best:
                best, state = now, copy.deepcopy(network.state_dict())
            if waited >= _PATIENCE:
                waited, rate = 0, _LOWER * rate
                network.load_state_dict(state)
                for group in optimizer.param_groups:
                    group["lr"] = rate
        network.load_state_dict(state)
    return Trained(network, epoch, rate < _LEAST_RATE, best)


@torch.no_grad()
def read_by(network: nn.Module, sent: Sent) -> Tensor:
    """What an attacker's network makes of what was sent, in pieces.

    Args:
        network: The network.
        sent: What was sent.
    """
    network.eval()
    pieces = torch.arange(len(sent[0])).split(1000)
    return torch.cat([network(tuple(part[rows.to(part.device)] for part in sent)) for rows in pieces])

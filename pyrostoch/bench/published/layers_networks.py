"""Networks of the bench `layers`: stochastic layers of every architecture, around a network in three embodiments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrostoch.data import DataSplit
from pyrostoch.layers import (
    StochasticAdditive,
    StochasticConv2d,
    StochasticGRU,
    StochasticLinear,
    StochasticLSTM,
    StochasticSVM,
    StochasticTransformerEncoderLayer,
    activations,
    embody,
)
from pyrostoch.layers.activations import ActivationDistribution
from pyrostoch.models import CropAndFlip

__all__ = ["ARCHITECTURES", "DISTRIBUTIONS", "EMBODIMENTS", "bottleneck", "drawn_layer", "embodied", "stochastic_cnn"]

EMBODIMENTS = ("prepend", "merge_then_sample", "sample_then_merge")

#: The distributions of activations, by the name of a case.
DISTRIBUTIONS: dict[str, ActivationDistribution] = {
    "gaussian": activations.Gaussian(),
    "raw": activations.Gaussian("raw"),
    "laplace": activations.Laplace(),
    "student-t": activations.StudentT(),
    "log-normal": activations.LogNormal(),
    "bernoulli": activations.Bernoulli(),
    "binomial": activations.Binomial(4),
    "categorical": activations.Categorical(),
    "multinomial": activations.Multinomial(8),
    "poisson": activations.Poisson(),
    "gamma": activations.FromPyro(dist.Gamma),
}

_HIDDEN, _MAPS = 128, 16


@dataclass(frozen=True)
class Architecture:
    """How a kind of stochastic layer is put around a network.

    Args:
        network: Makes the network, which has a module `first` and one `last`.
        in_front: Makes the stochastic layer in front of the network, and layers before it.
        inside: Makes the one after `first`, and layers on the input that give what `first` gives.
        beside: Where the branch of `sample_then_merge` ends, and its stochastic layer and layers; by default as
            `inside`.
    """

    network: Callable[[], nn.Module]
    in_front: Callable[[], tuple[nn.Module, nn.Module | None]]
    inside: Callable[[], tuple[nn.Module, nn.Module]]
    at: str = "first"


class Rows(nn.Module):
    """Images as sequences of their rows, (batch, height, width); sequences stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop the axis of the channels.

        Args:
            x: Images `(batch, 1, height, width)`, or sequences.
        """
        return x.squeeze(1) if x.dim() == 4 else x


class _RowNetwork(nn.Module):
    """A module on sequences, then a linear map of the mean over time."""

    def __init__(self, first: nn.Module, size: int) -> None:
        super().__init__()
        self.rows, self.first, self.last = Rows(), first, nn.Linear(size, 10)

    def forward(self, x: Tensor) -> Any:
        found = self.first(self.rows(x))
        return self.last((found[0] if isinstance(found, tuple) else found).mean(1))


def _mlp() -> nn.Module:
    first = nn.Sequential(nn.Flatten(), nn.Linear(784, _HIDDEN), nn.ReLU())
    return nn.Sequential(OrderedDict(first=first, last=nn.Linear(_HIDDEN, 10)))


def _scores() -> nn.Module:
    """A network whose second part is the identity, so that a stochastic layer gives its output."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(784, _HIDDEN), nn.ReLU())
    return nn.Sequential(OrderedDict(first=first, last=nn.Identity()))


def _cnn() -> nn.Module:
    first = nn.Sequential(nn.Conv2d(1, _MAPS, 5, stride=2), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(_MAPS, 32, 5, stride=2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(OrderedDict(first=first, second=second, last=nn.Linear(512, 10)))


def _flat(size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, size))


def _tokens() -> nn.Module:
    return nn.TransformerEncoderLayer(28, 4, 64, dropout=0.0, batch_first=True)


#: The architectures, by the name of a case.
ARCHITECTURES: dict[str, Architecture] = {
    "linear": Architecture(
        _mlp,
        lambda: (StochasticLinear(784, 784, prior="learned"), nn.Flatten()),
        lambda: (StochasticLinear(_HIDDEN, _HIDDEN, prior="learned"), _flat(_HIDDEN)),
    ),
    "conv2d": Architecture(
        _cnn,
        lambda: (StochasticConv2d(1, 1, 3, padding=1, prior="learned"), None),
        lambda: (StochasticConv2d(_MAPS, _MAPS, 3, padding=1, prior="learned"), nn.Conv2d(1, _MAPS, 5, stride=2)),
    ),
    "additive": Architecture(
        _mlp,
        lambda: (StochasticAdditive((1, 28, 28), prior="standard"), None),
        lambda: (StochasticAdditive(_HIDDEN, prior="learned"), _flat(_HIDDEN)),
    ),
    "svm": Architecture(
        lambda: nn.Linear(10, 10),
        lambda: (StochasticSVM(784, 10, prior="standard"), nn.Flatten()),
        lambda: (StochasticSVM(_HIDDEN, 10, prior="standard"), _flat(_HIDDEN)),
    ),
    "lstm": Architecture(
        lambda: _RowNetwork(nn.LSTM(28, 64, batch_first=True), 64),
        lambda: (StochasticLSTM(28, 28, batch_first=True, prior="standard"), Rows()),
        lambda: (StochasticLSTM(64, 64, batch_first=True, prior="standard"), nn.Sequential(Rows(), nn.Linear(28, 64))),
    ),
    "gru": Architecture(
        lambda: _RowNetwork(nn.GRU(28, 64, batch_first=True), 64),
        lambda: (StochasticGRU(28, 28, batch_first=True, prior="standard"), Rows()),
        lambda: (StochasticGRU(64, 64, batch_first=True, prior="standard"), nn.Sequential(Rows(), nn.Linear(28, 64))),
    ),
    "transformer": Architecture(
        lambda: _RowNetwork(_tokens(), 28),
        lambda: (_stochastic_tokens(), Rows()),
        lambda: (_stochastic_tokens(), Rows()),
    ),
}


def _stochastic_tokens() -> nn.Module:
    return StochasticTransformerEncoderLayer(28, 4, 64, dropout=0.0, batch_first=True, prior="standard")


def embodied(architecture: str, embodiment: str) -> Callable[[DataSplit], nn.Module]:
    """Makes a network with a stochastic layer of an architecture in an embodiment, for images of 28 by 28.

    Args:
        architecture: Its name.
        embodiment: One of `EMBODIMENTS`.
    """

    def make(split: DataSplit) -> nn.Module:
        kind, example = ARCHITECTURES[architecture], split.x_train[:2]
        if embodiment == "prepend":
            layer, before = kind.in_front()
            return embody.prepend(kind.network(), layer, before)
        layer, branch = kind.inside()
        if architecture != "svm":
            join: Any = getattr(embody, embodiment)
            return join(kind.network(), kind.at, layer, branch, example=example)
        if embodiment == "merge_then_sample":
            return embody.merge_then_sample(_scores(), "first", layer, branch, example=example)
        # The margins of the machine are added to the scores of the network.
        return embody.sample_then_merge(_mlp(), "last", layer, branch, example=example)

    return make


def drawn_layer(kind: str, distribution: str) -> Callable[[DataSplit], nn.Module]:
    """Makes a small network whose hidden layer is drawn from a distribution.

    Args:
        kind: `"linear"` or `"conv2d"`.
        distribution: Its name.
    """

    def make(split: DataSplit) -> nn.Module:
        family = DISTRIBUTIONS[distribution]
        activation = nn.ReLU() if family.gradients[0] == "reparameterized" else nn.Identity()
        if kind == "linear":
            layer = StochasticLinear(784, _HIDDEN, distribution=family, prior="standard")
            parts: dict[str, nn.Module] = {"flat": nn.Flatten(), "drawn": layer, "activation": activation}
            return nn.Sequential(OrderedDict(**parts, last=nn.Linear(_HIDDEN, 10)))
        drawn = StochasticConv2d(1, _MAPS, 5, stride=2, distribution=family, prior="standard")
        rest = nn.Sequential(nn.Conv2d(_MAPS, 32, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        return nn.Sequential(OrderedDict(drawn=drawn, activation=activation, rest=rest))

    return make


def bottleneck(split: DataSplit) -> nn.Module:
    """The network of the information bottleneck: 784-1024-1024, 256 drawn activations, and a linear map to the classes.

    Args:
        split: The data set.
    """
    layer = StochasticLinear(1024, 256, prior="standard")
    with torch.no_grad():
        layer.get_parameter("kernel.bias")[256:] -= 5.0  # standard deviations start near 0, as in Alemi et al.
    parts = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()]
    return nn.Sequential(
        OrderedDict(
            augment=CropAndFlip(2, flip=False),
            encoder=nn.Sequential(nn.Flatten(), *parts),
            bottleneck=layer,
            scores=nn.Linear(256, 10),
        )
    )


def stochastic_cnn(split: DataSplit) -> nn.Module:
    """A convolutional network with a stochastic convolution and a stochastic fully connected layer.

    Args:
        split: The data set.
    """
    features = nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    )
    return nn.Sequential(
        OrderedDict(
            augment=CropAndFlip(2, flip=False),
            features=features,
            conv=StochasticConv2d(64, 32, 3, prior="learned"),
            act1=nn.Sequential(nn.Flatten(), nn.ReLU()),
            dense=StochasticLinear(128, 64, prior="learned"),
            act2=nn.ReLU(),
            scores=nn.Linear(64, 10),
        )
    )

"""What server and data holders have in common: the data set and its parts, and the network with a layer in front."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.federated import partition
from pyrostoch.layers import Conditional, GatedSelection, StochasticAdditive, embody

# Settings of every training.
SETTINGS = {"batch_size": 20, "lr": 3e-3, "progress": False, "compile": False}
# The Dirichlet concentration of labels that are skewed.
CONCENTRATION = 0.3


def load(config: Mapping[str, Any]) -> Any:
    """The data set: the bundled digits, or MNIST from the folder in PYROSTOCH_DATA."""
    return ps.data.load(str(config["data"]))


def part_of(config: Mapping[str, Any], labels: Tensor, number: int) -> Tensor:
    """The numbers of the examples of one holder. In earnest, every holder has a data set of its own."""
    skew = {"iid": None, "dirichlet": CONCENTRATION}[str(config["skew"])]
    return partition(labels, int(config["holders"]), concentration=skew, least=20, seed=int(config["seed"]))[number]


def build(x: Tensor) -> tuple[ps.BayesianModel, nn.Module]:
    """A convolutional network, in front of it noise for each class, and the selection of it for unknown classes."""
    torch.manual_seed(0)
    channels, *sizes = x.shape[1:]
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (sizes[0] // 2) * (sizes[1] // 2), 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    layer = Conditional(lambda: StochasticAdditive(tuple(x.shape[1:]), scale=0.5), 10, where="output")
    layer.selection = GatedSelection(nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)))
    net = embody.prepend(network, layer)
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=len(x))
    return model, ps.guides.Additive(model)

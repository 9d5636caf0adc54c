"""Data, network, model and guide of a run, as its settings describe them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch import data, likelihoods, models
from pyrostoch.data import DataSplit
from pyrostoch.model import BayesianModel
from pyrostoch.runs.config import Config
from pyrostoch.runs.names import GUIDES, parse_prior

__all__ = ["Party", "assemble", "describe_network", "load_split", "make_model"]

#: Standard deviation of a regression's noise as training starts, of standardized targets.
_NOISE = 0.3


@dataclass(frozen=True, eq=False)
class Party:
    """A model, its guide and its data, on one device.

    Args:
        model: The model.
        guide: Its guide.
        train: Inputs and targets of the training part.
        test: Inputs and targets of the test part.
        unit: Standard deviation of the raw target; 1 where targets have their own units.
    """

    model: BayesianModel
    guide: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unit: float


def load_split(config: Config) -> DataSplit:
    """The data of a run.

    Args:
        config: Its settings.

    Returns:
        Training and test part, on the CPU.
    """
    return data.load(config.data, config.data_dir, split=config.split, dtype=getattr(torch, config.dtype))


def make_model(config: Config, split: DataSplit) -> BayesianModel:
    """The model of a run, its network freshly drawn from the seed: the same for every guide.

    Args:
        config: The settings.
        split: The data.

    Returns:
        The model, on the CPU; torch's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = _network(config, split).to(getattr(torch, config.dtype))
    likelihood: likelihoods.Likelihood = (
        likelihoods.Categorical()
        if split.task == "classification"
        else likelihoods.Gaussian(_NOISE, learn=True).to(getattr(torch, config.dtype))
    )
    prior = parse_prior(config.prior)
    return BayesianModel(
        net, prior={pattern: prior for pattern in config.patterns}, likelihood=likelihood, num_data=len(split.x_train)
    )


def assemble(config: Config, split: DataSplit, guide: str) -> Party:
    """Model, guide and data on the run's device, ready to be trained or loaded.

    Args:
        config: The settings.
        split: The data.
        guide: Name of the guide.

    Returns:
        The parties.
    """
    model = make_model(config, split)
    kind = GUIDES[guide]
    made: Any = kind.make(model, init_log_alpha=config.init_log_alpha) if kind.alpha else kind.make(model)
    device = torch.device(config.device)
    train, test = (
        (x.to(device), y.to(device)) for x, y in ((split.x_train, split.y_train), (split.x_test, split.y_test))
    )
    unit = split.target_scale[1] if split.target_scale else 1.0
    return Party(model.to(device), made.to(device), train, test, unit)


def describe_network(config: Config, model: BayesianModel, split: DataSplit) -> str:
    """A network in a few words.

    Args:
        config: The settings.
        model: The model.
        split: The data.

    Returns:
        Its widths and what else there is to say.
    """
    outputs = split.num_classes or 1
    normalized = any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in model.net.modules())
    extra = ", ReLU, batch normalization" if normalized else ", ReLU"
    if config.model == "mlp":
        return "-".join(map(str, (math.prod(split.input_shape), *config.hidden, outputs))) + extra
    if isinstance(model.net, models.VGG):
        convolutions = [part for part in model.net.modules() if isinstance(part, nn.Conv2d)]
        widths = dict.fromkeys(part.out_channels for part in convolutions)
        dense = model.net.dense1.out_features
        return (
            f"{len(convolutions)} convolutions of 3 x 3, widths {', '.join(map(str, widths))}, dense {dense}-{outputs}"
            + extra
        )
    return f"convolutions 20 and 50 of 5 x 5, dense 500-{outputs}" + extra


def _network(config: Config, split: DataSplit) -> nn.Module:
    outputs = split.num_classes or 1
    if config.model != "mlp":
        return models.build(config.model, input_shape=split.input_shape, num_outputs=outputs)
    # Small regression sets come in batches whose statistics are too noisy to normalize by.
    return models.MLP(math.prod(split.input_shape), config.hidden, outputs, batch_norm=split.task == "classification")

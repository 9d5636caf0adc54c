"""Data, network, model and guide of a run, built from its settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pyrostoch import data, layers, likelihoods, models
from pyrostoch._seeds import forked
from pyrostoch._user_file import is_file_name
from pyrostoch.data import DataSplit
from pyrostoch.guides import Guide
from pyrostoch.model import BayesianModel
from pyrostoch.models.from_file import parse_arguments
from pyrostoch.prediction.validation import training_mode
from pyrostoch.runs.config import Config, is_image_folder
from pyrostoch.runs.registry import guide_kind, parse_prior

__all__ = ["Experiment", "build_experiment", "build_model", "describe_network", "load_data"]

#: Initial standard deviation of the noise of a regression, in units of the standardized target.
_INITIAL_NOISE = 0.3


@dataclass(frozen=True, eq=False)
class Experiment:
    """A model with one guide and its data, on one device.

    Args:
        model: The model.
        guide: The guide.
        train: Inputs and targets of the training part.
        test: Inputs and targets of the test part.
        target_std: Standard deviation by which the target was divided to standardize it; 1 for classification.
    """

    model: BayesianModel
    guide: Guide
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    target_std: float


def load_data(config: Config) -> DataSplit:
    """The data of a run.

    Args:
        config: The settings.

    Returns:
        The training and test parts, on the CPU.
    """
    dtype = getattr(torch, config.dtype)
    if config.target:
        return data.load_table(config.data, dtype=dtype, **config.table_options).split
    if is_image_folder(config.data):
        return data.load_images(config.data, dtype=dtype, **config.image_options)
    return data.load(config.data, config.data_dir, split=config.split, dtype=dtype)


def build_model(config: Config, split: DataSplit) -> BayesianModel:
    """The model of a run, with a new network initialized from the seed: the same for every guide.

    Args:
        config: The settings.
        split: The data.

    Returns:
        The model, on the CPU; torch's random state is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = _network(config, split).to(getattr(torch, config.dtype))
        try:
            layers.make_stochastic(net, config.stochastic_layers)
        except TypeError as error:  # the settings name a layer of another kind
            raise ValueError(f"stochastic: {error}") from error
        _make_conditional(net, config.conditional_layers, split)
    likelihood: likelihoods.Likelihood = (
        likelihoods.Categorical()
        if split.task == "classification"
        else likelihoods.Gaussian(_INITIAL_NOISE, learn=True).to(getattr(torch, config.dtype))
    )
    prior = parse_prior(config.prior)
    return BayesianModel(
        net, prior={pattern: prior for pattern in config.patterns}, likelihood=likelihood, num_data=len(split.x_train)
    )


def build_experiment(config: Config, split: DataSplit, guide: str) -> Experiment:
    """Model, guide and data on the device of the run, before training or loading a checkpoint.

    Args:
        config: The settings.
        split: The data.
        guide: Name of the guide.

    Returns:
        The experiment, untrained.
    """
    model = build_model(config, split)
    kind = guide_kind(guide)
    built = kind.build(model, init_log_alpha=config.init_log_alpha) if kind.has_log_alpha else kind.build(model)
    device = torch.device(config.device)
    train, test = (
        (x.to(device), y.to(device)) for x, y in ((split.x_train, split.y_train), (split.x_test, split.y_test))
    )
    target_std = split.target_scale[1] if split.target_scale else 1.0
    model, built = model.to(device), built.to(device)
    if is_file_name(guide):
        with training_mode(False, model, built), forked(device), torch.no_grad():
            built(*(part[:2] for part in train))  # Pyro's autoguides make their parameters when they are called
    return Experiment(model, built, train, test, target_std)


def describe_network(config: Config, model: BayesianModel, split: DataSplit) -> str:
    """A short description of the network of a run.

    Args:
        config: The settings.
        model: The model.
        split: The data.

    Returns:
        Its widths, activation and normalization, in one line.
    """
    outputs = split.num_classes or 1
    normalized = any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in model.net.modules())
    suffix = ", ReLU, batch normalization" if normalized else ", ReLU"
    if is_file_name(config.model):
        file, _, function = Path(config.model).name.rpartition(":")
        return f"{type(model.net).__name__}, by {function} in {file}"
    if config.model == "mlp":
        return "-".join(map(str, (math.prod(split.input_shape), *config.hidden, outputs))) + suffix
    if isinstance(model.net, models.VGG):
        convolutions = [part for part in model.net.modules() if isinstance(part, nn.Conv2d)]
        widths = dict.fromkeys(part.out_channels for part in convolutions)
        dense = model.net.dense1.out_features
        return (
            f"{len(convolutions)} convolutions of 3 x 3, widths {', '.join(map(str, widths))}, dense {dense}-{outputs}"
            + suffix
        )
    return f"convolutions 20 and 50 of 5 x 5, dense 500-{outputs}" + suffix


def _make_conditional(net: nn.Module, names: list[str], split: DataSplit) -> None:
    """Give every class a copy of the named layers, and each of these a gate that is linear in the layer's input."""
    if not names:
        return
    if not split.num_classes:
        raise ValueError(f"conditional: {split.title} has no classes; it needs a classification")
    layers.make_conditional(net, names, split.num_classes)
    example = split.x_train[:1]
    for name in names:
        layer = net.get_submodule(name)
        width = _input_of(net, layer, example).numel()
        gate = nn.Sequential(nn.Flatten(), nn.Linear(width, split.num_classes)).to(example.dtype)
        layer.selection = layers.GatedSelection(gate)


def _input_of(net: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer of a network reads for an input."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach())

    handle = layer.register_forward_pre_hook(keep)
    training = net.training
    try:
        with torch.no_grad(), layers.HardSelection(torch.zeros(len(x), dtype=torch.int64)):
            net.eval()(x)
    finally:
        handle.remove()
        net.train(training)
    return found[0]


def _network(config: Config, split: DataSplit) -> nn.Module:
    outputs = split.num_classes or 1
    if is_file_name(config.model):
        arguments = parse_arguments(config.model_args)
        return models.build_from_file(
            config.model, input_shape=split.input_shape, num_outputs=outputs, arguments=arguments
        )
    if config.model != "mlp":
        return models.build(config.model, input_shape=split.input_shape, num_outputs=outputs)
    # In small regression sets, the batch statistics are too noisy for batch normalization.
    return models.MLP(math.prod(split.input_shape), config.hidden, outputs, batch_norm=split.task == "classification")

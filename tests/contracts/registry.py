"""Every member of every kind, a line each; the rules of a kind (`test_contract_<kind>.py`) run over all of them.

A new guide, prior, likelihood, layer, interpretation or metric is one file in the package and one line here; a test of
each kind fails where a public class of that kind has no line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import effects, guides, layers, likelihoods, metrics, priors


@dataclass(frozen=True)
class PriorMember:
    """A prior; where it has a density and draws, and with which mean and variance."""

    make: Callable[[], priors.Prior]
    mean: float | None = None
    variance: float | None = None
    density: bool = True
    posterior: Callable[..., Any] = guides.Additive
    random_scale: bool = False
    source: bool = False


_scaled = partial(PriorMember, random_scale=True, source=True)
PRIORS = {
    "Normal": PriorMember(partial(priors.Normal, 0.5, 2.0), 0.5, 4.0),
    "Laplace": PriorMember(partial(priors.Laplace, 0.3, 0.7), 0.3, 2 * 0.7**2),
    "StudentT": PriorMember(partial(priors.StudentT, 9.0, 0.2, 0.5), 0.2, 0.25 * 9 / 7),
    "ScaleMixture": PriorMember(partial(priors.ScaleMixture, 0.25, 1.0, 0.2), 0.0, 0.25 + 0.75 * 0.04, source=True),
    "EmpiricalBayes": PriorMember(partial(priors.EmpiricalBayes, 0.4), 0.0, 0.16, source=True),
    "Hierarchical": _scaled(partial(priors.Hierarchical, dist.HalfNormal(0.5))),
    "GroupScale": _scaled(partial(priors.GroupScale, "weight", dist.HalfNormal(0.5))),
    "Horseshoe": _scaled(partial(priors.Horseshoe, dist.HalfNormal(1.0), dist.HalfNormal(1.0), groups="weight")),
    "FromDistribution": PriorMember(lambda: priors.as_prior(dist.Gumbel(0.0, 0.5)), 0.5 * 0.5772156649, 0.4112335),
    "LogUniform": PriorMember(priors.LogUniform, source=True),
    "ARD": PriorMember(priors.ARD, density=False, source=True),
    "Grid": PriorMember(priors.Grid, density=False, posterior=guides.CategoricalWeights),
    "SymmetricBinomial": PriorMember(priors.SymmetricBinomial, density=False, posterior=guides.BinomialWeights),
    "RankOne": PriorMember(priors.RankOne, density=False, posterior=guides.RankOne),
    "UniformMultinomial": PriorMember(priors.UniformMultinomial, density=False, posterior=guides.MultinomialWeights),
}


@dataclass(frozen=True)
class LikelihoodMember:
    """A likelihood, and the shapes of a network's output and of the targets for five examples."""

    make: Callable[[], Any]
    output: tuple[int, ...] = (5, 3)
    target: tuple[int, ...] = (5, 3)
    integer: bool = False


LIKELIHOODS = {
    "Categorical": LikelihoodMember(likelihoods.Categorical, target=(5,), integer=True),
    "Categorical, positions": LikelihoodMember(likelihoods.Categorical, output=(5, 4, 3), target=(5, 4), integer=True),
    "Bernoulli": LikelihoodMember(likelihoods.Bernoulli),
    "BayesianSVM": LikelihoodMember(likelihoods.BayesianSVM, output=(5, 1), target=(5,), integer=True),
    "BayesianSVM, one axis": LikelihoodMember(likelihoods.BayesianSVM, output=(5,), target=(5,), integer=True),
    "BayesianSVM, classes": LikelihoodMember(partial(likelihoods.BayesianSVM, 0.7), target=(5,), integer=True),
    "Poisson": LikelihoodMember(likelihoods.Poisson),
    "Gaussian": LikelihoodMember(partial(likelihoods.Gaussian, 0.7)),
    "Gaussian, learned": LikelihoodMember(partial(likelihoods.Gaussian, 0.7, learn=True)),
    "Gaussian, random": LikelihoodMember(lambda: likelihoods.Gaussian(dist.Gamma(9.0, 9.0))),
    "HeteroscedasticGaussian": LikelihoodMember(likelihoods.HeteroscedasticGaussian, output=(5, 4), target=(5, 2)),
    "HeteroscedasticGaussian, exp": LikelihoodMember(
        partial(likelihoods.HeteroscedasticGaussian, link="exp"), output=(5, 4), target=(5, 2)
    ),
    "StudentT": LikelihoodMember(partial(likelihoods.StudentT, 5.0, 0.7)),
    "Gaussian, by output": LikelihoodMember(partial(likelihoods.Gaussian, torch.tensor([0.3, 0.5, 2.0]), learn=True)),
    "NegativeBinomial": LikelihoodMember(partial(likelihoods.NegativeBinomial, 3.0, learn=True)),
    "ZeroInflatedPoisson": LikelihoodMember(likelihoods.ZeroInflatedPoisson, output=(5, 4), target=(5, 2)),
    "Categorical, axis 1": LikelihoodMember(
        partial(likelihoods.Categorical, axis=1), output=(5, 3, 4), target=(5, 4), integer=True
    ),
    "Categorical, weighted": LikelihoodMember(
        partial(likelihoods.Categorical, class_weights=torch.tensor([1.0, 2.0, 0.5])), target=(5,), integer=True
    ),
    "Ordinal": LikelihoodMember(partial(likelihoods.Ordinal, 4), output=(5, 1), target=(5,), integer=True),
    "GaussianMixture": LikelihoodMember(partial(likelihoods.GaussianMixture, 2), output=(5, 10), target=(5, 2)),
    "WeibullTime": LikelihoodMember(
        partial(likelihoods.WeibullTime, 1.5, censoring="interval"), output=(5, 1), target=(5, 2)
    ),
    "LogNormalTime": LikelihoodMember(
        partial(likelihoods.LogNormalTime, 0.7, learn=True, censoring="interval"), output=(5,), target=(5, 2)
    ),
    "FromOutput": LikelihoodMember(lambda: likelihoods.as_likelihood(_laplace)),
}


def _laplace(output: Tensor) -> dist.Laplace:
    return dist.Laplace(output, 0.6)


@dataclass(frozen=True)
class CompositeMember:
    """A likelihood made of others, or of a loss: its output and targets for five examples."""

    make: Callable[[], Any]
    output: Callable[[torch.dtype], Any]
    target: Callable[[torch.dtype], Any]


def _heads(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"kind": torch.randn(5, 3, dtype=dtype), "size": torch.randn(5, 2, dtype=dtype)}


def _targets_of_heads(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"kind": torch.randint(0, 3, (5,)), "size": torch.randn(5, 2, dtype=dtype)}


def _absolute(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).abs().sum(1)


COMPOSITES = {
    "Joint": CompositeMember(
        lambda: likelihoods.Joint({"kind": likelihoods.Categorical(), "size": likelihoods.Gaussian(0.7, learn=True)}),
        _heads,
        _targets_of_heads,
    ),
    "Weighted": CompositeMember(
        lambda: likelihoods.Weighted(likelihoods.Gaussian(0.7, learn=True)),
        lambda dtype: torch.randn(5, 2, dtype=dtype),
        lambda dtype: {"target": torch.randn(5, 2, dtype=dtype), "weight": torch.rand(5, dtype=dtype)},
    ),
    "Loss": CompositeMember(
        lambda: likelihoods.Loss(_absolute),
        lambda dtype: torch.randn(5, 2, dtype=dtype),
        lambda dtype: torch.randn(5, 2, dtype=dtype),
    ),
}


@dataclass(frozen=True)
class InterpretationMember:
    """An interpretation: whether it draws, afresh for each example, and whether noise of activations stays."""

    make: Callable[[], effects.Interpretation]
    draws: bool = True
    by_example: bool = False
    source: bool = True
    carries: bool = False  # its output is moments, with a variance


INTERPRETATIONS = {
    "SharedSample": InterpretationMember(effects.SharedSample, source=False),
    "LocalReparameterization": InterpretationMember(effects.LocalReparameterization, by_example=True),
    "Flipout": InterpretationMember(effects.Flipout, by_example=True),
    "MeanPropagation": InterpretationMember(effects.MeanPropagation, draws=False),
    "NoiseFree": InterpretationMember(effects.NoiseFree, draws=False, source=False),
    "MomentPropagation": InterpretationMember(effects.MomentPropagation, draws=False, carries=True),
    "Linearization": InterpretationMember(effects.Linearization, draws=False, carries=True),
}


@dataclass(frozen=True)
class LayerMember:
    """A layer, one example's shape, what it is called with, and what of it is random."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)
    whole_numbers: bool = False
    keeps_mean: bool = True  # its mean under mean propagation is the mean of its draws
    by_example: bool = False  # two examples alike are drawn apart
    kwargs: dict[str, Any] = field(default_factory=dict)


def _random(kind: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(layers, kind)(*args, **kwargs, prior={"*": priors.Normal(0.3, 0.2)}, name="layer")


def _first(layer: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = layer(x)[0]
    return found


def _attend(layer: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = layer(x, x, x, need_weights=False)[0]
    return found


class _Two(nn.Module):
    """A module of somebody's own with a random layer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = layers.Linear(3, 2, prior=priors.Normal(0.3, 0.2))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.one(x)
        return found


LAYERS = {
    "Linear": LayerMember(_random("Linear", 3, 4), (3,)),
    "Conv1d": LayerMember(_random("Conv1d", 2, 4, 3, groups=2), (2, 6)),
    "Conv2d": LayerMember(_random("Conv2d", 2, 3, 2), (2, 4, 4)),
    "Conv3d": LayerMember(_random("Conv3d", 1, 2, 2), (1, 3, 3, 3)),
    "ConvTranspose1d": LayerMember(_random("ConvTranspose1d", 2, 4, 3, stride=2), (2, 4)),
    "ConvTranspose2d": LayerMember(_random("ConvTranspose2d", 2, 3, 2), (2, 3, 3)),
    "ConvTranspose3d": LayerMember(_random("ConvTranspose3d", 2, 1, 2), (2, 2, 2, 2)),
    "Embedding": LayerMember(_random("Embedding", 6, 4), (3,), whole_numbers=True),
    "LSTM": LayerMember(_random("LSTM", 3, 4, batch_first=True), (5, 3), _first, keeps_mean=False),
    "GRU": LayerMember(_random("GRU", 3, 4, batch_first=True), (5, 3), _first, keeps_mean=False),
    "MultiheadAttention": LayerMember(
        _random("MultiheadAttention", 4, 2, batch_first=True), (5, 4), _attend, keeps_mean=False
    ),
    "PyroNetwork": LayerMember(lambda: layers.PyroNetwork(_Two()), (3,)),
    "MCDropout": LayerMember(partial(layers.MCDropout, 0.4), (6,), by_example=True),
    "MCDropout2d": LayerMember(partial(layers.MCDropout2d, 0.4), (8, 2, 2), by_example=True),
    "KState": LayerMember(
        partial(layers.KState, (0.0, 1.0, 3.0), (-0.3, 0.6), 0.8, learn=("thresholds", "noise")), (4,), by_example=True
    ),
    "Ternary": LayerMember(layers.Ternary, (4,), by_example=True),
    "Binary": LayerMember(layers.Binary, (4,), by_example=True),
    "ThresholdNeuron": LayerMember(partial(layers.ThresholdNeuron, 0.7), (4,), by_example=True),
    "StochasticLinear": LayerMember(partial(layers.StochasticLinear, 3, 4), (3,), by_example=True),
    "StochasticConv1d": LayerMember(partial(layers.StochasticConv1d, 2, 4, 3, groups=2), (2, 6), by_example=True),
    "StochasticConv2d": LayerMember(partial(layers.StochasticConv2d, 2, 3, 2), (2, 4, 4), by_example=True),
    "StochasticConv3d": LayerMember(partial(layers.StochasticConv3d, 1, 2, 2), (1, 3, 3, 3), by_example=True),
    "StochasticConvTranspose1d": LayerMember(
        partial(layers.StochasticConvTranspose1d, 2, 4, 3, stride=2), (2, 4), by_example=True
    ),
    "StochasticConvTranspose2d": LayerMember(
        partial(layers.StochasticConvTranspose2d, 2, 3, 2), (2, 3, 3), by_example=True
    ),
    "StochasticConvTranspose3d": LayerMember(
        partial(layers.StochasticConvTranspose3d, 2, 1, 2), (2, 2, 2, 2), by_example=True
    ),
    "StochasticLayer": LayerMember(
        partial(layers.StochasticLayer, partial(nn.Linear, 3, 4), layers.activations.Categorical()),
        (3,),
        by_example=True,
    ),
    "StochasticLSTM": LayerMember(
        partial(layers.StochasticLSTM, 3, 4, batch_first=True), (5, 3), _first, by_example=True
    ),
    "StochasticLSTM, state": LayerMember(
        partial(layers.StochasticLSTM, 3, 4, batch_first=True, sample="state"),
        (5, 3),
        _first,
        keeps_mean=False,
        by_example=True,
    ),
    "StochasticGRU": LayerMember(
        partial(layers.StochasticGRU, 3, 4, batch_first=True), (5, 3), _first, by_example=True
    ),
    "StochasticGRU, state": LayerMember(
        partial(layers.StochasticGRU, 3, 4, batch_first=True, sample="state"),
        (5, 3),
        _first,
        keeps_mean=False,
        by_example=True,
    ),
    "StochasticTransformerEncoderLayer": LayerMember(
        partial(layers.StochasticTransformerEncoderLayer, 4, 2, 8, dropout=0.0, batch_first=True),
        (5, 4),
        by_example=True,
    ),
    "StochasticSVM": LayerMember(partial(layers.StochasticSVM, 3), (3,), by_example=True),
    "StochasticAdditive": LayerMember(partial(layers.StochasticAdditive, (3,), 0.7), (3,), by_example=True),
    "Conditional": LayerMember(
        lambda: layers.Conditional(partial(layers.StochasticLinear, 3, 4), 3, layers.SoftSelection(3, 3)),
        (3,),
        by_example=True,
    ),
    "Conditional, gated": LayerMember(
        lambda: layers.Conditional(
            lambda: layers.StochasticConv2d(2, 3, 2),
            3,
            layers.GatedSelection(nn.Sequential(nn.Flatten(), nn.Linear(32, 3))),
            where="output",
            combine="independent",
        ),
        (2, 4, 4),
        by_example=True,
    ),
    "RateNetwork": LayerMember(
        partial(layers.RateNetwork, 3), (3,), lambda layer, x: layer(x, steps=4)[-1], keeps_mean=False, by_example=True
    ),
}


def _labels(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(5, (count,), generator=generator)


def _class_batch(generator: torch.Generator, count: int) -> tuple[Tensor, ...]:
    logits = 2.0 * torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), _labels(generator, count)


def _regression_batch(generator: torch.Generator, count: int) -> tuple[Tensor, ...]:
    mean, target = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    return dist.Normal(mean, 0.7).log_prob(target).sum(-1), mean, target


def _values(generator: torch.Generator, count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, generator=generator, dtype=torch.float64),)


@dataclass(frozen=True)
class MetricMember:
    """A metric that takes batches, and a batch of so many examples."""

    make: Callable[[], Any]
    batch: Callable[[torch.Generator, int], tuple[Tensor, ...]] = _class_batch
    empty_error: bool = True


METRICS = {
    "Accuracy": MetricMember(metrics.Accuracy),
    "NegativeLogLikelihood": MetricMember(metrics.NegativeLogLikelihood),
    "Brier": MetricMember(metrics.Brier),
    "Calibration": MetricMember(metrics.Calibration),
    "MeanIoU": MetricMember(metrics.MeanIoU),
    "Classification": MetricMember(partial(metrics.Classification, 5)),
    "Regression": MetricMember(metrics.Regression, _regression_batch),
    "RunningMean": MetricMember(metrics.RunningMean, _values),
}


def model_of(net: nn.Module, prior: Any, *, num_data: int = 20) -> ps.BayesianModel:
    """A model with Gaussian noise around a network."""
    return ps.BayesianModel(net, prior=prior, likelihood=likelihoods.Gaussian(0.5), num_data=num_data)

"""The methods of the bench `rivals`: what is trained in turn, in which share of the time, and what follows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from pyrostoch import guides
from pyrostoch.model import BayesianModel
from pyrostoch.training.laplace import fit_laplace
from pyrostoch.training.last_layer import fit_last_layer
from pyrostoch.training.sgmcmc import SGHMC

__all__ = ["METHODS", "Method", "Stage"]

#: Makes a guide from a model, the guide of the stage before, if there is one, and the number of epochs.
Make = Callable[[BayesianModel, "nn.Module | None", int], nn.Module]

# Into how many parts the data are cut where a method lives on the noise of batches.
_PARTS = 8
# Cycles of the Markov chain.
_CYCLES = 4


@dataclass(frozen=True)
class Stage:
    """One call of `fit`.

    Args:
        name: What its pace is measured under.
        make: Makes the guide.
        share: Share of the time.
        rate: Learning rate over that of the recipe; with `absolute` over the variance of the noise divided by the
            numbers of examples and of hidden units, near which plain gradient descent becomes unstable.
        settings: Further settings of `fit`.
        parts: The reciprocal of the share of the data in a step.
        absolute: Whether the rate is not that of an optimizer with adaptive steps.
    """

    name: str
    make: Make
    share: float = 1.0
    rate: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: int = 1
    absolute: bool = False


@dataclass(frozen=True)
class Method:
    """A method.

    Args:
        title: The row's title.
        stages: What is trained, one after another.
        finish: What is done with model, guide and data at the end; returns the guide and further scores.
        mode: How predictions are drawn.
        dropout: Probability of dropout behind the hidden layer.
        last_layer: Whether only the weights of the last layer are random.
    """

    title: str
    stages: tuple[Stage, ...]
    finish: Callable[[BayesianModel, Any, Any], tuple[Any, Mapping[str, float]]] | None = None
    mode: str = "mc"
    dropout: float = 0.0
    last_layer: bool = False


def _new(make: Callable[..., nn.Module], **settings: Any) -> Make:
    """A guide that starts at the network's own weights."""

    def start(model: BayesianModel, before: nn.Module | None, epochs: int) -> nn.Module:
        return make(model, **settings)

    return start


def _both(make: Callable[..., nn.Module]) -> Make:
    """A guide that starts at the means and standard deviations of the one before."""

    def start(model: BayesianModel, before: nn.Module | None, epochs: int) -> nn.Module:
        return make(model, init_loc=before, init_scale=before)

    return start


def _swag(model: BayesianModel, before: nn.Module | None, epochs: int) -> nn.Module:
    return guides.Swag(model, rank=20, start=epochs // 4, init_loc=before)


def _chain(model: BayesianModel, before: nn.Module | None, epochs: int) -> nn.Module:
    draws = min(100, epochs // 2 // _CYCLES * _CYCLES)
    return guides.Samples.chain(model, max(_CYCLES, draws), init_loc=before)


def _curvature(structure: Any, model: BayesianModel, point: Any, data: Any) -> tuple[Any, Mapping[str, float]]:
    """The Laplace approximation at a point."""
    guide = guides.Laplace(model, structure, init_loc=point)
    with warnings.catch_warnings():
        # After the time that all methods have, some weights are still on their way: how far is one of the scores.
        warnings.simplefilter("ignore", UserWarning)
        found = fit_laplace(model, guide, data, not_optimum="warn", curvature_steps=0)
    return guide, {"evidence": found.log_marginal_likelihood, "newton_gain": found.newton_gain}


def _exact(model: BayesianModel, guide: Any, data: Any) -> tuple[Any, Mapping[str, float]]:
    fit_last_layer(model, guide, data)
    return guide, {}


_ADDITIVE = Stage("additive", _new(guides.Additive, init_scale=0.05))
_POINT = Stage("point", _new(guides.Delta), rate=0.5)
_FIRST, _THEN = 0.6, 0.1
_MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def _after(name: str, make: Callable[..., nn.Module]) -> tuple[Stage, ...]:
    """The additive guide, and another that goes on from there at a tenth of the rate."""
    first = Stage(_ADDITIVE.name, _ADDITIVE.make, share=_FIRST)
    return first, Stage(name, _both(make), share=1 - _FIRST, rate=_THEN)


def _from_point(share: float, **then: Any) -> tuple[Stage, ...]:
    """A point, and what goes on from there."""
    return Stage(_POINT.name, _POINT.make, share=1 - share, rate=_POINT.rate), Stage(share=share, **then)


#: All methods by name.
METHODS: dict[str, Method] = {
    "point": Method("a point (MAP)", (_POINT,)),
    "dropout": Method("a point, MC dropout .005", (Stage("dropout", _new(guides.Delta), rate=0.5),), dropout=0.005),
    "laplace-diagonal": Method("Laplace, diagonal", (_POINT,), partial(_curvature, "diagonal"), "linearized"),
    "laplace-kronecker": Method("Laplace, Kronecker", (_POINT,), partial(_curvature, "kronecker"), "linearized"),
    "laplace-full": Method("Laplace, full", (_POINT,), partial(_curvature, "full"), "linearized"),
    "laplace-last": Method(
        "Laplace, last layer",
        (Stage("point-last", _POINT.make, rate=_POINT.rate),),
        partial(_curvature, "last_layer"),
        "linearized",
        last_layer=True,
    ),
    "last-layer": Method(
        "last layer, exact",
        (Stage("last-layer", _new(guides.LastLayer), settings={"estimator": "moments:bound"}),),
        _exact,
        last_layer=True,
    ),
    "swag": Method(
        "SWAG, rank 20",
        _from_point(
            0.4,
            name="swag",
            make=_swag,
            rate=0.1,
            settings={"optimizer": _MOMENTUM, "schedule": "constant"},
            parts=_PARTS,
            absolute=True,
        ),
    ),
    "additive": Method("independent weights", (_ADDITIVE,)),
    "low-rank": Method("rank 5, all weights together", _after("low-rank", guides.LowRank)),
    "matrix": Method("covariance of rows and of columns", _after("matrix", guides.MatrixNormal)),
    "ensemble": Method(
        "ensemble of 5 points", (Stage("ensemble", _new(partial(guides.Ensemble.of, size=5)), rate=0.5),)
    ),
    "ensemble-additive": Method(
        "ensemble of 5 with independent weights",
        (
            Stage(
                "ensemble-additive",
                _new(partial(guides.Ensemble.of, make=partial(guides.Additive, init_scale=0.05), size=5)),
            ),
        ),
    ),
    "sghmc": Method(
        "SGHMC, 4 cycles",
        _from_point(
            0.8,
            name="sghmc",
            make=_chain,
            rate=0.1,
            settings={"sampler": SGHMC(cycles=_CYCLES, explore=0.5)},
            absolute=True,
        ),
    ),
}

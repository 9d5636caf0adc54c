"""How long `fit` takes for an ensemble beside as many fits of its members, one after another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pyrostoch import priors
from pyrostoch.bench.case import TrialContext
from pyrostoch.guides import Ensemble
from pyrostoch.likelihoods import Gaussian
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import seeded
from pyrostoch.training.fit import fit
from pyrostoch.training.history import Fit

__all__ = ["MEMBERS", "ensemble_trial"]

#: Number of members.
MEMBERS = 5
# Batches in an epoch.
_BATCHES = 5


def ensemble_trial(
    context: TrialContext, *, widths: tuple[int, ...], make: Callable[[BayesianModel], nn.Module]
) -> Mapping[str, float]:
    """The time of an ensemble's training over five times that of a member's, eager and compiled, in turns.

    Args:
        context: The trial; its recipe has the batch size, and the epochs of each fit.
        widths: Units of each layer, of inputs and outputs too.
        make: Makes a member.

    Returns:
        `fit/eager` and `fit/compiled`, ratios of whole calls of `fit`; and `fit/compiled steps`, of their epochs but
        for the first, in which the step is compiled.
    """
    found = {}
    for name in ("eager", "compiled"):
        rounds = []
        for _ in range(3 if name == "eager" else 2):  # a compiled fit takes long, and little of it is chance
            alone = _fit(context, widths, make, name == "compiled")
            together = _fit(context, widths, lambda model: Ensemble.of(model, make, MEMBERS), name == "compiled")
            rounds.append((together[0] / alone[0] / MEMBERS, _epoch(together[1]) / _epoch(alone[1]) / MEMBERS))
        found[f"fit/{name}"], steps = (statistics.median(column) for column in zip(*rounds, strict=True))
        if name == "compiled":
            found["fit/compiled steps"] = steps
    return found


def _epoch(result: Fit) -> float:
    """The median time of an epoch after the first."""
    return statistics.median(result.history["seconds"][1:])


def _fit(
    context: TrialContext, widths: tuple[int, ...], make: Callable[[BayesianModel], nn.Module], compiled: bool
) -> tuple[float, Fit]:
    """The seconds of a call of `fit`, and what it returns."""
    count = _BATCHES * context.recipe.batch_size
    with seeded(context.seed, torch.device("cpu")):
        layers = [layer for pair in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(*pair), nn.Tanh())]
        x, y = torch.randn(count, widths[0]), torch.randn(count, widths[-1])
        prior: Any = {"*": priors.Normal()}
        model = BayesianModel(nn.Sequential(*layers[:-1]), prior=prior, likelihood=Gaussian(0.3), num_data=count)
        guide = make(model)
    begin = time.perf_counter()
    result = fit(
        model,
        guide,
        (x, y),
        epochs=context.recipe.epochs,
        batch_size=context.recipe.batch_size,
        lr=context.recipe.lr,
        seed=context.seed,
        compile=compiled,
        progress=False,
    )
    return time.perf_counter() - begin, result

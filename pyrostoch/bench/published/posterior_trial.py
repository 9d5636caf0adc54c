"""A trial of the bench `posteriors`: a guide trained in the time of the additive one, and its distance to NUTS."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch import priors
from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.files import read_json, write_json
from pyrostoch.bench.nuts import read_reference
from pyrostoch.bench.recipe import PosteriorRecipe
from pyrostoch.data import DataSplit
from pyrostoch.guides import Additive
from pyrostoch.infer import ELBO, compile_step
from pyrostoch.likelihoods import Gaussian
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.decompose import decompose
from pyrostoch.prediction.output_draws import draws
from pyrostoch.prediction.readouts import seeded

__all__ = ["NOISE", "distances", "guide_trial", "recipe_of", "reference_file", "rmse"]

#: Standard deviation of the noise of each set, in units of the standardized target.
NOISE = {"yacht": 0.05, "energy": 0.05, "bostonHousing": 0.3}

_DRAWS = 2000
_ELBO_DRAWS = 200
# Quantiles between which frequencies are compared.
_BINS = 20
# Rounds in which blocks of steps of both guides are timed in turns, and steps in a block.
_ROUNDS, _BLOCK = 7, 100
# Share of the time in which other guides are the additive one, at which they start, and how much slower they go on.
_FIRST, _SLOWER = 0.6, 0.1


def recipe_of(context: TrialContext) -> PosteriorRecipe:
    """The recipe of a trial.

    Args:
        context: The trial.
    """
    if not isinstance(context.recipe, PosteriorRecipe):
        raise TypeError(f"case {context.case.name}: expected a PosteriorRecipe, got {type(context.recipe).__name__}")
    return context.recipe


def reference_file(context: TrialContext) -> Path:
    """The file with the draws of NUTS for a trial's data set.

    Args:
        context: The trial.
    """
    name = context.case.name.partition("/")[0]
    return context.setting.out / "references" / f"nuts-{name}-{context.setting.preset}.safetensors"


def rmse(mean: Tensor, split: DataSplit) -> float:
    """Root mean square error on the test data, in the target's own units.

    Args:
        mean: Predictive means, (test,).
        split: The data set.
    """
    scale = 1.0 if split.target_scale is None else split.target_scale[1]
    return float((mean - split.y_test[:, 0]).square().mean().sqrt()) * scale


def guide_trial(context: TrialContext, *, make: Callable[..., nn.Module]) -> Mapping[str, float]:
    """Train a guide in the time of the additive one, and compare the function's distribution with the reference's.

    Args:
        context: The trial.
        make: Makes the guide.

    Raises:
        FileNotFoundError: There is no reference.
    """
    split, path = context.require_split(), reference_file(context)
    if not path.is_file():
        raise FileNotFoundError(
            f"bench posteriors: no reference {path}; make it by `pyrostoch bench posteriors --only "
            f"'{context.case.name.partition('/')[0]}/nuts' --preset {context.setting.preset}`, after `make peers`"
        )
    ratio, training = _trained(context, make)
    model, guide = training.model, training.guide
    train = split.x_train, split.y_train
    with seeded(context.seed, torch.device("cpu")):
        terms = decompose(model, guide, train, num_samples=_ELBO_DRAWS, batch_size=len(train[0]))
    functions = draws(model, guide, split.x_test, num=_DRAWS, seed=context.seed).outputs[..., 0]
    found = distances(functions, read_reference(path).functions)
    return {
        "elbo": terms.elbo,
        "elbo/error": terms.elbo_stderr or 0.0,
        "kl": terms.kl,
        "rmse": rmse(functions.mean(0), split),
        "steps": float(training.steps),
        "ratio": ratio,
        **found,
    }


def distances(functions: Tensor, reference: Tensor) -> dict[str, float]:
    """How far draws of a function are from a reference's, as means over its values, in units of its spread.

    Args:
        functions: Draws, (n, inputs).
        reference: Draws of the reference, (m, inputs).

    Returns:
        `distance`, the Wasserstein distance of the values' distributions; `total_variation`, from their frequencies
        between 20 quantiles of the reference; `shift`, the absolute difference of their means; and `spread`, the ratio
        of standard deviations.

    Example:
        >>> draws = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> {name: round(value, 6) for name, value in distances(draws, draws).items()}
        {'distance': 0.0, 'total_variation': 0.0, 'shift': 0.0, 'spread': 1.0}
    """
    ours, theirs = functions.double(), reference.double()
    # In one dimension the distance is the mean difference of quantiles, here of the middles of equal parts.
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    apart = (torch.quantile(ours, levels, dim=0) - torch.quantile(theirs, levels, dim=0)).abs().mean(0)
    edges = torch.quantile(theirs, torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1], dim=0).T.contiguous()
    counts = [
        nn.functional.one_hot(torch.searchsorted(edges, part.T.contiguous()), _BINS).double().mean(1)
        for part in (ours, theirs)
    ]
    scale = theirs.std(0)
    return {
        "distance": float((apart / scale).mean()),
        "total_variation": float((counts[0] - counts[1]).abs().sum(1).mean() / 2),
        "shift": float(((ours.mean(0) - theirs.mean(0)).abs() / scale).mean()),
        "spread": float((ours.std(0) / scale).mean()),
    }


def _trained(context: TrialContext, make: Callable[..., nn.Module]) -> tuple[float, _Training]:
    """Time of a guide's step over the additive one's, and its training in the time of the additive guide's."""
    epochs = recipe_of(context).epochs
    if make is Additive:
        training = _Training(context, make)
        training.run(epochs)
        return 1.0, training
    noted = context.checkpoint().with_name("ratio.json")
    if not noted.is_file():
        write_json(noted, {"ratio": _ratio(context, make)})
    ratio = float(read_json(noted)["ratio"])
    first = _Training(context, Additive)
    first.run(round(_FIRST * epochs))
    training = _Training(context, partial(make, init_loc=first.guide, init_scale=first.guide))
    training.run(max(1, round((1 - _FIRST) * epochs / ratio)), _SLOWER)
    return ratio, training


class _Training:
    """A guide of the network, and its steps on all data; compiled but under the preset `quick`."""

    def __init__(self, context: TrialContext, make: Callable[..., nn.Module]) -> None:
        self.recipe, split = recipe_of(context), context.require_split()
        self.steps = 0
        self._seed, self._data = context.seed, (split.x_train, split.y_train)
        with seeded(context.seed, torch.device("cpu")):
            self.model = _model(self.recipe, split, context.case.name.partition("/")[0])
            self.guide: Any = make(self.model)
        self._loss = ELBO()(self.model, self.guide)
        self._optimizer = torch.optim.Adam(self.guide.parameters(), lr=self.recipe.lr)
        compiled = context.setting.preset != "quick"
        self._compiled = compile_step(self._loss, self._optimizer) if compiled else None

    def step(self) -> None:
        """One step."""
        if self._compiled is not None:
            self._compiled(*self._data)
            return
        self._optimizer.zero_grad()
        self._loss(*self._data).backward()
        self._optimizer.step()

    def run(self, steps: int, factor: float = 1.0) -> None:
        """All steps, by a rate that falls as a cosine.

        Args:
            steps: Their number.
            factor: Rate at the start over that of the recipe.
        """
        self.steps, rate = steps, factor * self.recipe.lr
        with seeded(self._seed, torch.device("cpu")):
            for number in range(steps):
                self._optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * number / steps)) / 2
                self.step()

    def seconds(self) -> float:
        """Time of the processor for a block of steps."""
        begin = time.process_time()
        for _ in range(_BLOCK):
            self.step()
        return time.process_time() - begin


def _ratio(context: TrialContext, make: Callable[..., nn.Module]) -> float:
    """Time of a guide's step over that of the additive guide's, from blocks in turns."""
    ours, theirs = _Training(context, make), _Training(context, Additive)
    for training in (ours, theirs):  # compiles, and leaves the cache warm
        training.seconds()
    ratios = [ours.seconds() / theirs.seconds() for _ in range(_ROUNDS)]
    return statistics.median(ratios)


def _model(recipe: PosteriorRecipe, split: DataSplit, name: str) -> BayesianModel:
    features, hidden = split.x_train.shape[1], recipe.hidden
    net = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    prior: dict[str, Any] = {
        "0.weight": priors.Normal(0.0, features**-0.5),
        "2.weight": priors.Normal(0.0, hidden**-0.5),
        "*.bias": priors.Normal(),
    }
    return BayesianModel(net, prior=prior, likelihood=Gaussian(NOISE[name]), num_data=len(split.x_train))
